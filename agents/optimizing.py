"""Steps of the two optimizers of a policy."""

from __future__ import annotations

from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.utils.nan_checks import check_gradients
from ctrl.agents.utils.statistics import Statistics


def optimize(
    policy: MemoryPolicy, max_grad_norm: float, memory_max_grad_norm: float, statistics: Statistics, now: int
) -> None:
    """Clip and step the two optimizers separately, so that neither's gradients affect the other's clipping.

    :param now: number of the training step, for error messages
    :raises NonFiniteError: where a gradient is not finite, before any weight has changed
    """
    groups = [("train/grad_norm", policy.optimizer, max_grad_norm)]
    if policy.memory_optimizer is not None:
        groups.append(("memory/grad_norm", policy.memory_optimizer, memory_max_grad_norm))
    for name, optimizer, limit in groups:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        check_gradients(norm, policy, now)  # before clipping, which would spread a NaN
        clip_grads_with_norm_(parameters, limit, norm)
        statistics.add(name, norm)
    for _, optimizer, _ in groups:
        optimizer.step()
