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


@contextmanager
def modeless(module: nn.Module) -> Iterator[None]:
    """Keep all dropout and batch norm in evaluation mode in this context, whatever mode the rest is set to."""
    parts = list(_depending(module))
    before = [part.training for part in parts]
    for part in parts:
        part.train(False)
        part.train = lambda mode=True, part=part: part  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            del part.train
            part.train(training)


def depends_on_mode(module: nn.Module) -> bool:
    """Return True if dropout or batch norm make outputs in training mode differ from those in evaluation mode.

    Only torch's own modules are known; another that asks for its mode is not.
    """
    return any(True for _ in _depending(module))


def _depending(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.modules():
        if isinstance(part, _DropoutNd | _NormBase) or (
            isinstance(getattr(part, "dropout", None), float) and part.dropout
        ):
            yield part
