"""Checks of weights and optimizer states from a file against the model that they are for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.agents.utils.value_normalisation import ValueNormalisation

NOT_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "step", "exp_inf")
"""Entries of an optimizer's state that are sums of squares, or counts."""


def check_weights(given: Mapping[str, Any], module: nn.Module) -> None:
    """Refuse weights that do not fit a module, or can't be those of a trained one.

    :raises ValueError: where tensors are missing or extra, of another shape or dtype, or not finite; where a scale,
        variance or count is negative
    """
    own = module.state_dict()
    check_names(given, own, "weights")
    for name, there in own.items():
        if isinstance(there, Tensor):
            check_tensor(given[name], there, name)
    for path, part in module.named_modules():
        if isinstance(part, ValueNormalisation | nn.modules.batchnorm._BatchNorm):
            _check_statistics(given, f"{path}." if path else "")


def check_parameters(module: nn.Module) -> None:
    """Refuse a module with parameters that are not finite."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{name} is not finite")


def check_names(given: Mapping[str, Any], own: Mapping[str, Any], what: str) -> None:
    """Refuse a table that lacks names of another, or has more; the message shows the first ones."""
    for kind, names in (("lack", own.keys() - given.keys()), ("have unknown", given.keys() - own.keys())):
        if names:
            listed = ", ".join(sorted(map(str, names))[:3])
            raise ValueError(f"{what} do not match the model: they {kind} {listed[:300]} (of {len(names)})")


def check_tensor(given: Any, there: Tensor, name: str) -> None:
    """Refuse a tensor of another shape or dtype than the model's own, or with numbers that are not finite.

    Numbers that are not finite in a new model, such as those of a mask, may stay so. Whole numbers are counts: they may
    not be below the model's own unless those are negative.
    """
    if not isinstance(given, Tensor) or given.shape != there.shape:
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name} must have shape {tuple(there.shape)}, got {found}")
    if given.dtype != there.dtype:
        raise ValueError(f"{name} must be {there.dtype}, got {given.dtype}")
    there = there.to(given.device)
    if given.is_floating_point() or given.is_complex():
        if not bool((torch.isfinite(given) | (given == there)).all()):
            raise ValueError(f"{name} is not finite")
    elif given.dtype != torch.bool and given.numel() and not _counts(given, there):
        raise ValueError(f"{name} must be from 0 to 2**62, got {given.min()} to {given.max()}")


def _counts(given: Tensor, there: Tensor) -> bool:
    return int(given.min()) >= min(0, int(there.min())) and int(given.max()) <= 2**62


def _check_statistics(given: Mapping[str, Any], prefix: str) -> None:
    for name in ("scale", "running_var"):
        tensor = given.get(f"{prefix}{name}")
        if isinstance(tensor, Tensor) and bool((tensor < 0).any()):
            raise ValueError(f"{prefix}{name} must be at least 0, got {tensor.min()}")


def check_optimizer(given: Any, optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    """Return the state of an optimizer, ready for `load_state_dict`.

    Settings that are no numbers are the optimizer's own.

    :param given: `param_groups` and `state`, as in a state_dict
    :param optimizer: of the model that was built
    :param name: of the optimizer, for messages
    :raises ValueError: where groups, entries, shapes or dtypes differ, or numbers are not finite or negative
    """
    own = optimizer.state_dict()
    groups = given["param_groups"]
    if len(groups) != len(own["param_groups"]):
        raise ValueError(f"{name} must have {len(own['param_groups'])} groups, got {len(groups)}")
    merged = [_group(*pair, name) for pair in zip(groups, own["param_groups"], strict=True)]
    _check_state(given["state"], optimizer, name)
    return {"param_groups": merged, "state": given["state"]}


def _group(given: dict[str, Any], own: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a group with the numbers of the file, and all else of the optimizer."""
    if given.get("params") != own["params"]:
        raise ValueError(f"{name} has other parameters than the model")
    check_names(dict.fromkeys(own, 0) | given, own, f"settings of {name}")
    numbers = {key: value for key, value in given.items() if _is_number(own[key]) or isinstance(own[key], tuple)}
    for key, value in numbers.items():
        parts = value if isinstance(own[key], tuple) else (value,)
        if not isinstance(parts, tuple) or not all(map(_is_sane, parts)):
            raise ValueError(f"{name}: {key} must be finite and at least 0, got {value!r}")
        if key == "betas" and max(parts) >= 1:
            raise ValueError(f"{name}: betas must be below 1, got {value!r}")
    return {**own, **numbers}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _is_sane(value: Any) -> bool:
    return _is_number(value) and bool(0 <= float(value) < math.inf)


def _check_state(state: Mapping[int, Any], optimizer: torch.optim.Optimizer, name: str) -> None:
    """Refuse a state with other entries than a first step gives."""
    expected = _state_after_a_step(optimizer) if state else {}
    for index, entries in state.items():
        if expected is not None:
            if index not in expected:
                raise ValueError(f"{name} has a state for parameter {index}, which the model does not have")
            check_names(entries, expected[index], f"{name}: entries of parameter {index}")
        for key, value in entries.items():
            there = value if expected is None else expected[index][key]
            _check_entry(value, there, key, f"{name}: {key} of parameter {index}")


def _check_entry(value: Any, there: Any, key: str, name: str) -> None:
    if isinstance(there, Tensor):
        check_tensor(value, there, name)
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} is not finite")
    elif isinstance(there, int | float) and not _is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if key in NOT_NEGATIVE and not bool((torch.as_tensor(value) >= 0).all()):
        raise ValueError(f"{name} must be at least 0")


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, Any] | None:
    """Return the state that a copy of the optimizer has after a step; None where a step needs more than gradients."""
    groups = [
        {**group, "params": [torch.zeros_like(parameter) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_().grad = torch.zeros_like(parameter)
    try:
        copy: Any = type(optimizer)(groups)  # type: ignore[call-arg]
        copy.step()
    except (TypeError, ValueError, RuntimeError):
        return None
    return dict(copy.state_dict()["state"])
