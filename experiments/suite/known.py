"""Runs that a suite takes over from the results of another suite."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctrl.experiments.errors import require
from ctrl.experiments.plain_data import convert, reading
from ctrl.experiments.runs.run_folder import differences, read_json
from ctrl.experiments.suite.config import SuiteConfig
from ctrl.experiments.suite.results import Results, SuiteRun, results_file

KNOWN = "known.json"
"""File with the copy of these results in the folder of a suite."""


@dataclass(frozen=True)
class Known:
    """Runs that are taken over and not repeated."""

    runs: dict[str, SuiteRun] = field(default_factory=dict)
    """Runs by the name of their job."""
    notes: list[str] = field(default_factory=list)
    """Notes on the origin of the runs."""
    code: str = ""
    """Fingerprint of the code that made the runs."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the suite that made the runs."""


def load_known(config: SuiteConfig, code: str) -> dict[str, Any] | None:
    """Return the results that `config.known` names, as plain data; None if it names none.

    :param config: options of the suite
    :param code: fingerprint of the present code
    :raises UserError: if the results were made by other code or with other options
    """
    if config.known is None:
        return None
    path = results_file(config.known)
    data = read_json(path)
    known = known_of(data, path)
    require(known.code == code, f"{path} has results of other code ({known.code}, this is {code})")
    changes = list(differences(known.settings, config.settings))
    require(not changes, f"{path} has results with other options ({'; '.join(changes)})")
    return dict(data)


def read_known(folder: Path) -> Known:
    """Return the runs that were taken over into the folder of a suite, if any."""
    path = folder / KNOWN
    return known_of(read_json(path), path) if path.is_file() else Known()


def known_of(data: dict[str, Any], path: Path) -> Known:
    """Return the runs to take over from the results of a suite.

    :param data: results, as in a `suite.json`
    :param path: file that they were read from
    :raises UserError: if `data` are no results of a suite
    """
    with reading(path, "no results of a suite"):
        runs = {run.job_name: run for run in Results.from_json(data).runs}
        origin = f"{len(runs)} runs were taken over from `{data['command']}` on {data['machine']['cpu']}."
        origins = convert(list[str], data.get("origins", []), "origins")
        settings = convert(dict[str, Any], data["settings"], "settings")
        return Known(runs, [origin, *origins], convert(str, data["code"], "code"), settings)
