"""Trial of a core: copies of it, and the streams that they are run over."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctrl.checks.laws.stream import Core, Differs, Stream, Walked, first_difference
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.tiers import reach
from ctrl.core import MemoryCore, require_positive

SHORT = 10
"""Steps of windows that are run many times."""
CHUNK = 512
"""Steps that are unrolled at once while envs only grow older."""
LONGEST = 1024
"""Steps of the longest window that is checked as a whole."""
SMALL_STATE, LARGE_STATE = 9_000, 2**17
"""Bytes of state per env above which windows (the first) and histories (the second) are shorter, so that a check stays
quick. The default core has just under the first."""


def shake(module: nn.Module, noise: float, generator: torch.Generator) -> None:
    """Move all parameters away from zeros and identities, which hide mistakes, by `noise` times their spread.

    Where the spread is 0, it counts as 1, and for a square map as Xavier's, since a larger one would stretch features
    with the map's width.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            if not spread and parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1]:
                spread = parameter.shape[0] ** -0.5
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            parameter.add_(noise * (spread or 1.0) * drawn)


class Trial:
    """Trial of a core. The core itself is never run: each law gets a copy that no other has touched.

    :param core: the core
    :param batch_size: B, at least 2
    :param length: T, steps of the windows, at least 8; None for 40, and fewer where the state is not small
    :param history: steps that the oldest env has lived before a window; None for a compressive core's reach and some
        more, 64 for other cores, and a limit where that would take long
    :param noise: how far the copies' parameters are moved, see `shake`
    :param tolerance: the largest difference of results that must be the same but for rounding, see `first_difference`
    :raises ValueError: where an argument does not fit
    """

    def __init__(
        self,
        core: Core,
        *,
        batch_size: int = 3,
        length: int | None = None,
        history: int | None = None,
        noise: float = 0.2,
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> None:
        if not isinstance(core, MemoryCore):
            raise ValueError(f"core must be a MemoryCore, got {type(core).__name__}")
        given = {"length": length, "history": history}
        require_positive(batch_size=batch_size, **{name: value for name, value in given.items() if value is not None})
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, or no env could leak into another, got {batch_size}")
        if length is not None and length < 8:
            raise ValueError(f"length must be at least 8, got {length}")
        for name, value in (("noise", noise), ("tolerance", tolerance)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
        self.given, self.batch_size, self.tolerance, self.noise, self.seed = core, batch_size, tolerance, noise, seed
        self._length, self._history = length, history
        self.draw_anew()

    def draw_anew(self) -> None:
        """Restart `randn` from the seed, so that a law's random numbers do not depend on the laws before it."""
        self._generator = torch.Generator().manual_seed(self.seed)

    @cached_property
    def pristine(self) -> Core:
        """A copy that is never run."""
        core = copy.deepcopy(self.given)
        shake(core, self.noise, torch.Generator().manual_seed(self.seed))
        return core

    def fresh(self) -> Core:
        """Return a copy that has not been run yet."""
        return copy.deepcopy(self.pristine)

    def _thrift(self, size: int) -> float:
        """Return the factor, at most 1, by which steps are fewer for a state of more than `size` bytes per env."""
        return min(1.0, size / max(1, self.pristine.state_bytes))

    @property
    def length(self) -> int:
        """T, the steps of the windows."""
        return self._length or max(8, int(40 * self._thrift(SMALL_STATE) ** 0.5))

    @property
    def history(self) -> int:
        """Steps that the oldest env has lived before a window."""
        return self._history or min(max(64, self.wanted_history), max(256, int(4096 * self._thrift(LARGE_STATE))))

    @property
    def wanted_history(self) -> int:
        """Steps after which a compressive core has dropped something from each of its tiers; 0 for other cores."""
        if isinstance(self.pristine, CompressiveCore):
            return max(map(reach, self.pristine.tiers)) + 8
        return 0

    @property
    def reaches_all(self) -> bool:
        """True if the oldest env has lived for `wanted_history` steps."""
        return self.history >= self.wanted_history

    @cached_property
    def in_double(self) -> Trial | None:
        """The same trial in float64, where rounding hardly matters; None if that is not possible or already so.

        It draws the same inputs and weights.
        """
        if self.given.dtype == torch.float64:
            return None
        try:
            core = copy.deepcopy(self.given).double()
        except (TypeError, RuntimeError):  # a device, or a core from elsewhere, may not support float64
            return None
        if core.dtype != torch.float64:
            return None
        return Trial(
            core,
            batch_size=self.batch_size,
            length=self.length,
            history=self.history,
            noise=self.noise,
            tolerance=self.tolerance,
            seed=self.seed,
        )

    @property
    def whole(self) -> Stream:
        """The stream from the initial state over the history to the end of `old`."""
        return self._whole.copy()

    @property
    def young(self) -> Stream:
        """A window from the initial state."""
        return self._young.copy()

    @property
    def old(self) -> Stream:
        """A window that begins in the middle of episodes of different ages."""
        return self._old.copy()

    @property
    def short(self) -> Stream:
        """The beginning of `old`, with resets of its own."""
        length = min(SHORT, self.length)
        stream = self.old.part(0, length, self.old.state)
        return replace(stream, reset=self._resets(length).to(stream.reset.device))

    @cached_property
    def _whole(self) -> Stream:
        early = torch.zeros(self.batch_size, self.history, dtype=torch.bool)
        for env in range(1, self.batch_size):
            early[env, min(self.history * env // self.batch_size + env % 3, self.history - 1)] = (
                True  # ages of all sizes and phases
            )
        reset = torch.cat([early, self._resets(self.length)], dim=1)
        return self._stream(reset, self.pristine.initial_state(self.batch_size), "from the initial state", 1)

    @cached_property
    def _young(self) -> Stream:
        state = self.pristine.initial_state(self.batch_size)
        return self._stream(self._resets(self.length), state, "from the initial state", 2)

    @cached_property
    def _old(self) -> Stream:
        core, whole = self.fresh(), self.whole
        state = whole.state
        with torch.no_grad():
            for first in range(0, self.history, CHUNK):
                part = whole.part(first, min(first + CHUNK, self.history), state)
                state = core.unroll(part.inputs, state, part.reset).state
        name = f"from a state of up to {self.history} steps"
        return replace(whole.part(self.history, whole.length, state), name=name)

    def _resets(self, length: int) -> Tensor:
        """Return resets [B, T]: none in env 0, two in a row in env 1, the first and a late step in env 2, and so on."""
        reset = torch.zeros(self.batch_size, length, dtype=torch.bool)
        for env in range(self.batch_size):
            places = ([], [length // 4, length // 4 + 1], [0, 3 * length // 4 - 1])[env % 3]
            reset[env, [(place + env // 3) % length for place in places]] = True
        return reset

    def _stream(self, reset: Tensor, state: Any, name: str, number: int) -> Stream:
        """Draw inputs for given resets; `number` makes them differ from those of other streams."""
        core, generator = self.pristine, torch.Generator().manual_seed(self.seed + number)
        return Stream(self._drawn((*reset.shape, core.input_size), generator), reset.to(core.device), state, name)

    def randn(self, *shape: int) -> Tensor:
        """Draw normally distributed numbers."""
        return self._drawn(shape, self._generator)

    def _drawn(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).to(self.pristine.device, self.pristine.dtype)

    @property
    def huge(self) -> float:
        """A number so large that products of two overflow."""
        return cast(float, torch.finfo(self.pristine.dtype).max ** 0.78)

    def compare(self, one: tuple[str, Walked], other: tuple[str, Walked], stream: Stream) -> None:
        """Raise a `Breach` unless outputs and states are the same but for rounding; each result comes with its name."""
        names = f"{one[0]} and {other[0]}"
        self.same_outputs(names, one[1].outputs, other[1].outputs, stream)
        self.same_state(f"{names}, {stream.length} steps {stream.name}", one[1].state, other[1].state)

    def same_outputs(
        self,
        names: str,
        one: Tensor,
        other: Tensor,
        stream: Stream,
        *,
        where: Tensor | None = None,
        offset: int = 0,
    ) -> None:
        """Raise `Differs`, with the env and step at which two outputs [B, T, O] first differ.

        The comparison has a tolerance, since matrix products round differently from one place in memory to another. A
        leak shows by its size.

        :param where: [B, T] bool, true where outputs must be the same but for rounding; everywhere if None
        :param offset: the stream's step at which the outputs begin
        """
        found = first_difference(one, other, self.tolerance, where)
        if found is not None:
            env, step, feature = found.place
            step += offset
            raise Differs(
                f"{names} differ at env {env}, step {step} of {stream.length} {stream.name}: {found.one:.6g} and "
                f"{found.other:.6g} in feature {feature} ({stream.resets_of(env)})",
                found.size / self.tolerance,
                env,
                step,
            )

    def same_state(self, names: str, one: Any, other: Any, step: int | None = None) -> None:
        """Raise `Differs`, with the leaf and env in which two states differ."""
        for field, left, right in zip(one._fields, one, other, strict=True):
            found = first_difference(left, right, self.tolerance)
            if found is not None:
                env = found.place[0]
                raise Differs(
                    f"{names}: state.{field} of env {env} differs: {found.one:.6g} and {found.other:.6g} "
                    f"at {list(found.place[1:])}",
                    found.size / self.tolerance,
                    env,
                    step,
                )
