"""The contract that every memory core keeps.

A core turns a stream of observation embeddings into a stream of features, with a state between steps that is
plain data. `step` is for acting, `unroll` for learning, and both mean the same:

    core = ctrl.make_core("compressive", input_size=24)
    state = core.initial_state(batch_size=8)
    outputs, state = core.step(inputs, state, reset)    # inputs [B, I], reset [B]    -> outputs [B, O]
    unrolled = core.unroll(inputs, state, reset)        # inputs [B, T, I], reset [B, T] -> outputs [B, T, O]

The five laws that a core obeys (one meaning, reset first, no leaks, state is data, gradients go where they should)
are the property tests in `tests/ctrl/test_laws.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
StateT = TypeVar("StateT", bound=State)


class Unrolled(NamedTuple):
    """What `MemoryCore.unroll` returns."""

    outputs: Tensor
    """[B, T, O] features, one for each step."""
    state: Any
    """The core's state after step T, without a graph."""
    reconstruction_loss: Tensor
    """Scalar; its gradient reaches `compression_parameters()` only. 0 where the core has none."""
    diagnostics: dict[str, Tensor]
    """Detached scalars by name, such as `reconstruction_loss/layer0/tier1`. Attention statistics join on request."""


class MemoryCore(nn.Module, ABC, Generic[StateT]):
    """Base of all memory cores. B is the batch (one row an env), T the window's steps, I and O the feature sizes.

    A new core implements `initial_state`, `_step` and `_unroll`. Both receive checked arguments; `_step` receives a
    state that is already reset, `_unroll` resets inside the window.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        require_positive(input_size=input_size, output_size=output_size)
        self.input_size = input_size
        self.output_size = output_size

    @abstractmethod
    def initial_state(self, batch_size: int) -> StateT:
        """Return the state before the first step of an episode: a NamedTuple of tensors, batch first in every leaf."""

    @abstractmethod
    def _step(self, inputs: Tensor, state: StateT) -> tuple[Tensor, StateT]: ...

    @abstractmethod
    def _unroll(self, inputs: Tensor, state: StateT, reset: Tensor, diagnose: bool) -> Unrolled: ...

    def step(self, inputs: Tensor, state: StateT, reset: Tensor) -> tuple[Tensor, StateT]:
        """Consume one observation embedding per env.

        :param inputs: [B, I]
        :param state: the state after the step before, or `initial_state(B)`
        :param reset: [B] bool, true where `inputs` is the first of an episode
        :return: outputs [B, O] and the state after the step, which carries no graph
        :raises ValueError: where a shape, dtype, device or the kind of state does not fit
        """
        self._check(inputs, state, reset, (inputs.shape[0],))
        return self._step(inputs, self.reset_state(state, reset))

    def unroll(self, inputs: Tensor, state: StateT, reset: Tensor, *, diagnose: bool = False) -> Unrolled:
        """Consume a window of T steps; equal to T calls of `step`, with gradients through the window.

        :param inputs: [B, T, I]
        :param state: the state before the window's first step
        :param reset: [B, T] bool, true where `inputs[:, t]` is the first of an episode
        :param diagnose: also report attention statistics in `Unrolled.diagnostics`, where the core has attention
        :raises ValueError: where a shape, dtype, device or the kind of state does not fit
        """
        self._check(inputs, state, reset, tuple(inputs.shape[:2]))
        return self._unroll(inputs, state, reset, diagnose)

    def reset_state(self, state: StateT, reset: Tensor) -> StateT:
        """Put the initial state where `reset` [B] is true, by selection, so that even a NaN there is harmless."""
        initial = self.initial_state(reset.shape[0])
        leaves = (
            torch.where(reset.view(-1, *[1] * (old.dim() - 1)), new, old)
            for new, old in zip(initial, state, strict=True)
        )
        return self.make_state(leaves)

    def make_state(self, leaves: Any) -> StateT:
        """Build this core's state from its leaves, such as tensors that were stored apart."""
        return cast(StateT, self._state_layout[0](*leaves))

    def compression_parameters(self) -> list[nn.Parameter]:
        """Return what only the reconstruction loss trains; empty for cores that compress nothing."""
        return []

    def main_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is not one of `compression_parameters()`."""
        compression = {id(parameter) for parameter in self.compression_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in compression]

    @property
    def state_bytes(self) -> int:
        """Bytes of state per env; they do not depend on the episode's length."""
        return sum(leaf.nbytes for leaf in self.initial_state(1))

    @property
    def device(self) -> torch.device:
        """Where the core's parameters live; the CPU if it has none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the core's parameters; float32 if it has none."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    @cached_property
    def _state_layout(self) -> tuple[type, list[tuple[str, torch.Size, bool]]]:
        """The state's class, and each leaf's name, shape without the batch, and whether it has the core's dtype."""
        state: Any = self.initial_state(1)
        leaves = zip(state._fields, state, strict=True)
        return type(state), [(name, leaf.shape[1:], leaf.is_floating_point()) for name, leaf in leaves]

    def _check(self, inputs: Tensor, state: StateT, reset: Tensor, leading: tuple[int, ...]) -> None:
        expected = (*leading, self.input_size)
        axes = "[B, I]" if len(leading) == 1 else "[B, T, I]"
        if tuple(inputs.shape) != expected or 0 in leading:
            raise ValueError(
                f"inputs must be {axes} with I = {self.input_size} and no empty axis, got {tuple(inputs.shape)}"
            )
        if inputs.dtype != self.dtype:
            raise ValueError(f"inputs must be {self.dtype} as the core's parameters, got {inputs.dtype}")
        if reset.dtype != torch.bool or tuple(reset.shape) != leading:
            raise ValueError(f"reset must be bool of shape {leading}, got {reset.dtype} of {tuple(reset.shape)}")
        for name, tensor in (("inputs", inputs), ("reset", reset)):
            if tensor.device != self.device:
                raise ValueError(f"{name} must be on {self.device} as the core's parameters, got {tensor.device}")
        self._check_state(state, leading[0])

    def _check_state(self, state: StateT, batch_size: int) -> None:
        state_class, layout = self._state_layout
        if type(state) is not state_class:
            raise ValueError(
                f"state must be the {state_class.__name__} of {type(self).__name__}, got {type(state).__name__}"
            )
        for (name, shape, floating), leaf in zip(layout, state, strict=True):
            if tuple(leaf.shape) != (batch_size, *shape):
                raise ValueError(f"state.{name} must be {(batch_size, *shape)}, got {tuple(leaf.shape)}")
            dtype = self.dtype if floating else torch.int64
            if leaf.dtype != dtype:
                raise ValueError(f"state.{name} must be {dtype}, got {leaf.dtype}")
            if leaf.device != self.device:
                raise ValueError(f"state.{name} must be on {self.device} as the core's parameters, got {leaf.device}")


def require_positive(**sizes: int) -> None:
    """Raise a ValueError that names the first of `sizes` that is not a positive whole number."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def choose(kind: str, name: str, choices: dict[str, Any]) -> Any:
    """Look `name` up among `choices`; a ValueError lists the valid ones."""
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}; valid are {', '.join(map(repr, sorted(choices)))}")
    return choices[name]
