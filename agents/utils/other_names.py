"""Hints for users of stable-baselines3 and sb3-contrib: names that do not exist here, with their replacements."""

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
"""Our policies, each with its counterparts in the other libraries, by registered name and by class name."""
_NO_SDE = "memory policies have no state-dependent exploration: leave it out"
_OWN_BUFFER = "rollouts are kept as windows: leave it out, and give n_steps and batch_size"
_LEARNED_ONCE = "each step is learned from once: leave it out"
ARGUMENTS = {
    "use_sde": _NO_SDE,
    "sde_sample_freq": _NO_SDE,
    "rollout_buffer_class": _OWN_BUFFER,
    "rollout_buffer_kwargs": _OWN_BUFFER,
    "use_masking": "it is an argument of the constructor; masks are used by themselves where the env has them",
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
"""Hints by keyword argument; a function that has the argument itself accepts it."""
_ONE_MEMORY = "actor and critic share one memory: leave it out"
POLICY_KWARGS = {
    "lstm_hidden_size": "use core='lstm' and core_kwargs={'width': …}",
    "n_lstm_layers": "use core='lstm' and core_kwargs={'layers': …}",
    "lstm_kwargs": "use core='lstm' and core_kwargs={…}",
    "shared_lstm": _ONE_MEMORY,
    "enable_critic_lstm": _ONE_MEMORY,
}
"""Hints by entry of `policy_kwargs`."""
ALGORITHMS_OWN = {
    "memory_lr": "use the algorithm's memory_learning_rate",
    "normalize_values": "it is an argument of the algorithm, not of the policy",
}
"""Hints by argument of a policy that the algorithm sets."""


def answering_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` with a ValueError, and a hint, for keyword arguments that it lacks but related functions have.

    Any other unknown argument still raises Python's TypeError.
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
    """Return a hint to use our policy in place of another library's, or an empty string if there is none."""
    for ours, theirs in POLICIES.items():
        if name in theirs:
            recurrent = ", with policy_kwargs={'core': 'lstm'} for an LSTM" if set(theirs[2:]) & {name} else ""
            return f"; use {ours!r}{recurrent}"
    return ""


def check_policy_kwargs(policy_kwargs: dict[str, Any], policy_class: type) -> None:
    """Raise a ValueError for entries that belong elsewhere, with a hint at the right place.

    :param policy_class: class whose arguments, its own and inherited ones, are accepted unless the algorithm sets them
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
