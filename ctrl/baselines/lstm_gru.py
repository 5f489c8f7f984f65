"""LSTM and GRU cores: the memories that most recurrent agents use, and the baselines to beat.

Both are torch's own fused modules behind the contract. Two things decide how good a baseline they are:

- *Chrono initialisation* (Tallec & Ollivier 2018, arXiv 1804.11188) spreads the gates' time constants over the horizon
  that an agent has to remember. With torch's default the gates forget within a few steps.
- *Resets inside a window* must not split it, or early training, with its short episodes, runs step by step. Instead an
  extra step goes before each reset and shuts the gates, so that the memory is exactly 0 after it (`ResetPadding`). So a
  window is one fused call per layer, longer by the resets of the env with the most of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ctrl.core import Acting, MemoryCore, PlainActing, StateT, Unrolled, require_positive


class LSTMState(NamedTuple):
    """State of `LSTMCore`."""

    hidden: Tensor
    """[B, layers, width] each layer's last output."""
    cell: Tensor
    """[B, layers, width] each layer's memory cell."""


class GRUState(NamedTuple):
    """State of `GRUCore`."""

    hidden: Tensor
    """[B, layers, width] each layer's last output, which is also its memory."""


torch.serialization.add_safe_globals([LSTMState, GRUState])  # so that `torch.load` takes a saved state


def shut(dtype: torch.dtype) -> float:
    """Return an input x that opens a gate, and −x shuts it: σ(x) is exactly 1 and σ(−x) exactly 0.

    A quarter of the largest number leaves room for what outputs add to it whose size is at most `largest`.
    """
    return torch.finfo(dtype).max / 4


def largest(dtype: torch.dtype) -> float:
    """Return the size up to which a layer's stored outputs count; those that a core writes lie between -1 and 1."""
    return math.sqrt(torch.finfo(dtype).max)


class ResetPadding(NamedTuple):
    """A window of T steps with an extra step before each reset that empties the memory.

    Envs reset at different times, so all are filled up to the same length M with steps that hold the memory.
    """

    at: Tensor
    """[B T] the place of each of the window's steps, numbered through all envs."""
    flags: Tensor
    """[B, M, 2] the first is 1 where a step empties the memory, the second where a step holds it."""

    @classmethod
    def before(cls, reset: Tensor) -> ResetPadding | None:
        """Build the padding for resets [B, T], except at the window's first step; None if there are no others."""
        inside = reset.clone()
        inside[:, 0] = False
        added = inside.cumsum(dim=1)
        most = int(added[:, -1].max())
        if not most:
            return None
        length = reset.shape[1]
        at = torch.arange(length, device=reset.device) + added
        flags = torch.zeros(len(reset), length + most, 2, device=reset.device)
        env, step = inside.nonzero(as_tuple=True)
        flags[env, at[env, step] - 1, 0] = 1
        flags[:, :, 1] = torch.arange(length + most, device=reset.device) > at[:, -1:]
        first = torch.arange(len(reset), device=reset.device)[:, None] * (length + most)
        return cls((first + at).flatten(), flags)

    def widen(self, inputs: Tensor) -> Tensor:
        """Insert the extra steps and append the flags: [B, T, I] -> [B, M, I + 2]."""
        batch, length, _ = self.flags.shape
        spread = inputs.new_zeros(batch * length, inputs.shape[2]).index_copy(0, self.at, inputs.flatten(0, 1))
        return torch.cat([spread.view(batch, length, -1), self.flags.to(inputs.dtype)], dim=2)

    def narrow(self, outputs: Tensor) -> Tensor:
        """Take the extra steps out again: [B, M, O] -> [B, T, O]."""
        # `index_select` of whole rows: `gather` takes 3 to 6 times as long, forward and backward.
        return outputs.flatten(0, 1).index_select(0, self.at).view(len(outputs), -1, outputs.shape[2])


