"""The contract that every memory core keeps.

A core turns a stream of observation embeddings into a stream of features. Its state between steps is plain data.
`step` is for acting, `unroll` for learning, and both give the same results:

    core = ctrl.make_core("compressive", input_size=24)
    state = core.initial_state(batch_size=8)
    outputs, state = core.step(inputs, state, reset)    # inputs [B, I], reset [B]    -> outputs [B, O]
    unrolled = core.unroll(inputs, state, reset)        # inputs [B, T, I], reset [B, T] -> outputs [B, T, O]

Every core obeys five laws: one meaning, reset first, no leaks, state is data, gradients go where they should. The
property tests in `tests/ctrl/test_laws.py` check them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ctrl.core_config import Arguments, remembering
from ctrl.stale_steps import spoil, stale_steps

State = tuple[Tensor, ...]
StateT = TypeVar("StateT", bound=State)


class Unrolled(NamedTuple):
    """Result of `MemoryCore.unroll`."""

    outputs: Tensor
    """[B, T, O] features, one for each step."""
    state: Any
    """The core's state after step T, without a graph."""
    reconstruction_loss: Tensor
    """Scalar; its gradient reaches `compression_parameters()` only. 0 where the core has none."""
    diagnostics: dict[str, Tensor]
    """Detached scalars by name, such as `reconstruction_loss/layer0/tier1`. With `diagnose=True` attention statistics
    join them, and `reconstruction_error/…` where something was compressed."""


class Acting(ABC, Generic[StateT]):
    """The state of B acting envs, kept from step to step; made by `MemoryCore.acting`.

        acting = core.acting(core.initial_state(8))
        outputs = acting.step(inputs, reset)
        state = acting.state()

    Its steps equal the core's own `step` without a graph. They may be faster, since the state stays in place. Weights
    may change between two steps. Only writes that torch can't see, through `parameter.data` or numpy, go unnoticed:
    after those go on with `core.acting(acting.state())`.
    """

    def __init__(self, core: MemoryCore[StateT], state: StateT) -> None:
        self.core = core
        self.batch_size = len(state[0])
        core.check_state(state, self.batch_size)

    def __reduce__(self) -> Any:
        """Copy and pickle as core and state, since copied buffers would no longer share memory."""
        return _act_on, (self.core, self.state())

    def step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        """Consume one observation embedding per env.

        :param inputs: [B, I]
        :param reset: [B] bool, true where `inputs` is the first of an episode
        :return: outputs [B, O]
        :raises ValueError: where a shape, dtype or device does not fit
        """
        self.core.check_inputs(inputs, reset, (self.batch_size,))
        with torch.inference_mode():  # a sixth faster than no_grad for small batches
            outputs = self._step(inputs, reset)
        return outputs.clone()  # a tensor like any other

    @abstractmethod
    def state(self, envs: npt.NDArray[np.int64] | None = None) -> StateT:
        """Return a copy of the core's present state, of all envs or of those with the indices `envs`."""

    def cache(self) -> list[Tensor]:
        """Return copies of what acting computed from the state and keeps beside it; nothing by default.

        It could be computed anew from `state()`, but with other rounding. With it, another acting goes on bit for bit.
        """
        return [part.clone() for part in self._cached()]

    def set_cache(self, cache: Sequence[Tensor]) -> None:
        """Take over the `cache()` of an acting that was in the same state, with the same weights.

        :raises ValueError: where a shape or dtype does not fit
        """
        present = self._cached()
        found, expected = ([(part.shape, part.dtype) for part in parts] for parts in (cache, present))
        if found != expected:
            raise ValueError(f"cache must have parts {expected}, got {found}")
        with torch.inference_mode():  # what acting keeps may be inference tensors
            for part, kept in zip(cache, present, strict=True):
                kept.copy_(part)

    def _cached(self) -> list[Tensor]:
        """Return what `cache` copies."""
        return []

    @abstractmethod
    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor: ...


def _act_on(core: MemoryCore[StateT], state: StateT) -> Acting[StateT]:
    return core.acting(state)


class PlainActing(Acting[StateT]):
    """Acting with a core that has no faster way than its `step`."""

    def __init__(self, core: MemoryCore[StateT], state: StateT) -> None:
        super().__init__(core, state)
        self._state = core.make_state([leaf.detach().clone() for leaf in state])

    def state(self, envs: npt.NDArray[np.int64] | None = None) -> StateT:
        """Return the state of all envs, or of some."""
        if envs is None:
            return self.core.make_state([leaf.clone() for leaf in self._state])
        return self.core.make_state([leaf[torch.as_tensor(envs, device=leaf.device)] for leaf in self._state])

    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        outputs, self._state = self.core.step(inputs, self._state, reset)
        return outputs


