"""Streams of inputs and resets, the ways to run a core over them, and the comparison of two results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrl.checks.result import Breach
from ctrl.core import MemoryCore

Core = MemoryCore[Any]

STEPPING = ("step", "step with a graph", "acting")
"""The ways to run a core step by step."""
WAYS = ("unroll", *STEPPING)


class Differs(Breach):
    """Two results that must be the same but for rounding differ by more than the tolerance.

    :param times: the largest difference as a multiple of the tolerance; NaN where one result is NaN
    """

    def __init__(self, detail: str, times: float, env: int | None = None, step: int | None = None) -> None:
        super().__init__(detail, env, step)
        self.times = times


class Difference(NamedTuple):
    """The first place at which two tensors differ."""

    place: tuple[int, ...]
    one: float
    other: float
    size: float
    """The largest of all differences, relative to 1 + size; NaN where one number is NaN."""


def first_difference(one: Tensor, other: Tensor, tolerance: float, where: Tensor | None = None) -> Difference | None:
    """Find where tensors [B, T, ...] differ by more than `tolerance * (1 + size)`, by step, then env; NaN always does.

    :param where: [B, T] bool, true where to compare; everywhere if None
    :raises Breach: where their shapes differ
    """
    if one.shape != other.shape:
        raise Breach(f"shapes {tuple(one.shape)} and {tuple(other.shape)} differ")
    one, other = one.detach(), other.detach()
    same = one == other
    if one.is_floating_point():
        same |= (one - other).abs() <= tolerance * (1 + other.abs())
    if where is not None:
        same |= ~where.view(*where.shape, *[1] * (one.dim() - 2))
    places = (~same).nonzero()
    if not len(places):
        return None
    steps = places[:, min(1, places.shape[1] - 1)]
    index = tuple(places[int(steps.argmin())].tolist())
    apart = (one.double() - other.double()).abs() / (1 + other.double().abs())
    return Difference(index, float(one[index]), float(other[index]), float(apart[~same].max()))


@dataclass(frozen=True)
class Stream:
    """Inputs and resets of B envs for T steps, and the state before them."""

    inputs: Tensor
    """[B, T, I] observation embeddings."""
    reset: Tensor
    """[B, T] bool, true at the first step of an episode."""
    state: Any
    """The core's state before the first step."""
    name: str
    """Name of the stream for messages, such as "from the initial state"."""

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return self.reset.shape[1]

    def copy(self) -> Stream:
        """Return a copy in memory of its own, so that in-place changes by a core reach nothing else."""
        return replace(self, inputs=self.inputs.clone(), reset=self.reset.clone(), state=cloned(self.state))

    def part(self, first: int, last: int, state: Any) -> Stream:
        """Return the steps from `first` up to, not including, `last`, which begin with `state`."""
        return replace(self, inputs=self.inputs[:, first:last], reset=self.reset[:, first:last], state=state)

    def rows(self, envs: Sequence[int]) -> Stream:
        """Return some envs, in the order given."""
        index = torch.tensor(envs, device=self.inputs.device)
        state = type(self.state)(*(leaf[index] for leaf in self.state))
        return replace(self, inputs=self.inputs[index], reset=self.reset[index], state=state)

    def resets_of(self, env: int) -> str:
        """Describe the steps at which an env resets."""
        steps = self.reset[env].nonzero()[:, 0].tolist()
        return f"env {env} resets at {', '.join(map(str, steps))}" if steps else f"env {env} does not reset"


class Walked(NamedTuple):
    """Result of running a core over a stream."""

    outputs: Tensor
    """[B, T, O] features."""
    state: Any
    """The state after the last step."""


def steps(core: Core, stream: Stream, way: str) -> Iterator[tuple[Tensor, Callable[[], Any]]]:
    """Run a core in one of the ways `STEPPING`; yield each step's outputs and a function that returns its state."""
    state = stream.state
    acting = core.acting(state) if way == "acting" else None
    for t in range(stream.length):
        inputs, reset = stream.inputs[:, t], stream.reset[:, t]
        if acting is not None:
            yield acting.step(inputs, reset), acting.state
            continue
        with torch.set_grad_enabled(way == "step with a graph"):
            outputs, state = core.step(inputs, state, reset)
        yield outputs, partial(_same, state)


def _same(state: Any) -> Any:
    return state


def walk(core: Core, stream: Stream, way: str) -> Walked:
    """Run a core over a stream in one of `WAYS`."""
    if way == "unroll":
        unrolled = core.unroll(stream.inputs, stream.state, stream.reset)
        return Walked(unrolled.outputs, unrolled.state)
    outputs, states = zip(*steps(core, stream, way), strict=True)
    return Walked(torch.stack(outputs, dim=1), states[-1]())


def cloned(state: Any) -> Any:
    """Copy a state."""
    return type(state)(*(leaf.clone() for leaf in state))


def equal(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors are bit-equal; NaN is equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
