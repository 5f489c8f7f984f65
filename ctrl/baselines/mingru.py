"""A linear recurrence as memory: the minimal GRU of Feng et al. 2024, "Were RNNs All We Needed?" (arXiv 2410.01201).

Gate and candidate depend on a layer's input alone, not on its memory. So the maps of a whole window are one matrix
product, and only h_t = (1 − z_t)·h_tm1 + z_t·candidate_t remains from step to step, element by element.

This is the paper's plain form, in which the memory may have either sign. The paper's log-space form, with positive
memories, serves a scan by cumulative products, which underflow in long windows. Here steps are taken in order: each h_t
lies between h_tm1 and the candidate, so an unroll loses no precision that a step would keep, and a step is one fused
operation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ctrl.baselines.lstm_gru import chrono_bias
from ctrl.core import MemoryCore, Unrolled, require_positive


class MinGRUState(NamedTuple):
    """State of `MinGRUCore`."""

    hidden: Tensor
    """[B, layers, width] each layer's last output, which is also its memory."""


torch.serialization.add_safe_globals([MinGRUState])  # so that `torch.load` takes a saved state


class MinGRUCore(MemoryCore[MinGRUState]):
    """Minimal gated recurrent unit (Feng et al. 2024, section 3.1).

    Layers are stacked as those of `torch.nn.GRU`: the outputs of one are the inputs of the next, without the norms,
    residual connections and MLPs that larger models put between them.

    Chrono initialisation: biases of the update gate are −log U(1, chrono_horizon − 1), those of the candidate 0. The
    gate *writes*, in the paper as here, where torch's GRU has one that keeps; hence the minus sign.

    :param input_size: I, goes straight into the first layer
    :param width: units per layer, and the output size
    :param layers: stacked layers
    :param chrono_horizon: the longest span in steps that the agent should remember. Unit by unit, time constants are
        drawn uniformly between 2 and this. None keeps torch's default initialisation.
    :raises ValueError: where a size is not a positive whole number, or the horizon is below 2
    """

    def __init__(self, input_size: int, *, width: int = 128, layers: int = 1, chrono_horizon: int | None = 128) -> None:
        require_positive(width=width, layers=layers)
        super().__init__(input_size, output_size=width)
        self.width = width
        self.layers = layers
        fans = [input_size, *[width] * (layers - 1)]
        self.maps = nn.ModuleList(nn.Linear(fan_in, 2 * width) for fan_in in fans)  # update gate, then candidate
        if chrono_horizon is not None:
            self._initialise_chrono(chrono_horizon)

    def structure(self) -> tuple[()]:
        """Return nothing: the shapes of the weights tell all."""
        return ()

    def initial_state(self, batch_size: int) -> MinGRUState:
        """Return zeros."""
        return MinGRUState(torch.zeros(batch_size, self.layers, self.width, device=self.device, dtype=self.dtype))

    def _step(self, inputs: Tensor, state: MinGRUState) -> tuple[Tensor, MinGRUState]:
        features, memories = inputs, []
        for linear, hidden in zip(self.maps, state.hidden.unbind(1), strict=True):
            update, candidate = linear(features).chunk(2, dim=-1)
            features = torch.lerp(hidden, candidate, torch.sigmoid(update))  # [B, width]
            memories.append(features)
        return features, MinGRUState(torch.stack(memories, dim=1).detach())

    def _unroll(self, inputs: Tensor, state: MinGRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        features, memories = inputs.transpose(0, 1), []  # time first, so that a step lies in one piece
        for linear, hidden in zip(self.maps, state.hidden.unbind(1), strict=True):
            update, candidate = linear(features).chunk(2, dim=-1)
            features = gated_scan(torch.sigmoid(update), candidate, hidden, reset.t())  # [T, B, width]
            memories.append(features[-1])
        final = MinGRUState(torch.stack(memories, dim=1).detach())
        return Unrolled(features.transpose(0, 1), final, inputs.new_zeros(()), {})

    def _initialise_chrono(self, horizon: int) -> None:
        with torch.no_grad():
            for linear in self.maps:
                update, candidate = cast(nn.Linear, linear).bias.chunk(2)
                update.copy_(-chrono_bias(update, horizon))
                candidate.zero_()


def gated_scan(update: Tensor, candidate: Tensor, hidden: Tensor, reset: Tensor) -> Tensor:
    """Return all h_t = (1 − z_t)·h_tm1 + z_t·candidate_t, where h_tm1 is 0 at a reset, by selection.

    :param update: [T, B, D] z, from 0 to 1
    :param candidate: [T, B, D]
    :param hidden: [B, D] memory before the first step; it gets no gradient
    :param reset: [T, B] bool
    :return: [T, B, D]
    """
    outputs: Tensor = _GatedScan.apply(update, candidate, hidden, reset)  # type: ignore[no-untyped-call]
    return outputs


class _GatedScan(torch.autograd.Function):
    """`gated_scan`, with a hand-written gradient: autograd takes several operations for each step where one is enough.

    Scans that are parallel in time gain little on a CPU, or lose. One by doubling passes over all steps log₂ T times.
    One in blocks (within all at once, then from one to the next) passes twice, which pays for few envs and long windows
    only.
    """

    @staticmethod
    def forward(ctx: Any, update: Tensor, candidate: Tensor, hidden: Tensor, reset: Tensor) -> Tensor:
        outputs = torch.empty_like(candidate, memory_format=torch.contiguous_format)
        resetting = reset.any(dim=1).tolist()
        h_tm1 = hidden
        for t, (z_t, candidate_t, h_t) in enumerate(zip(update, candidate, outputs, strict=True)):
            if resetting[t]:
                h_tm1 = h_tm1.masked_fill(reset[t, :, None], 0.0)
            h_tm1 = torch.lerp(h_tm1, candidate_t, z_t, out=h_t)
        ctx.save_for_backward(update, candidate, hidden, reset, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, of_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        update, candidate, hidden, reset, outputs = ctx.saved_tensors
        at_reset = reset[:, :, None]
        keep = (1 - update).masked_fill_(at_reset, 0.0)
        of_h = of_outputs.clone(memory_format=torch.contiguous_format)
        backwards = list(zip(of_h, keep, strict=True))[::-1]
        for (of_h_t, keep_t), (of_h_tm1, _) in pairwise(backwards):
            of_h_tm1.addcmul_(keep_t, of_h_t)
        h_tm1 = torch.cat([hidden[None], outputs[:-1]]).masked_fill_(at_reset, 0.0)
        return (candidate - h_tm1).mul_(of_h), of_h.mul_(update), None, None
