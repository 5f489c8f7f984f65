"""Shared tools of the tests of model files: a small saved agent, and changes to its entries."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent_toys import make_model, staggered_env
from safetensors.torch import load, save

Entries = dict[str, bytes]


def saved(make: Any = make_model, core: str = "compressive", *, steps: int = 72, **options: Any) -> bytes:
    """Return the file of a small trained agent."""
    file = io.BytesIO()
    model = make(staggered_env(), core, **options)
    (model.learn(steps) if steps else model).save(file)
    return file.getvalue()


def entries_of(content: bytes) -> Entries:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: Entries, compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def with_data(content: bytes, change: Callable[[dict[str, Any]], Any]) -> io.BytesIO:
    """Return the file with `data.json` changed in place by a function."""
    entries = entries_of(content)
    data = json.loads(entries["data.json"])
    change(data)
    return zipped({**entries, "data.json": json.dumps(data).encode()})


def with_tensors(content: bytes, entry: str, change: Callable[[dict[str, Any]], Any]) -> io.BytesIO:
    """Return the file with the tensors of `entry` changed in place by a function."""
    entries = entries_of(content)
    tensors = load(entries[f"{entry}.safetensors"])
    change(tensors)
    return zipped({**entries, f"{entry}.safetensors": save(tensors)})


class Bomb:
    """Object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
