"""Training and evaluation mode of policies, which dropout and batch norm tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.policies import BasePolicy
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def evaluating(policy: BasePolicy) -> Iterator[None]:
    """Set a policy to evaluation mode in this context, and back to the mode from before after it."""
    training = policy.training
    if training:
        policy.set_training_mode(False)
    try:
        yield
    finally:
        if training:
            policy.set_training_mode(True)


def depends_on_mode(module: nn.Module) -> bool:
    """Return True if dropout or batch norm make outputs in training mode differ from those in evaluation mode.

    Only torch's own modules are known; another that asks for its mode is not.
    """
    return any(
        isinstance(part, _DropoutNd | _NormBase) or bool(getattr(part, "dropout", None)) for part in module.modules()
    )
