"""Zip archives of entries that are stored as they are, so that no entry is larger than the file."""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stable_baselines3.common.save_util import open_path

PathOrFile = str | Path | io.BufferedIOBase
LONGEST_MESSAGE = 600
"""Most characters of what a message says is wrong."""
LONGEST_JSON = 2**23
"""Largest size of a JSON entry in bytes; parsed JSON takes up to twenty times as much memory."""


class Archive:
    """Entries of a model file by name, each read when it is asked for.

    :param opened: the zip file, open
    """

    def __init__(self, opened: zipfile.ZipFile) -> None:
        self._opened = opened
        names = opened.namelist()
        self.names = frozenset(names)
        if len(names) != len(self.names):
            raise ValueError("it has two entries of one name")

    def read(self, name: str) -> bytes:
        """Return an entry.

        :raises ValueError: where it is missing, compressed, encrypted or damaged
        """
        if name not in self.names:
            raise ValueError(f"it has no entry {name!r}")
        info = self._opened.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"entry {name!r} is compressed; entries of model files are stored as they are")
        return self._opened.read(info)

    def json(self, name: str) -> Any:
        """Return a JSON entry.

        :raises ValueError: as `read`, and where it is not JSON, too long, too deep or has a number that is not finite
        """
        if name in self.names and self._opened.getinfo(name).file_size > LONGEST_JSON:
            raise ValueError(f"entry {name!r} is longer than {LONGEST_JSON:,} bytes")
        try:
            return parse_json(self.read(name).decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"entry {name!r} is not sound: {error}") from None


def parse_json(text: str) -> Any:
    """Parse JSON, and nothing beyond it: no NaN or infinity, no key twice, no nesting that Python can't follow.

    :raises ValueError: where the text is something else
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def write_archive(path: PathOrFile, entries: Mapping[str, bytes], suffix: str = ".zip") -> None:
    """Write entries to a zip file. Under a path no reader ever sees half a file, even after a crash.

    :param path: a missing folder is created. A file object must be open for writing
    :param entries: contents by name
    :param suffix: suffix that a path gets if it has none
    """
    if not isinstance(path, str | Path):
        _write(open_path(path, "w"), entries)
        return
    target = _target(Path(path), suffix)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-", suffix=".zip")
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, entries)
        os.chmod(partial, _usual_mode())
        os.replace(partial, target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, entries: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # without the date, so equal models give equal files


def _target(path: Path, suffix: str) -> Path:
    """Return the path to write to, by the rules of stable-baselines3."""
    path = path if path.suffix else Path(f"{path}{suffix}")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=5)
        path = Path(f"{path}_2")
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.", stacklevel=5)
        path.parent.mkdir(exist_ok=True, parents=True)
    return Path(os.path.realpath(path))  # what a link points to is replaced, not the link


def _usual_mode() -> int:
    """Return the mode of a file that `open` creates: `mkstemp` would keep it from others."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def open_archive(path: PathOrFile) -> Iterator[Archive]:
    """Open a model file for reading; errors inside the `with` block become a ValueError that names the file.

    :param path: a path, to which `.zip` is added where there is no such file, or a file object
    :raises OSError: where there is no such file
    :raises ValueError: where it is no archive, or for whatever the block finds wrong
    """
    file = _open(path)
    try:
        with naming(path), zipfile.ZipFile(file) as opened:
            yield Archive(opened)
    finally:
        if isinstance(path, str | Path):
            file.close()


@contextmanager
def naming(path: PathOrFile) -> Iterator[None]:
    """Turn whatever error the `with` block ends in into a ValueError that names the model file."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name_of(path)} is not a whole zip file: {error}") from error
    except Exception as error:  # a damaged file raises many kinds: EOFError, struct.error, TypeError, MemoryError …
        raise ValueError(f"{name_of(path)} cannot be read: {_text(error)}") from error


def _text(error: Exception) -> str:
    """Return an error as one line that is not long, whatever it quotes from the file."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} …"


def _open(path: PathOrFile) -> BinaryIO:
    if isinstance(path, str | Path):
        found = Path(path) if os.path.lexists(path) else Path(f"{path}.zip")
        if found.exists() and not found.is_file():  # a pipe would never end
            raise ValueError(f"{found} is not a file")
    return open_path(path, "r", suffix="zip")


def name_of(path: PathOrFile) -> str:
    """Return how messages name a model file."""
    return str(path) if isinstance(path, str | Path) else f"the {type(path).__name__}"
