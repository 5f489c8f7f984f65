"""Arguments of a run as TensorBoard lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stable_baselines3.common.logger import HParam

if TYPE_CHECKING:
    from ctrl.agents.algorithm import MemoryAlgorithm


def hparams(model: MemoryAlgorithm) -> HParam:
    """Return the arguments of a model that its class names, its learning rates, its core and its size."""
    values = {name: getattr(model, name) for name in model.logged_hparams}
    values["learning_rate"] = model.lr_schedule(1)
    values["memory_learning_rate"] = model._memory_lr_schedule(1)
    values["core"] = model.policy_kwargs.get("core", "compressive")
    core_kwargs = model.policy_kwargs.get("core_kwargs") or {}
    values.update({f"core/{key}": str(value) for key, value in core_kwargs.items()})
    values["parameters"] = sum(parameter.numel() for parameter in model.policy.parameters())
    shown = {key: _shown(value) for key, value in values.items()}
    return HParam(shown, {"rollout/ep_rew_mean": 0.0, "rollout/success_rate": 0.0, "train/value_loss": 0.0})


def _shown(value: Any) -> float | str:
    """Return a value as TensorBoard can show it."""
    if value is None:
        return "default"
    return value if isinstance(value, int | float) else str(value)
