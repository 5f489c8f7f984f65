"""Statistics of an update: what its minibatches report, and how far it moved the memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Statistics:
    """Numbers that the minibatches of an update report, by name."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Keep a scalar of one minibatch, without its graph."""
        self.values.setdefault(name, []).append(value.detach())

    def summary(self) -> dict[str, float]:
        """Return the mean over the minibatches by name; for names with `/longest_`, the maximum."""
        joined = {name: torch.stack(values) for name, values in self.values.items()}
        return {name: (each.max() if "/longest_" in name else each.mean()).item() for name, each in joined.items()}


def drift(before: tuple[Tensor, ...], then: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> float | None:
    """Return ||now - then|| / ||then|| over the entries that differ between `before` and `then`.

    :param before: leaves of a state; those of whole numbers, such as clocks, do not count
    :param then: leaves of the state after some steps
    :param now: leaves of the state after the same steps with other weights
    :return: 0 where nothing differs, None where the states have no entries that count
    """
    numbers = [[leaf.flatten() for leaf in state if leaf.is_floating_point()] for state in (before, then, now)]
    if not any(leaf.numel() for leaf in numbers[0]):
        return None
    first, old, new = (torch.cat(leaves) for leaves in numbers)
    written = old != first
    size = old[written].norm().clamp_min(torch.finfo(old.dtype).tiny)
    return float((new - old)[written].norm() / size)
