"""Memory cores for reinforcement learning: Compressive Transformers in place of an LSTM.

    core = ctrl.make_core("compressive", input_size=24)

`ctrl.core` defines the contract that every core keeps.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from ctrl.baselines.feedforward import FeedforwardCore, FeedforwardState
from ctrl.baselines.lstm_gru import GRUCore, GRUState, LSTMCore, LSTMState
from ctrl.baselines.mingru import MinGRUCore, MinGRUState
from ctrl.checks.checking import check_core
from ctrl.checks.result import Finding, LawBroken
from ctrl.compressive.compressors import Compressor, compressor_names, register_compressor
from ctrl.compressive.core import CompressiveCore, CompressiveState
from ctrl.compressive.tiers import Tier, memory_for_horizon
from ctrl.core import MemoryCore, State, Unrolled, choose, register
from ctrl.core_config import CoreConfig, keep
from ctrl.core_file import core_config, load_core, save_core
from ctrl.predictor import Predictor, TooManySessionsError
from ctrl.presets import gtrxl, paper_config, transformer_xl

__version__ = "0.1.0"

__all__ = [
    "CompressiveCore",
    "CompressiveState",
    "Compressor",
    "CoreConfig",
    "FeedforwardCore",
    "FeedforwardState",
    "Finding",
    "GRUCore",
    "GRUState",
    "LSTMCore",
    "LSTMState",
    "LawBroken",
    "MemoryCore",
    "MinGRUCore",
    "MinGRUState",
    "Predictor",
    "State",
    "Tier",
    "TooManySessionsError",
    "Unrolled",
    "check_core",
    "compressor_names",
    "core_config",
    "core_names",
    "load_core",
    "make_core",
    "memory_for_horizon",
    "paper_config",
    "register_compressor",
    "register_core",
    "save_core",
]

_CORES: dict[str, Callable[..., MemoryCore[Any]]] = {
    "compressive": CompressiveCore,
    "transformer_xl": transformer_xl,
    "gtrxl": gtrxl,
    "lstm": LSTMCore,
    "gru": GRUCore,
    "mingru": MinGRUCore,
    "feedforward": FeedforwardCore,
}


def core_names() -> list[str]:
    """Return the names that `make_core` knows."""
    return list(_CORES)


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that an option can be given to."""


def register_core(name: str, factory: Callable[..., MemoryCore[Any]]) -> None:
    """Make a core usable by name, in `make_core` and in an agent's `policy_kwargs={"core": name}`.

    :param name: a new name
    :param factory: a subclass of `MemoryCore`, or a function that builds one from the input size and options by keyword
    :raises ValueError: if the name is taken or not a string, or the factory cannot be called with an input size
    """
    first = next(iter(inspect.signature(factory).parameters.values()), None) if callable(factory) else None
    if callable(factory) and (first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)):
        raise ValueError(f"factory must take the input size as its first argument, got {factory!r}")
    register("core", name, factory, _CORES)


def make_core(name: str, input_size: int, **options: Any) -> MemoryCore[Any]:
    """Build a memory core by name.

    :param name: one of `core_names()`
    :param input_size: I, the size of an observation embedding
    :param options: the core's own options, such as `layers`, `width`, `memory`; see its class
    :raises ValueError: where the name is unknown, an option is unknown or does not fit, or a registered factory builds
        no `MemoryCore`
    """
    factory = choose("core", name, _CORES)
    _, *parameters = inspect.signature(factory).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind in _NAMED]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [] if open_ended else [option for option in options if option not in known]
    if unknown:
        hints = "".join(f"; {hint}" for option in unknown if (hint := _hint(option, known)))
        raise ValueError(f"core {name!r} does not take {', '.join(unknown)}; its options are {', '.join(known)}{hints}")
    core: MemoryCore[Any] = factory(input_size, **options)
    if not isinstance(core, MemoryCore):
        raise ValueError(f"core {name!r} must be a ctrl.MemoryCore, got {type(core).__name__}")
    core.made = name, keep((input_size,), options)
    return core


def _hint(option: str, known: list[str]) -> str:
    """Suggest the known option that is closest to an unknown one; "" if none is close."""
    nearest = difflib.get_close_matches(option, known, n=1)
    return f"for {option} use {nearest[0]}" if nearest else ""
