"""Folders and files of results: a new folder for each run; existing results are replaced only on request."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctrl.agents.saving.archive import parse_json
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.plain_data import shown

MARKER = "config.json"
MODEL = "model.zip"
SUMMARY = "summary.json"
CURVE = "curve.csv"
HELD_OUT = "held_out.csv"
CHECKPOINTS = "checkpoints"
PROGRESS = "progress.json"
"""File with the state of a run's recording at each of its model files."""
PARTIAL = ".partial-"
"""Beginning of the names of files that are being written."""
ERROR_LOG = "error.txt"
"""File with the traceback of the error that ended a run."""
LONGEST_JSON = 2**24
"""Largest size of a JSON file in bytes; parsed JSON takes up to twenty times as much memory."""


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
    if out.is_dir() and not all(path.name.startswith(PARTIAL) for path in out.iterdir()):
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


def clear_run(folder: Path) -> None:
    """Remove what a run with other options has left in a folder, so that nothing goes on from it."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (MODEL, SUMMARY, CURVE, HELD_OUT, PROGRESS, ERROR_LOG):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which gets its final name after the `with` block.

    Under the final name there is the old file or the whole new one, never a part, also after a kill or a power cut. An
    error in the block leaves the old file, and no partial one.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")  # the ending stays: savers choose the format by it
    try:
        yield partial
        _flush_to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    """Let the disk finish writing a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Any, *, indent: int | None = 2) -> None:
    """Write `data` as JSON, whole at any time; see `written_whole`. Without `indent` it is one line."""
    text = json.dumps(data, indent=indent, allow_nan=False) + "\n"
    with written_whole(path) as partial:
        partial.write_text(text)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    :raises UserError: if it is missing, cannot be read, is too long or is not JSON; the message names the file
    """
    try:
        require(not path.exists() or path.is_file(), f"{path} is not a file")  # a pipe would never end
        require(path.stat().st_size <= LONGEST_JSON, f"{path} is longer than {LONGEST_JSON:,} bytes")
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {shown(error)}") from None


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON file with a table; errors as of `read_json`."""
    data = read_json(path)
    require(isinstance(data, dict), f"{path} must hold a table, got {shown(data)}")
    return dict(data)


def differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield a text for each entry that differs between two pieces of plain data, with its name."""
    there, now = json.loads(json.dumps([there, now]))
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted({*there, *now}):
            yield from differences(there.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif there != now:
        yield f"{name} is {there!r} there and {now!r} now"
