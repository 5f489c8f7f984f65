"""Compressors: maps from a block of consecutive slots to one slot (Rae et al. 2020, arXiv 1911.05507, section 3.1).

A compressor sees one block of m slots at a time and nothing else, so its result does not depend on the window in which
the block is compressed. Learned compressors start as the mean, except `select`. To add your own, write a subclass of
`Compressor`, give it a name with `register_compressor`, and use the name in a `Tier`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctrl.core import choose, register

SMALLEST = 1e-6
"""Lower bound of novelty."""


class Compressor(nn.Module, ABC):
    """Base class of compressors, which map blocks [N, m, D] to slots [N, D]; only `forward` has no default.

    :param width: D
    :param rate: m
    """

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.width = width
        self.rate = rate

    @abstractmethod
    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Compress blocks.

        :param blocks: [N, m, D] slots, oldest first, without a graph unless the task loss trains the compressors
        :param importance: [N, m] if `uses_attention()`, the attention that each slot has received per step in its tier;
            if `uses_novelty()`, its novelty; if both, their product; else None
        :return: [N, D]
        """

    def uses_attention(self) -> bool:
        """Return True if `forward` needs the attention that the slots have received; counting it takes time."""
        return False

    def uses_novelty(self) -> bool:
        """Return True if `forward` needs the slots' novelty (`ctrl.compressive.attention.novelty`).

        Then novelty also scales the layer's keys and values, see `novelty_gain` of the core.
        """
        return False

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return the carried numbers of the new slots [N, F] from those of their blocks [N, m, F].

        By default they are those of the newest slot. A compressor that keeps one slot hands on that slot's. Adding a
        number to all of `facts` must add it to the result.

        :param facts: for each slot, the logarithm of how much each forgetting head has kept of it, and the time of its
            content, in steps from the centre of the steps that the new slot stands for
        """
        return facts[:, -1]

    def decoder(self) -> nn.Module:
        """Build a decoder from slots [N, D] back to blocks [N, m, D], for the loss `auto_encoding`."""
        return LinearDecoder(self.width, self.rate)


def importance_of(compressor: Compressor, attention: Tensor | None, novelty: Tensor | None) -> Tensor | None:
    """Return the `importance` [N, m] for a compressor of N blocks.

    :param attention: [N, m] that their slots have received; None unless the compressor uses it
    :param novelty: [N, m] of their slots; None if it is not measured
    """
    if novelty is None or not compressor.uses_novelty():
        return attention
    return novelty if attention is None else attention * novelty


class LinearDecoder(nn.Module):
    """One linear map for each place in the block; at first each is the identity."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(torch.eye(width).repeat(1, rate))  # [D, m * D]

    def forward(self, slots: Tensor) -> Tensor:
        """Decode slots [N, D] to blocks [N, m, D]."""
        decoded: Tensor = (slots @ self.weight).unflatten(1, (self.rate, -1))
        return decoded


class MeanCompressor(Compressor):
    """The mean over the block; the paper's `mean pooling`."""

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        return blocks.mean(dim=1)


class MaxCompressor(Compressor):
    """The maximum over the block, feature by feature; the paper's `max pooling`."""

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        return blocks.amax(dim=1)


class ConvCompressor(Compressor):
    """A 1D convolution whose kernel and stride are the rate, without bias; the paper's choice."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, rate)
        self.weight = nn.Parameter(torch.eye(width).repeat(rate, 1) / rate)  # [m * D, D]

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        return blocks.flatten(start_dim=1) @ self.weight


class MeanPlus(Compressor):
    """The mean over the block plus the output of a network, which is 0 at first."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, rate)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        added: Tensor = self.output(self._read(blocks))
        return blocks.mean(dim=1) + added

    @abstractmethod
    def _read(self, blocks: Tensor) -> Tensor:
        """Return the network's features of blocks: [N, m, D] -> [N, D]."""


