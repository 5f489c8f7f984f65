"""Checks for NaN, infinity and numbers that overflow inside a network, before they reach the weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctrl.agents.vec_envs.env_contract import THIS_STEP

LARGEST = math.sqrt(torch.finfo(torch.float32).max)
"""Largest size of an observation's entries, 1.8e19: the square of a larger one is infinite in float32."""


class NonFiniteError(ValueError):
    """NaN or infinity found during training, before it changed any weight."""


def check_observations(observations: Any, name: str, step: int | None) -> None:
    """Raise a `NonFiniteError` unless observations [B, ...], or a dict of them, are finite and of a usable size.

    The square of an entry must be finite too: norms and gradients hold such squares.

    :param step: number of the training step for messages; None where it is not known
    """
    if isinstance(observations, dict):
        for key, part in observations.items():
            check_observations(part, f"{name}[{key!r}]", step)
    elif isinstance(observations, np.ndarray) and observations.dtype.kind == "f":
        flat = _as_float32(observations).ravel()
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.dot(flat, flat)  # half the time of isfinite
        if not np.isfinite(squares):
            check_finite(observations, name, step)
            _check_size(observations, name, step)


def _check_size(observations: np.ndarray, name: str, step: int | None) -> None:
    sizes = np.abs(observations)
    place = np.unravel_index(int(sizes.argmax()), sizes.shape)
    if sizes[place] > LARGEST:
        env, *index = (int(number) for number in place)
        raise NonFiniteError(
            f"{name} is too large {told_step(step)}: env {env}, index {index}, {observations[place]:g}; its square "
            "overflows in float32. Scale what the env returns, as VecNormalize does"
        )


def check_acted(values: Tensor, log_prob: Tensor, observations: Any, step: int | None) -> None:
    """Raise a `NonFiniteError` that names the env where the policy's outputs for it are not finite.

    :param values: [B]
    :param log_prob: [B] of the actions
    :param observations: [B, ...] from which they come; the message says how large they are
    """
    if math.isfinite(float((values + log_prob).sum())):
        return
    bad = ~(values.isfinite() & log_prob.isfinite())
    if bool(bad.any()):
        env = int(bad.nonzero()[0])
        raise NonFiniteError(
            f"value or log-probability of the action is not finite {told_step(step)}: env {env}, whose observation "
            f"has entries of up to {_largest(observations, env):g}. It overflows inside the policy, unless weights are "
            "not finite"
        )


def without_non_finite(*windows: Any) -> tuple[tuple[Any, ...], Tensor | None]:
    """Replace numbers of windows that are not finite by 0, without a gradient there.

    :param windows: tensors [N, T, ...], or dicts of these
    :return: the windows, and [N, T] bool, true at the steps where something was replaced; None for nowhere
    """
    spoiled: Tensor | None = None
    for part in (part for whole in windows for part in (whole.values() if isinstance(whole, dict) else (whole,))):
        if part.is_floating_point() and not bool(part.detach().sum().isfinite()):
            bad = ~part.detach().isfinite().flatten(2).all(dim=2)
            spoiled = bad if spoiled is None else spoiled | bad
    if spoiled is None or not bool(spoiled.any()):
        return windows, None
    return tuple(_cleaned(whole) for whole in windows), spoiled


def _cleaned(windows: Any) -> Any:
    if isinstance(windows, dict):
        return {key: _cleaned(part) for key, part in windows.items()}
    return torch.where(windows.isfinite(), windows, 0) if windows.is_floating_point() else windows


def _largest(observations: Any, env: int) -> float:
    """Return the size of the largest entry of one env's observation."""
    if isinstance(observations, dict):
        return max(_largest(part, env) for part in observations.values())
    row = np.abs(np.asarray(torch.as_tensor(observations[env]).cpu(), dtype=np.float64))
    return float(row.max()) if row.size else 0.0


def told_step(step: int | None) -> str:
    """Return "at step N", or the words that `at_step` replaces by that."""
    return THIS_STEP if step is None else f"at step {step}"


def check_finite(value: np.ndarray | Tensor | dict[str, Any] | None, name: str, step: int | None) -> None:
    """Raise a `NonFiniteError` with the tensor's name and the training step unless all of `value` is finite.

    For an array [B, ...] the error also names the env. Numbers beyond float32's range count as infinite, since networks
    compute in float32.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            check_finite(part, f"{name}[{key!r}]", step)
    elif isinstance(value, Tensor):
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"{name} is not finite {told_step(step)}")
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        finite = np.isfinite(_as_float32(value))
        if not finite.all():
            env, *index = np.argwhere(~finite)[0].tolist()
            raise NonFiniteError(f"{name} is not finite {told_step(step)}: env {env}, index {index}")


def _as_float32(value: np.ndarray) -> np.ndarray:
    if value.dtype == np.float32:
        return value
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


def check_gradients(norm: Tensor, module: nn.Module, step: int) -> None:
    """Raise a `NonFiniteError` that names the first parameters with a bad gradient if `norm` is not finite."""
    if bool(torch.isfinite(norm)):
        return
    bad = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    raise NonFiniteError(f"gradient of {', '.join(bad[:3]) or 'all parameters together'} is not finite at step {step}")