class MemoryCore(nn.Module, ABC, Generic[StateT]):
    """Base class of all memory cores. B is the number of envs, T the steps of a window, I and O the feature sizes.

    A new core implements `initial_state`, `_step` and `_unroll`. Both receive checked arguments; `_step` receives a
    state that is already reset, `_unroll` resets inside the window.
    """

    constructed: Arguments
    """The arguments of the constructor."""
    made: tuple[str, Arguments] | None = None
    """The name and the arguments that `make_core` built the core from; None for a core that its class built."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Let every core remember the arguments of its constructor: `save_core` writes them beside the weights."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = remembering(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        require_positive(input_size=input_size, output_size=output_size)
        self.input_size = input_size
        self.output_size = output_size

    @abstractmethod
    def initial_state(self, batch_size: int) -> StateT:
        """Return the state before an episode's first step: a NamedTuple of tensors, batch first in every leaf."""

    @abstractmethod
    def _step(self, inputs: Tensor, state: StateT) -> tuple[Tensor, StateT]: ...

    @abstractmethod
    def _unroll(self, inputs: Tensor, state: StateT, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled: ...

    def step(self, inputs: Tensor, state: StateT, reset: Tensor) -> tuple[Tensor, StateT]:
        """Consume one observation embedding per env.

        :param inputs: [B, I]
        :param state: the state after the step before, or `initial_state(B)`
        :param reset: [B] bool, true where `inputs` is the first of an episode
        :return: outputs [B, O] and the state after the step, which carries no graph
        :raises ValueError: where a shape, dtype, device or the kind of state does not fit
        """
        self.check_inputs(inputs, reset, (inputs.shape[0],))
        self.check_state(state, inputs.shape[0])
        return self._step(inputs, self.reset_state(state, reset))

    def graph_step(self, inputs: Tensor, state: StateT, reset: Tensor) -> tuple[Tensor, StateT]:
        """Do what `step` does as a fixed graph of tensor operations, for exporters; arguments are not checked.

        A core whose `_step` looks at numbers, or at the batch size as a number, implements this in another way.
        """
        return self._step(inputs, self.reset_state(state, reset))

    def unroll(
        self, inputs: Tensor, state: StateT, reset: Tensor, *, plan: Any = None, diagnose: bool = False
    ) -> Unrolled:
        """Consume a window of T steps; equal to T calls of `step`, with gradients through the window.

        :param inputs: [B, T, I]. Where they are not finite and a reset follows in the window, the outputs up to the
            reset are NaN; nothing else is affected, nor is any gradient
        :param state: the state before the window's first step
        :param reset: [B, T] bool, true where `inputs[:, t]` is the first of an episode
        :param plan: the result of `plan(state, reset)` for these arguments, for windows that are unrolled repeatedly
        :param diagnose: also report attention statistics and reconstruction errors in `Unrolled.diagnostics`, where the
            core has them
        :raises ValueError: where a shape, dtype, device, the kind of state or the plan does not fit
        """
        self.check_inputs(inputs, reset, tuple(inputs.shape[:2]))
        self.check_state(state, inputs.shape[0])
        if plan is None:
            plan = self.plan(state, reset)
        else:
            self.check_plan(plan, reset)
        stale = stale_steps(inputs, reset)
        if stale is None:
            return self._unroll(inputs, state, reset, plan, diagnose)
        inputs = torch.where(stale[:, :, None], 0, inputs)
        unrolled = self._unroll(inputs, state, reset, plan, diagnose)
        return unrolled._replace(outputs=spoil(unrolled.outputs, stale, reset))

    def plan(self, state: StateT, reset: Tensor) -> Any:
        """Compute the part of an unroll that depends on neither inputs nor weights; plan again after `adapt`.

        :param state: the state before the first step of the windows
        :param reset: [B, T] as for `unroll`
        :return: tensors, batch first, in dicts, lists and NamedTuples; by default an empty tuple
        """
        return ()

    def check_plan(self, plan: Any, reset: Tensor) -> None:
        """Raise a ValueError unless `plan` was made by this core for windows with exactly these resets."""

    def acting(self, state: StateT) -> Acting[StateT]:
        """Return an `Acting`, which keeps the state in place while B envs act.

        :param state: the state after the step before, or `initial_state(B)`; it is copied, not changed
        :raises ValueError: where it does not fit the core
        """
        return PlainActing(self, state)

    def reset_state(self, state: StateT, reset: Tensor) -> StateT:
        """Replace the state by the initial one where `reset` [B] is true; by selection, so a NaN there is harmless."""
        initial = self.initial_state(reset.shape[0])
        leaves = (
            torch.where(reset.view(-1, *[1] * (old.dim() - 1)), new, old)
            for new, old in zip(initial, state, strict=True)
        )
        return self.make_state(leaves)

    def make_state(self, leaves: Any) -> StateT:
        """Build this core's state from its leaves, such as tensors that were stored separately."""
        return cast(StateT, self._state_layout[0](*leaves))

    def remembered(self, state: StateT) -> tuple[Tensor, ...]:
        """Return the leaves that hold memory content; by default all of floating-point dtype."""
        return tuple(leaf for leaf in state if leaf.is_floating_point())

    def adapt(self, diagnostics: Mapping[str, float]) -> dict[str, float]:
        """Let the core adjust the settings that it chooses itself, between two rollouts; by default none.

        Plans that were made before no longer fit afterwards.

        :param diagnostics: of an update's unrolls: the maximum of names that begin with `longest_`, the mean of others;
            the mean is over the unrolls that report the name, for some names only those with `diagnose=True`
        :return: the core's choices by name, to be logged
        """
        return {}

    def structure(self) -> Any:
        """Return what gives the weights their meaning, beside their shapes; by default the constructor's arguments.

        Weights fit another core of the same class if this is equal.
        """
        return self.constructed

    def check_settings(self) -> None:
        """Raise a ValueError where a setting that `adapt` changes has no meaning, such as one from a file."""

    def compression_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the reconstruction loss trains; empty for cores that compress nothing."""
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
    def state_fields(self) -> tuple[str, ...]:
        """The names of the state's leaves."""
        return tuple(name for name, _, _ in self._state_layout[1])

    @property
    def device(self) -> torch.device:
        """The device of the core's parameters; the CPU if it has none."""
        return self._kind()[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the core's parameters; float32 if it has none."""
        return self._kind()[0]

    def _kind(self) -> tuple[torch.dtype, torch.device]:
        first = self._first_parameter
        if first is None:
            return torch.float32, torch.device("cpu")
        owner, name = first
        parameter = getattr(owner, name)
        return parameter.dtype, parameter.device

    @cached_property
    def _first_parameter(self) -> tuple[nn.Module, str] | None:
        """Owner and name of the first parameter, cached since each step needs them. The tensor may be replaced."""
        return next(
            (
                (owner, name)
                for owner in self.modules()
                for name, parameter in owner._parameters.items()
                if parameter is not None
            ),
            None,
        )

    @cached_property
    def _state_layout(self) -> tuple[type, list[tuple[str, torch.Size, bool]]]:
        """The state's class, and each leaf's name, shape without the batch, and True if it has the core's dtype."""
        state: Any = self.initial_state(1)
        leaves = zip(state._fields, state, strict=True)
        return type(state), [(name, leaf.shape[1:], leaf.is_floating_point()) for name, leaf in leaves]

    def check_inputs(self, inputs: Tensor, reset: Tensor, leading: tuple[int, ...]) -> None:
        """Raise a ValueError unless `inputs` [*leading, I] and `reset` [*leading] fit in shape, dtype and device."""
        expected = (*leading, self.input_size)
        axes = "[B, I]" if len(leading) == 1 else "[B, T, I]"
        dtype, device = self._kind()
        if tuple(inputs.shape) != expected or 0 in leading:
            raise ValueError(
                f"inputs must be {axes} with I = {self.input_size} and no empty axis, got {tuple(inputs.shape)}"
            )
        if inputs.dtype != dtype:
            raise ValueError(f"inputs must be {dtype} as the core's parameters, got {inputs.dtype}")
        if reset.dtype != torch.bool or tuple(reset.shape) != leading:
            raise ValueError(f"reset must be bool of shape {leading}, got {reset.dtype} of {tuple(reset.shape)}")
        for name, tensor in (("inputs", inputs), ("reset", reset)):
            if tensor.device != device:
                raise ValueError(f"{name} must be on {device} as the core's parameters, got {tensor.device}")

    def check_state(self, state: StateT, batch_size: int) -> None:
        """Raise a ValueError unless `state` is this core's, for `batch_size` envs."""
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


def require_not_negative(**amounts: Any) -> None:
    """Raise a ValueError that names the first of `amounts` that is not a finite number of at least 0."""
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, Real) or not 0 <= float(amount) < math.inf:
            raise ValueError(f"{name} must be a finite number, at least 0, got {amount!r}")


def register(kind: str, name: str, factory: Callable[..., Any], registry: dict[str, Any]) -> None:
    """Enter a factory of some kind under a new name.

    :raises ValueError: if the name is taken or not a string, or the factory cannot be called
    """
    if not isinstance(name, str) or not callable(factory):
        raise ValueError(f"name must be a text and factory a class or function, got {name!r} and {factory!r}")
    if name in registry:
        raise ValueError(f"{kind} {name!r} is already registered")
    registry[name] = factory


def choose(kind: str, name: str, choices: dict[str, Any]) -> Any:
    """Look `name` up among `choices`; a ValueError lists the valid ones."""
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"unknown {kind} {name!r}; valid are {', '.join(map(repr, sorted(choices)))}")
    return choices[name]