class DilatedConvCompressor(MeanPlus):
    """Causal convolutions of two taps with dilations 1, 2, 4, …, until the last step depends on all of the block.

    The paper's `dilated convolutions` (after Yu & Koltun 2016, arXiv 1511.07122); it does not state their form. Here
    they don't reach beyond the block, and ReLU follows each.
    """

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, rate)
        self.dilations = [2**level for level in range((rate - 1).bit_length())]
        self.convolutions = nn.ModuleList(nn.Linear(2 * width, width) for _ in self.dilations)

    def _read(self, blocks: Tensor) -> Tensor:
        features = blocks
        for dilation, convolution in zip(self.dilations, self.convolutions, strict=True):
            before = torch.zeros_like(features)
            before[:, dilation:] = features[:, :-dilation]
            features = convolution(torch.cat([before, features], dim=2)).relu()
        return features[:, -1]


class GRUCompressor(MeanPlus):
    """A GRU that reads the block in order; the RNN as compressor that the paper's discussion proposes."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, rate)
        self.rnn = nn.GRU(width, width, batch_first=True)

    def _read(self, blocks: Tensor) -> Tensor:
        read: Tensor = self.rnn(blocks)[0]
        return read[:, -1]


class AttentionCompressor(Compressor):
    """Learned queries that attend to the block, one for each of up to 4 groups of features; not in the paper.

    A query is one vector, so query and key projection together are one map of the slots. Each place in the block has a
    learned score, too.
    """

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, rate)
        queries = next(count for count in (4, 2, 1) if width % count == 0)
        self.queries = nn.Parameter(torch.zeros(width, queries))
        self.places = nn.Parameter(torch.zeros(rate, queries))
        self.value = nn.Parameter(torch.eye(width))

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        weights = (blocks @ self.queries + self.places).softmax(dim=1)  # [N, m, queries]
        values = (blocks @ self.value).unflatten(2, (weights.shape[2], -1))
        slots: Tensor = (weights[..., None] * values).sum(dim=1).flatten(start_dim=1)
        return slots


class SelectCompressor(Compressor):
    """Keeps one slot of the block as it is, the one with the highest score, and drops the others; not in the paper.

    A kept slot is never diluted, however many tiers it goes through. The score is how unusual the slot is (its squared
    distance from the block's mean, relative to that of the others) plus a learned linear map of it. So at first the
    most unusual slot is kept. The choice is hard, and its gradient is that of the softmax over the scores
    (straight-through; Bengio et al. 2013, arXiv 1308.3432). Under the attention reconstruction the scores learn which
    slots the layer's queries attend to.
    """

    UNUSUAL = 4.0
    """Weight of being unusual, beside a linear map of torch's usual size. Two slots alone are equally unusual."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, rate)
        self.learned = nn.Linear(width, 1, bias=False)

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        scores = self.scores(blocks)
        chosen = _pick(blocks, scores)
        if not torch.is_grad_enabled():
            return chosen
        soft = (scores.softmax(dim=1)[:, None] @ blocks)[:, 0]
        slots: Tensor = chosen + (soft - soft.detach())
        return slots

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Hand on the carried numbers of the slot that is kept."""
        return _pick(facts, self.scores(blocks))

    def scores(self, blocks: Tensor) -> Tensor:
        """Return the score of each slot: [N, m, D] -> [N, m]."""
        distances = (blocks - blocks.mean(dim=1, keepdim=True)).square().sum(dim=2)
        unusual = distances / distances.mean(dim=1, keepdim=True).clamp_min(1e-12)
        scores: Tensor = self.UNUSUAL * unusual + self.learned(blocks)[:, :, 0]
        return scores


class MostUsedCompressor(Compressor):
    """Keeps the slot of the block that has received most attention, and drops the others; the paper's `most-used`.

    Attention is averaged over the steps for which the tier has held the slot, since the slots of a block come one by
    one and leave together. It is that of the slot's own layer, averaged over heads, with a softmax over the tier's
    slots alone. So it depends neither on windows (attention received before a window is part of the state) nor on the
    slots that are formed from the block, and an unroll needs one pass.
    """

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Compress [N, m, D] with importance [N, m] -> [N, D]."""
        return _pick(blocks, self._known(importance))

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Hand on the carried numbers of the slot that is kept."""
        return _pick(facts, self._known(importance))

    def _known(self, importance: Tensor | None) -> Tensor:
        if importance is None:
            raise ValueError(
                f"importance must be given: {type(self).__name__} ranks slots by attention received; got None"
            )
        return importance

    def uses_attention(self) -> bool:
        """Return True."""
        return True


class MostMissedCompressor(MostUsedCompressor):
    """Keeps the slot of the block that would be missed most, and drops the others; not in the paper.

    The score is the attention that the slot has received, counted as for `most_used`, times its novelty: how unusual it
    is among its layer's inputs (`ctrl.compressive.attention.novelty`). Attention alone is a matter of luck as long as
    training has not shown which slots will be needed, and a dropped slot can't teach its worth.
    """

    def uses_novelty(self) -> bool:
        """Return True."""
        return True


class SurpriseCompressor(Compressor):
    """The mean of the block, weighted by surprise; not in the paper.

    A slot's weight is its novelty (`ctrl.compressive.attention.novelty`) to the power `POWER`, so a slot that is twice
    as unusual as the others nearly has the block for itself. Rare content goes through many tiers this way, before any
    query has learned to attend to it. There is no hard choice, and attention need not be counted.
    """

    POWER = 6.0

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Compress [N, m, D] with novelty [N, m] -> [N, D]."""
        return torch.bmm(self._weights(importance), blocks)[:, 0]

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Hand on the mean of the carried numbers, with the same weights."""
        return torch.bmm(self._weights(importance), facts)[:, 0]

    def uses_novelty(self) -> bool:
        """Return True."""
        return True

    def _weights(self, importance: Tensor | None) -> Tensor:
        """Return weights that sum to 1: [N, m] -> [N, 1, m]."""
        if importance is None:
            raise ValueError(
                f"importance must be given: {type(self).__name__} weights slots by their novelty; got None"
            )
        return (self.POWER * importance.clamp_min(SMALLEST).log()).softmax(dim=1)[:, None]


def _pick(slots: Tensor, scores: Tensor) -> Tensor:
    """Pick the slot with the highest score: [N, m, ..] and [N, m] -> [N, ..]."""
    return slots[torch.arange(slots.shape[0], device=slots.device), scores.argmax(dim=1)]


CompressorFactory = Callable[[int, int], Compressor]

_COMPRESSORS: dict[str, CompressorFactory] = {
    "mean": MeanCompressor,
    "max": MaxCompressor,
    "conv": ConvCompressor,
    "dilated_conv": DilatedConvCompressor,
    "most_used": MostUsedCompressor,
    "most_missed": MostMissedCompressor,
    "gru": GRUCompressor,
    "attention": AttentionCompressor,
    "select": SelectCompressor,
    "surprise": SurpriseCompressor,
}


def compressor_names() -> list[str]:
    """Return the names that a `Tier` can use as its compressor."""
    return sorted(_COMPRESSORS)


def register_compressor(name: str, factory: CompressorFactory) -> None:
    """Make a compressor usable by name.

    :param name: a new name
    :param factory: a subclass of `Compressor`, or a function that builds one from (width, rate)
    :raises ValueError: if the name is taken or not a string, or the factory cannot be called
    """
    register("compressor", name, factory, _COMPRESSORS)


def compressor_factory(name: str) -> CompressorFactory:
    """Return the factory of the compressor `name`; raise a ValueError where the name is unknown."""
    factory: CompressorFactory = choose("compressor", name, _COMPRESSORS)
    return factory


def make_compressor(name: str, width: int, rate: int) -> Compressor:
    """Build the compressor `name` for slots of `width` features, `rate` of them a block.

    :raises ValueError: where the name is unknown, or its factory builds no `Compressor`
    """
    compressor = compressor_factory(name)(width, rate)
    if not isinstance(compressor, Compressor):
        raise ValueError(f"compressor {name!r} must be a ctrl.Compressor, got {type(compressor).__name__}")
    return compressor
