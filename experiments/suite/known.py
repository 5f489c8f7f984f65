"""Runs that a suite takes over from the results of another suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrl.experiments.errors import UserError, require
from ctrl.experiments.runs.run_folder import read_json, write_json
from ctrl.experiments.suite.config import SuiteConfig
from ctrl.experiments.suite.results import RESULTS, Results, SuiteRun, differences

KNOWN = "known.json"
"""File with the copy of these results in the folder of a suite."""


@dataclass(frozen=True)
class Known:
    """Runs that are taken over and not repeated."""

    runs: dict[str, SuiteRun]
    """Runs by the name of their job."""
    notes: list[str]
    """Notes on the origin of the runs."""
    code: str
    """Fingerprint of the code that made the runs."""
    settings: dict[str, Any]
    """Options of the suite that made the runs."""


def copy_known(config: SuiteConfig, code: str, folder: Path | None = None) -> None:
    """Check the results that `config.known` names, and copy them into the folder of a suite.

    :param config: options of the suite
    :param code: fingerprint of the present code
    :param folder: folder of the suite; None to check the results only
    :raises UserError: if they were made by other code or with other options
    """
    if config.known is None:
        return
    path = config.known / RESULTS if config.known.is_dir() else config.known
    data = read_json(path)
    known = known_of(data, path)
    require(known.code == code, f"{path} has results of other code ({known.code}, this is {code})")
    changes = list(differences(known.settings, config.settings))
    require(not changes, f"{path} has results with other options ({'; '.join(changes)})")
    if folder is not None:
        write_json(folder / KNOWN, data, indent=None)


def read_known(folder: Path) -> Known | None:
    """Return the runs that were taken over into the folder of a suite; None if there are none."""
    path = folder / KNOWN
    return known_of(read_json(path), path) if path.is_file() else None


def known_of(data: dict[str, Any], path: Path) -> Known:
    """Return the runs to take over from the results of a suite.

    :param data: results, as in a `suite.json`
    :param path: file that they were read from
    :raises UserError: if `data` are no results of a suite
    """
    try:
        runs = {run.job_name: run for run in Results.from_json(data).runs}
        origin = f"{len(runs)} runs were taken over from `{data['command']}` on {data['machine']['cpu']}."
        return Known(runs, [origin, *data.get("origins", [])], data["code"], data["settings"])
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} holds no results of a suite: {error!r}") from error
