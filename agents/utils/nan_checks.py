"""Checks for NaN and infinity, before they reach the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class NonFiniteError(ValueError):
    """NaN or infinity found during training, before it changed any weight."""


def check_finite(value: np.ndarray | Tensor | dict[str, Any] | None, name: str, step: int) -> None:
    """Raise a `NonFiniteError` with the tensor's name and the training step unless all of `value` is finite.

    For an array [B, ...] the error also names the env. Numbers beyond float32's range count as infinite, since networks
    compute in float32.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            check_finite(part, f"{name}[{key!r}]", step)
    elif isinstance(value, Tensor):
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"{name} is not finite at step {step}")
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        finite = np.isfinite(_as_float32(value))
        if not finite.all():
            env, *index = np.argwhere(~finite)[0].tolist()
            raise NonFiniteError(f"{name} is not finite at step {step}: env {env}, index {index}")


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
