"""Folders and files of results: a new folder for each run; existing results are replaced only on request."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctrl.experiments.errors import UserError, require

MARKER = "config.json"
MODEL = "model.zip"
SUMMARY = "summary.json"
CURVE = "curve.csv"
HELD_OUT = "held_out.csv"
CHECKPOINTS = "checkpoints"


def open_folder(out: Path | None, *, overwrite: bool, name: str, root: Path = Path("runs")) -> Path:
    """Create the folder for results and return it.

    :param out: folder that the user named; None takes the first free `root/name-N`
    :param overwrite: replace results in `out`
    :param name: beginning of the folder's name if the user named none
    :param root: parent folder if the user named none
    :raises UserError: if `out` is a file, or holds files that may not be replaced
    """
    if out is None:
        return _next_numbered(root, name)
    require(not out.exists() or out.is_dir(), f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        require(overwrite, f"--out {out} holds results already; name another folder, or add --overwrite")
        # A guard against `--out ~ --overwrite`: only folders of results are removed.
        require((out / MARKER).is_file(), f"--out {out} is not a results folder (no {MARKER}), so it is not replaced")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _next_numbered(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = root / f"{name}-{number}"
        try:
            folder.mkdir()  # fails if another process was faster
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def slug(env_id: str) -> str:
    """Return the short form of an env id for folder names: `ctrl/Recall-v0` becomes `recall-v0`."""
    return env_id.rsplit(":", 1)[-1].rsplit("/", 1)[-1].lower()


def write_json(path: Path, data: Any, *, indent: int | None = 2) -> None:
    """Write `data` as JSON; no reader ever sees half a file, even after a crash. Without `indent` it is one line."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=indent, allow_nan=False) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    :raises UserError: if it is missing or is not JSON; the message names the file
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield a text for each entry that differs between two pieces of plain data, with its name."""
    there, now = json.loads(json.dumps([there, now]))
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted({*there, *now}):
            yield from differences(there.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif there != now:
        yield f"{name} is {there!r} there and {now!r} now"
