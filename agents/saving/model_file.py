"""Model file: JSON, tensors and, where these do not suffice, a pickle that only a trusted file may have.

data.json                what the model is made of; see `ctrl.agents.saving.models`
NAME.json                further JSON by name
NAME.safetensors         tensors by name: policy, optimizer, attributes …
trusted.pickle           what JSON can't hold; absent for most models
NAME.pickle              what is of use only to a reader who trusts the file, such as the state of an env
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from ctrl.agents.saving import tensors
from ctrl.agents.saving.archive import Archive, PathOrFile, open_archive, write_archive
from ctrl.agents.saving.json_values import pickled_names

FORMAT, VERSION = "ctrl.agents model", 1
DATA, PICKLE = "data.json", "trusted.pickle"
JSON, TENSORS, OPTIONAL = ".json", ".safetensors", ".pickle"


@dataclass(frozen=True)
class ModelFile:
    """Contents of a model file."""

    data: dict[str, Any]
    """The entry `data.json`."""
    json: dict[str, Any] = field(default_factory=dict)
    """Further JSON by name."""
    tensors: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tensors or arrays by name, each a table."""
    pickled: dict[str, Any] = field(default_factory=dict)
    """Objects by name, for which a reader must trust the file."""
    optional: dict[str, bytes] = field(default_factory=dict)
    """Pickles by name that a reader may do without; empty where the reader does not trust the file."""

    def write(self, path: PathOrFile, suffix: str = ".zip") -> None:
        """Write the file.

        :param path: path or file object, as for `write_archive`
        :param suffix: suffix that a path gets if it has none
        :raises ValueError: where an object can't be pickled
        """
        head = {"format": FORMAT, "version": VERSION}
        entries = {DATA: _json({**head, **self.data})}
        entries |= {f"{name}{JSON}": _json(value) for name, value in self.json.items()}
        entries |= {f"{name}{TENSORS}": tensors.to_bytes(table) for name, table in self.tensors.items()}
        entries |= {f"{name}{OPTIONAL}": content for name, content in self.optional.items()}
        if self.pickled:
            entries[PICKLE] = _pickle(self.pickled)
        write_archive(path, entries, suffix)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _pickle(objects: dict[str, Any]) -> bytes:
    for name, value in objects.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            raise ValueError(f"{name} can't be saved: {error}; leave it out with exclude=[…]") from error
    return bytes(cloudpickle.dumps(objects))  # together, so that what is shared stays shared


def read_model_file(path: PathOrFile, *, trust: bool, replaced: Collection[str] | None = ()) -> ModelFile:
    """Read all of a model file; its pickle only where it is needed.

    :param path: path or file object, as for `open_archive`
    :param trust: whether code of the file may run
    :param replaced: attributes that the caller replaces, so that they need no pickle; None where none is of interest
    :raises OSError: where there is no such file
    :raises ValueError: where the file is damaged, or needs trust and has none
    """
    with open_archive(path) as archive:
        if DATA not in archive.names:
            raise ValueError(_OF_SB3 if _is_pickled(archive) else "it is no model file")
        data = read_data(archive)
        needed = _needed(data, replaced)
        if needed and not trust:
            raise ValueError(_needs_trust(needed))
        return ModelFile(
            data,
            {name: archive.json(f"{name}{JSON}") for name in _names(archive, JSON) if f"{name}{JSON}" != DATA},
            {name: _tensors(archive, f"{name}{TENSORS}") for name in _names(archive, TENSORS)},
            _unpickled(archive) if needed else {},
            {name: archive.read(f"{name}{OPTIONAL}") for name in _optional(archive)} if trust else {},
        )


def read_data(archive: Archive) -> dict[str, Any]:
    """Return the entry `data.json`.

    :raises ValueError: where it is no model file of a version that this one knows
    """
    data = archive.json(DATA)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError("it is no model file of ctrl")
    if data.get("version") != VERSION:
        raise ValueError(f"it has version {str(data.get('version'))[:20]} of the format; this ctrl knows {VERSION}")
    return data


def _names(archive: Archive, suffix: str) -> list[str]:
    return sorted(name.removesuffix(suffix) for name in archive.names if name.endswith(suffix))


def _optional(archive: Archive) -> list[str]:
    return [name for name in _names(archive, OPTIONAL) if f"{name}{OPTIONAL}" != PICKLE]


def _tensors(archive: Archive, name: str) -> tensors.Tensors:
    return tensors.from_bytes(archive.read(name), name)


def _needed(data: dict[str, Any], replaced: Collection[str] | None) -> list[str]:
    """Return the names of the pickled values that the attributes, less those of `replaced`, and optimizers refer to."""
    attributes, optimizers = data.get("attributes"), data.get("optimizers")
    if not isinstance(attributes, dict) or not isinstance(optimizers, dict):
        raise ValueError("its attributes or optimizers are no table")
    wanted = {} if replaced is None else {name: part for name, part in attributes.items() if name not in replaced}
    return pickled_names([wanted, optimizers])


def _unpickled(archive: Archive) -> dict[str, Any]:
    try:
        objects = cloudpickle.loads(archive.read(PICKLE))
    except Exception as error:  # code of the file may raise anything
        raise ValueError(
            f"what the file has pickled can't be read here: {type(error).__name__}: {error}; replace it with "
            "custom_objects={…}"
        ) from error
    if not isinstance(objects, dict):
        raise ValueError("what the file has pickled is no table")
    return objects


_OF_SB3 = (
    "it is pickled, as files of stable-baselines3 are, and unpickling runs code from the file. If you trust where the "
    "file comes from, give load trust=True (on the command line --trust)"
)


def _needs_trust(names: list[str]) -> str:
    attributes = sorted({name.split(".")[0] for name in names})
    replace = ", ".join(f"{name!r}: …" for name in attributes[:3])
    return (
        f"{', '.join(sorted(names)[:5])} can only be read by unpickling, which runs code from the file. If you trust "
        "where the file comes from, give load trust=True (on the command line --trust); or replace what is pickled, "
        f"with custom_objects={{{replace}}}"
    )


def is_pickled(path: PathOrFile) -> bool:
    """Return True for a file as stable-baselines3 writes it, whose attributes are pickled.

    :raises ValueError: where it is no archive
    """
    with open_archive(path) as archive:
        return _is_pickled(archive)


def _is_pickled(archive: Archive) -> bool:
    """Return True for a model of stable-baselines3, and for what torch has pickled, such as a policy."""
    return DATA not in archive.names and any(name == "data" or name.endswith("data.pkl") for name in archive.names)


def algorithm_of(path: PathOrFile) -> str:
    """Return the name of the algorithm that a file holds, such as "MemoryPPO", without running code from the file.

    :raises OSError: where there is no such file
    :raises ValueError: where it is no model file
    """
    with open_archive(path) as archive:
        if DATA not in archive.names and "data" in archive.names:
            return "MemoryImpala" if "num_actors" in archive.json("data") else "MemoryPPO"
        return str(read_data(archive).get("algorithm"))
