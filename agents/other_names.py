"""Names that users of stable-baselines3 and sb3-contrib know and that are none here, with what to give instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import ctrl

P = ParamSpec("P")
R = TypeVar("R")

POLICIES = {
    "MlpMemoryPolicy": ("MlpPolicy", "ActorCriticPolicy", "MlpLstmPolicy", "RecurrentActorCriticPolicy"),
    "CnnMemoryPolicy": ("CnnPolicy", "ActorCriticCnnPolicy", "CnnLstmPolicy", "RecurrentActorCriticCnnPolicy"),
    "MultiInputMemoryPolicy": (
        *("MultiInputPolicy", "MultiInputActorCriticPolicy"),
        *("MultiInputLstmPolicy", "RecurrentMultiInputActorCriticPolicy"),
    ),
}
"""Ours, and the names that theirs have as text and as classes."""
_NO_SDE = "memory policies have no state-dependent exploration: leave it out"
_OWN_BUFFER = "rollouts are kept as windows: leave it out, and give n_steps and batch_size"
_LEARNED_ONCE = "each step is learned from once: leave it out"
ARGUMENTS = {
    "use_sde": _NO_SDE,
    "sde_sample_freq": _NO_SDE,
    "rollout_buffer_class": _OWN_BUFFER,
    "rollout_buffer_kwargs": _OWN_BUFFER,
    "mask": "use episode_start, true where an observation is the first of an episode",
    "gae_lambda": "use vtrace_lambda",
    "clip_range": "use rho_bar and c_bar, which clip importance weights",
    "clip_range_vf": "V-trace has no clip of values: leave it out",
    "n_epochs": _LEARNED_ONCE,
    "target_kl": _LEARNED_ONCE,
    "normalize_advantage": "use normalize_values, which divides advantages by the scale of returns",
    "window": "use n_steps: a window is sent and unrolled whole",
    "refresh": "stored states stay as actors made them: leave it out",
}
"""Keyword arguments; a function that has one of them takes it as always."""
_ONE_MEMORY = "actor and critic share one memory: leave it out"
POLICY_KWARGS = {
    "lstm_hidden_size": "use core='lstm' and core_kwargs={'width': …}",
    "n_lstm_layers": "use core='lstm' and core_kwargs={'layers': …}",
    "lstm_kwargs": "use core='lstm' and core_kwargs={…}",
    "shared_lstm": _ONE_MEMORY,
    "enable_critic_lstm": _ONE_MEMORY,
}
"""Entries of `policy_kwargs`."""
ALGORITHMS_OWN = {
    "memory_lr": "use the algorithm's memory_learning_rate",
    "normalize_values": "it is an argument of the algorithm, not of the policy",
}
"""Arguments of a policy that the algorithm gives."""


def answering_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """Answer keyword arguments that `function` lacks and others have with what to give instead, as a ValueError.

    What nobody has stays Python's TypeError.
    """
    own = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name in ARGUMENTS and name not in own:
                raise ValueError(f"there is no argument {name} here (got {value!r}); {ARGUMENTS[name]}")
        return function(*args, **kwargs)

    return checked


def policy_hint(name: str) -> str:
    """Return which policy stands for one of another library, or nothing."""
    for ours, theirs in POLICIES.items():
        if name in theirs:
            recurrent = ", with policy_kwargs={'core': 'lstm'} for an LSTM" if set(theirs[2:]) & {name} else ""
            return f"; use {ours!r}{recurrent}"
    return ""


def check_policy_kwargs(policy_kwargs: dict[str, Any], policy_class: type) -> None:
    """Raise a ValueError for entries that belong elsewhere, with where that is.

    :param policy_class: whose own arguments, and those of its base classes, are left alone
    """
    makers = [vars(base)["__init__"] for base in policy_class.__mro__ if "__init__" in vars(base)]
    own = {name for maker in makers for name in inspect.signature(maker).parameters}
    for name, value in policy_kwargs.items():
        hint = ALGORITHMS_OWN.get(name) or ("" if name in own else POLICY_KWARGS.get(name) or _core_hint(name, value))
        if hint:
            raise ValueError(f"policy_kwargs must be without {name} (got {value!r}); {hint}")


def _core_hint(name: str, value: Any) -> str:
    options = {option for factory in ctrl._CORES.values() for option in inspect.signature(factory).parameters}
    return f"it is an option of the core: use core_kwargs={{{name!r}: {value!r}}}" if name in options else ""
