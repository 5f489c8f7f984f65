"""One checkpoint for a core wherever it is used: `save_core` and `load_core`.

The file is in safetensors' format: the weights and buffers, and in its metadata a JSON object with a version, the
core's name, its input size and its options. Nothing in it is ever run. A core or compressor of your own is in the file
by its name alone, so it must be registered before the file is loaded.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch

import ctrl
from ctrl.compressive.compressors import compressor_names
from ctrl.compressive.tiers import Tier
from ctrl.core import MemoryCore
from ctrl.core_config import CoreConfig, decode, encode
from ctrl.tensor_file import Layout, TensorFile, open_tensors, write_tensors

VERSION = 1
"""Version of the file's format. It rises when a file of a newer version can't be read by older code."""
KEY = "ctrl_core"
"""Name of the JSON object in the file's metadata."""
LARGEST_STATE = 2**30
"""Largest state of one env in bytes, buffers included: a small file must not ask for more memory."""
_KINDS: dict[str, type] = {"Tier": Tier}
_SIZES = ("width", "layers", "heads", "feedforward")
"""Options that are sizes of weights, so none of them can be larger than the number of weights."""
_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_FIELDS = {"version": int, "written_by": str, "core": str, "input_size": int, "options": dict, "dtype": str}


def core_config(core: MemoryCore[Any]) -> CoreConfig:
    """Return what `make_core` needs to build a core again.

    :raises ValueError: where the core's class has no name: register it, or build the core with `make_core`
    """
    classes = (name for name, factory in ctrl._CORES.items() if factory is type(core))
    name, arguments = core.made or (next(classes, None), core.constructed)
    if name is None or name not in ctrl._CORES:
        kind = type(core).__name__
        raise ValueError(f"core must have a name, got a {kind}; give it one with ctrl.register_core({kind!r}, {kind})")
    input_size, options = arguments.bind(ctrl._CORES[name])
    return CoreConfig(name, input_size, options)


def save_core(core: MemoryCore[Any], path: str | os.PathLike[str]) -> None:
    """Save a core: weights, the settings that it has adapted, and what it was built from.

        ctrl.save_core(core, "memory.safetensors")
        core = ctrl.load_core("memory.safetensors")

    The core may be that of an agent: `ctrl.save_core(model.policy.core, path)`. What it remembers is not saved: that is
    the state, which the core does not hold.

    :param path: the file, which is replaced; its folder must exist
    :raises ValueError: where the core has no name, an option is not plain data, a number is not finite, or the options
        would build another core than this one
    """
    config = core_config(core)
    options = {name: encode(value, name, _KINDS) for name, value in config.options.items()}
    dtype = str(core.dtype)
    if dtype not in _DTYPES:
        raise ValueError(f"the core's dtype must be one of {', '.join(_DTYPES)} to be saved, got {dtype}")
    tensors = core.state_dict()
    found, expected = {name: Layout.of(tensor) for name, tensor in tensors.items()}, _layout(config, core.dtype)
    if expected is not None and found != expected:
        names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ValueError(
            f"core {config.name!r} must have the tensors that its options build, but {names[0]} is "
            f"{found.get(names[0], 'missing')} and not {expected.get(names[0], 'there')}"
        )
    data = {"version": VERSION, "written_by": f"ctrl {ctrl.__version__}", "core": config.name}
    data |= {"input_size": config.input_size, "options": options, "dtype": dtype}
    write_tensors(path, tensors, data, KEY)


def load_core(
    path: str | os.PathLike[str], *, into: MemoryCore[Any] | None = None, device: torch.device | str = "cpu"
) -> MemoryCore[Any]:
    """Load a core that `save_core` saved. It gives bit for bit the same outputs and states.

    :param path: the file
    :param into: a core to load the weights into, such as `model.policy.core`; it stays on its device and keeps its
        dtype. None builds a new core
    :param device: device of a new core
    :return: the new core, or `into`
    :raises FileNotFoundError: where there is no such file
    :raises ValueError: where the file is damaged, of another version, needs a core or compressor that is not
        registered, or holds other tensors than its options ask for, or numbers that are not finite; or where `into` is
        another kind of core. Nothing is allocated before sizes are checked, and `into` is then unchanged
    """
    with open_tensors(path, KEY) as file:
        core = _build(file, *_read_config(file))
        core.load_state_dict(file.read())
        core.check_settings()
        if into is None:
            return core.to(device)
        _check_kind(core, into)
        into.load_state_dict(core.state_dict())
        return into