class RecurrentCore(MemoryCore[StateT]):
    """Base class of `LSTMCore` and `GRUCore`; state leaves are [B, layers, width], the output first.

    :param input_size: I, goes straight into the first layer
    :param width: units per layer, and the output size
    :param layers: stacked layers
    :param chrono_horizon: the longest span in steps that the agent should remember. Unit by unit, time constants are
        drawn uniformly between 2 and this. None keeps torch's default initialisation.
    :raises ValueError: where a size is not a positive whole number, or the horizon is below 2
    """

    _rnn_class: ClassVar[type[nn.LSTM] | type[nn.GRU]]

    def __init__(self, input_size: int, *, width: int = 128, layers: int = 1, chrono_horizon: int | None = 128) -> None:
        require_positive(width=width, layers=layers)
        super().__init__(input_size, output_size=width)
        self.width = width
        self.layers = layers
        self.rnn = self._rnn_class(input_size, width, layers, batch_first=True)
        if chrono_horizon is not None:
            self._initialise_chrono(chrono_horizon)

    def structure(self) -> tuple[()]:
        """Return nothing: the shapes of the weights tell all."""
        return ()

    @abstractmethod
    def _fused(self, inputs: Tensor, leaves: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run torch's fused function for one layer over [B, T, I]; leaves are [B, width], the output first."""

    @abstractmethod
    def _cell(self, inputs: Tensor, leaves: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run one step of one layer with its weights; leaves are [B, width], the output first."""

    @abstractmethod
    def _flags(self, bias_ih: Tensor) -> Tensor:
        """Return [G * width, 2] the weights of the two flags as inputs: one empties the memory, the other holds it."""

    @abstractmethod
    def _chrono_gates(self, keep: Tensor) -> list[Tensor]:
        """Return the bias of each gate, in torch's order, such that memory is kept by a factor σ(`keep`) per step."""

    def acting(self, state: StateT) -> Acting[StateT]:
        """Return an `Acting`, which keeps the state layer by layer unless a subclass steps in its own way."""
        own = type(self)
        plain = (own.step, own._step, own.reset_state) == (
            MemoryCore.step,
            RecurrentCore._step,
            MemoryCore.reset_state,
        )
        return RecurrentActing(self, state) if plain else PlainActing(self, state)

    def _step(self, inputs: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        layers = self.step_layers(inputs, self.by_layer(state))
        return layers[-1][0], self.join_layers([tuple(leaf.detach() for leaf in leaves) for leaves in layers])

    def step_layers(self, inputs: Tensor, layers: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """Run one step of all layers; the leaves of each are [B, width], the output first."""
        # Torch's cells, as one step of its fused modules takes 1.7 to 3 times as long (CPU, batch 8, no gradient).
        features, after = inputs, []
        for leaves, weights in zip(layers, self.rnn.all_weights, strict=True):
            after.append(self._cell(features, leaves, weights))
            features = after[-1][0]
        return after

    def by_layer(self, state: StateT) -> list[tuple[Tensor, ...]]:
        """Return, for each layer, its leaves [B, width]."""
        return list(zip(*(leaf.unbind(dim=1) for leaf in state), strict=True))

    def join_layers(self, layers: list[tuple[Tensor, ...]]) -> StateT:
        """Join the leaves [B, width] of all layers to a state; the inverse of `by_layer`."""
        return self.make_state(torch.stack(leaf, dim=1) for leaf in zip(*layers, strict=True))

    def _unroll(self, inputs: Tensor, state: StateT, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        state = self.reset_state(state, reset[:, 0])
        padding = ResetPadding.before(reset)
        features, layers = inputs, []
        for layer, (of_input, *weights) in enumerate(self.rnn.all_weights):
            leaves = [leaf[:, layer].contiguous() for leaf in state]
            if padding is None:
                features, (_, *rest) = self._fused(features, leaves, [of_input, *weights])
            else:
                # Gates empty the memory by a product: 0 * NaN is NaN, and huge outputs would open them.
                most = largest(weights[1].dtype)
                output, *cell = (leaf.nan_to_num(nan=0.0) for leaf in leaves)
                leaves = [output.clamp(-most, most), *cell]
                with_flags = torch.cat([of_input, self._flags(weights[1])], dim=1)
                features, (_, *rest) = self._fused(padding.widen(features), leaves, [with_flags, *weights])
                features = padding.narrow(features)
            layers.append((features[:, -1], *rest))
        final = self.make_state(torch.stack(leaf, dim=1).detach() for leaf in zip(*layers, strict=True))
        return Unrolled(features, final, inputs.new_zeros(()), {})

    def _initialise_chrono(self, horizon: int) -> None:
        """Set the gates' biases. Torch has two per gate: `bias_ih` takes ours, `bias_hh` starts at 0."""
        with torch.no_grad():
            for _, _, bias_ih, bias_hh in self.rnn.all_weights:
                keep = chrono_bias(bias_ih[: self.width], horizon)
                bias_ih.copy_(torch.cat(self._chrono_gates(keep)))
                bias_hh.zero_()


class RecurrentActing(Acting[StateT]):
    """A recurrent core acting in B envs; it need not check, split and join the state in every step, as `step` does."""

    core: RecurrentCore[StateT]

    def __init__(self, core: RecurrentCore[StateT], state: StateT) -> None:
        super().__init__(core, state)
        self._layers = core.by_layer(core.make_state(leaf.detach().clone() for leaf in state))

    def state(self, envs: npt.NDArray[np.int64] | None = None) -> StateT:
        """Return a copy of the state, of all envs or some."""
        state = self.core.join_layers(self._layers)
        if envs is None:
            return state
        return self.core.make_state(leaf[torch.as_tensor(envs, device=leaf.device)] for leaf in state)

    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        started = reset[:, None]
        layers = [tuple(leaf.masked_fill(started, 0) for leaf in leaves) for leaves in self._layers]
        self._layers = self.core.step_layers(inputs, layers)
        return self._layers[-1][0]


def chrono_bias(like: Tensor, horizon: int) -> Tensor:
    """Draw biases b of gates that keep a share σ(b) of their memory per step, for memories of up to `horizon` steps.

    Such a gate has a time constant of 1 + exp(b) steps, so b = log u, u uniform in [1, horizon − 1].

    :raises ValueError: where the horizon is not a whole number of at least 2
    """
    if type(horizon) is not int or horizon < 2:
        raise ValueError(f"chrono_horizon must be None or a whole number of at least 2, got {horizon!r}")
    return torch.empty_like(like).uniform_(1, horizon - 1).log_()


class LSTMCore(RecurrentCore[LSTMState]):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) as `torch.nn.LSTM` computes it.

    Chrono initialisation: forget-gate biases are log U(1, chrono_horizon − 1), input-gate biases their negative, those
    of the cell candidate and the output gate 0. Arguments are those of `RecurrentCore`.
    """

    _rnn_class = nn.LSTM

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return zeros."""
        shape = (batch_size, self.layers, self.width)
        hidden, cell = (torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in LSTMState._fields)
        return LSTMState(hidden, cell)

    def _fused(self, inputs: Tensor, leaves: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        memory = [leaf[None] for leaf in leaves]
        outputs, hidden, cell = torch.lstm(inputs, memory, weights, True, 1, 0.0, self.training, False, True)
        return outputs, (hidden[0], cell[0])

    def _cell(self, inputs: Tensor, leaves: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.lstm_cell(inputs, leaves, *weights)

    def _flags(self, bias_ih: Tensor) -> Tensor:
        zero, most = bias_ih.new_zeros(self.width), shut(bias_ih.dtype)
        empty = [zero - most, zero - most, zero, zero - most]  # input, forget, candidate, output
        hold = [zero - most, zero + most, zero, zero]
        return torch.stack([torch.cat(empty), torch.cat(hold)], dim=1)

    def _chrono_gates(self, keep: Tensor) -> list[Tensor]:
        zero = torch.zeros_like(keep)
        return [-keep, keep, zero, zero]  # input, forget, candidate, output


class GRUCore(RecurrentCore[GRUState]):
    """Gated recurrent unit (Cho et al. 2014) as `torch.nn.GRU` computes it.

    Chrono initialisation: update-gate biases are log U(1, chrono_horizon − 1), those of reset gate and candidate 0.
    Torch's update gate z *keeps*: h_t = (1 − z)·candidate + z·h_tm1, hence no minus sign. As z and 1 − z are tied, no
    second bias is needed to write as slowly as it forgets. Arguments are those of `RecurrentCore`.
    """

    _rnn_class = nn.GRU

    def initial_state(self, batch_size: int) -> GRUState:
        """Return zeros."""
        return GRUState(torch.zeros(batch_size, self.layers, self.width, device=self.device, dtype=self.dtype))

    def _fused(self, inputs: Tensor, leaves: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs, hidden = torch.gru(inputs, leaves[0][None], weights, True, 1, 0.0, self.training, False, True)
        return outputs, (hidden[0],)

    def _cell(self, inputs: Tensor, leaves: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.gru_cell(inputs, leaves[0], *weights),)

    def _flags(self, bias_ih: Tensor) -> Tensor:
        zero, most = bias_ih.new_zeros(self.width), shut(bias_ih.dtype)
        # The candidate has no gate of its own. With its bias subtracted and the reset gate shut it is tanh(0).
        empty = [zero - most, zero - most, -bias_ih[2 * self.width :]]  # reset, update, candidate
        hold = [zero, zero + most, zero]
        return torch.stack([torch.cat(empty), torch.cat(hold)], dim=1)

    def _chrono_gates(self, keep: Tensor) -> list[Tensor]:
        zero = torch.zeros_like(keep)
        return [zero, keep, zero]  # reset, update, candidate
