"""Acting with the compressive core: a KV cache, rings of slots with their keys and values, written in place.

An unroll projects all slots in each window. Here each slot's keys and values are projected once, when it is formed, and
again only when the weights have changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ctrl.compressive.attention.clock import time_keys
from ctrl.compressive.cache_schedule import Moves
from ctrl.compressive.layer_step import LayerSlots, MemoryInPlace
from ctrl.core import Acting

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveCore, CompressiveState


class _OptimizerSteps:
    """Number of steps that all optimizers have taken. Fused ones write to weights without raising their versions."""

    taken = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_OptimizerSteps.count)


class LayerCache(LayerSlots):
    """The slots of one layer in B envs, with their keys and values."""

    KEEPS_BIASES = True

    def refresh(self) -> None:
        """Fetch the present weights, and project all slots with them."""
        super().refresh()
        self._novelty, _ = self._project_all()  # [B S] of all slots
        self._flat_keys_values = self._keys_values.view(-1, self._shape[2])  # [2 B H S, d]
        self._flat_time_keys = None if self._clock is None else self._time_keys.flatten(0, 1)  # [B S, TIME_KEYS]

    def cached(self) -> list[Tensor]:
        """Return the keys and values, the novelty and the keys by time of all slots, as far as there are any."""
        return [part for part in (self._keys_values, self._novelty, self._flat_time_keys) if part is not None]

    def _novelty_of(self, blocks: Tensor, source: Tensor) -> Tensor | None:
        return None if self._novelty is None else self._novelty.index_select(0, source).view(blocks.shape[:2])

    def _project_slots(self, normed: Tensor, carried: Tensor, moves: Moves) -> Tensor | None:
        """Project the slots that the step has written; see `LayerSlots`."""
        novelty = self._attention.novelty_of(normed)  # [K + B]
        if novelty is not None and self._novelty is not None:
            self._novelty.index_copy_(0, moves.target, novelty)
        keys_values = self._project(normed, novelty).view(-1, self._shape[2])  # [2 (K + B) H, d]
        self._flat_keys_values.index_copy_(0, moves.head_target, keys_values)
        times = self._times(moves.centres, carried)  # [K + B, CLOCK_FEATURES]
        if times is None or self._flat_time_keys is None:
            return None
        self._flat_time_keys.index_copy_(0, moves.target, time_keys(times))
        return times[-self._shape[0] :]


class CompressiveActing(Acting["CompressiveState"]):
    """A compressive core that `acts_in_place`, acting in B envs; see `MemoryCore.acting`."""

    core: CompressiveCore

    def __init__(self, core: CompressiveCore, state: CompressiveState) -> None:
        super().__init__(core, state)
        self._places: list[tuple[Any, str]] = [
            (kept, name)
            for part in (core.layers, core.clock)
            if part is not None
            for owner in part.modules()
            for kept in (owner._parameters, owner._buffers)
            for name, tensor in cast("dict[str, Tensor | None]", kept).items()
            if tensor is not None
        ]
        self._watch(self._weights())
        self._memory = MemoryInPlace(core, state, LayerCache)

    def state(self, envs: npt.NDArray[np.int64] | None = None) -> CompressiveState:
        """Return a copy of the state, of all envs or some."""
        return self._memory.state(envs)

    def _cached(self) -> list[Tensor]:
        with torch.no_grad():
            self._follow_weights()
        return [part for layer in self._memory.layers for part in cast(LayerCache, layer).cached()]

    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        self._follow_weights()
        if len(restarted := np.flatnonzero(reset.cpu().numpy())):
            self._memory.forget(restarted)
        return self._memory.step(inputs)

    def _follow_weights(self) -> None:
        weights = self._weights()
        if _versions(weights) != self._versions:
            self._watch(weights)
            self._memory.refresh()

    def _weights(self) -> list[Tensor]:
        """Return parameters and buffers of the layers and the clock as they are now; any may have been replaced."""
        return [parameters[name] for parameters, name in self._places]

    def _watch(self, weights: list[Tensor]) -> None:
        self._versions = _versions(weights)
        self._storages = [weight.untyped_storage() for weight in weights]  # kept, or another may get its address


def _versions(weights: list[Tensor]) -> tuple[int, list[tuple[int, int]]]:
    """Return a fingerprint that differs when a parameter was written to or replaced."""
    return _OptimizerSteps.taken, [(weight.data_ptr(), weight._version) for weight in weights]