def _check_kind(core: MemoryCore[Any], into: MemoryCore[Any]) -> None:
    """Raise a ValueError unless the weights of `core` mean the same in `into`."""
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (core, into)]
    if type(core) is not type(into) or shapes[0] != shapes[1] or core.structure() != into.structure():
        configs = [{"input_size": each.input_size, **each.constructed.named} for each in (core, into)]
        raise ValueError(
            f"it holds a {type(core).__name__} of {configs[0]}, but `into` is a {type(into).__name__} of {configs[1]}"
        )


def _read_config(file: TensorFile) -> tuple[CoreConfig, torch.dtype]:
    """Read the JSON object of a file; raise a ValueError where it is not one of ours, or asks for unknown names."""
    data = file.data
    version = data.get("version")
    if version != VERSION or isinstance(version, bool):
        writer = str(data.get("written_by", "unknown"))[:80]
        raise ValueError(f"its format must be version {VERSION}, got {str(version)[:80]} (written by {writer})")
    for name, kind in _FIELDS.items():
        if type(data.get(name)) is not kind:
            raise ValueError(f"its {name} must be {kind.__name__}, got {str(data.get(name))[:80]}")
    if data["dtype"] not in _DTYPES:
        raise ValueError(f"its dtype must be one of {', '.join(_DTYPES)}, got {data['dtype'][:80]}")
    name = data["core"]
    if name not in ctrl._CORES:
        raise ValueError(
            f"it needs the core {name[:80]!r}, which is not registered here: first import the module that calls "
            f"ctrl.register_core({name[:80]!r}, ...)"
        )
    options = {option: decode(value, _KINDS) for option, value in data["options"].items()}
    _check_compressors(options)
    return CoreConfig(name, data["input_size"], options), _DTYPES[data["dtype"]]


def _check_compressors(value: Any) -> None:
    """Raise a ValueError where any `Tier` names a compressor that is not registered."""
    if isinstance(value, Tier) and value.compressor not in compressor_names():
        name = str(value.compressor)[:80]
        raise ValueError(
            f"it needs the compressor {name!r}, which is not registered here: first import the module that calls "
            f"ctrl.register_compressor({name!r}, ...)"
        )
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_compressors(part)


def _build(file: TensorFile, config: CoreConfig, dtype: torch.dtype) -> MemoryCore[Any]:
    """Build the core of a file, once it is known that this takes no more memory than the file's tensors."""
    numbers = sum(math.prod(layout.shape) for layout in file.layout.values())
    sizes = {"input_size": config.input_size, **{name: config.options.get(name) for name in _SIZES}}
    for name, size in sizes.items():
        most = len(file.layout) if name == "layers" else numbers
        if isinstance(size, int) and size > most:
            raise ValueError(
                f"its {name} cannot be {str(size)[:20]}, the file holds {numbers} numbers in {len(file.layout)} tensors"
            )
    try:
        if (expected := _layout(config, dtype)) is not None:
            file.check_layout(expected)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            core = _made(config, dtype)
    except (TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"its options do not fit core {config.name!r}: {error}") from error
    file.check_layout({name: Layout.of(tensor) for name, tensor in core.state_dict().items()})
    return core


def _layout(config: CoreConfig, dtype: torch.dtype) -> dict[str, Layout] | None:
    """Return the shapes and dtypes of a core's tensors, without memory for them; None for a core that needs memory.

    :raises ValueError: where the options don't fit, or the core's state would be too large
    """
    try:
        with torch.device("meta"):
            core = _made(config, dtype)
            held = sum(buffer.nbytes for buffer in core.buffers()) + core.state_bytes
    except (RuntimeError, NotImplementedError):  # a constructor of one's own may look at its numbers
        return None
    if held > LARGEST_STATE:
        raise ValueError(f"the state of core {config.name!r} must take at most {LARGEST_STATE} bytes, got {held}")
    return {name: Layout.of(tensor) for name, tensor in core.state_dict().items()}


def _made(config: CoreConfig, dtype: torch.dtype) -> MemoryCore[Any]:
    core = ctrl.make_core(config.name, config.input_size, **config.options)
    return core if core.dtype == dtype else core.to(dtype)
