"""Compressors: how consecutive slots become one (Rae et al. 2020, arXiv 1911.05507, section 3.1).

A compressor sees one block of m slots at a time and nothing else, so what it makes of it does not depend on the window
in which it happens. The learned ones start as the mean, but for `select`. Write your own as a subclass of `Compressor`,
give it a name with `register_compressor`, and use the name in a `Tier`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctrl.core import choose

SMALLEST = 1e-6
"""Novelty below this counts as this."""


class Compressor(nn.Module, ABC):
    """Maps blocks [N, m, D] to slots [N, D]; five methods say all, and only `forward` has no default.

    :param width: D
    :param rate: m
    """

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.width = width
        self.rate = rate

    @abstractmethod
    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Compress.

        :param blocks: [N, m, D] slots, oldest first, without a graph unless the task loss trains the compressors
        :param importance: [N, m] the attention that each slot has received on average over the steps for which its tier held
            it, if `uses_attention()`; times, or only, its novelty, if `uses_novelty()`; else None
        :return: [N, D]
        """

    def uses_attention(self) -> bool:
        """Say whether `forward` needs to know how much attention the slots have received; that costs time."""
        return False

    def uses_novelty(self) -> bool:
        """Say whether `forward` needs to know how unusual the slots are among the layer's inputs (`ctrl.compressive.attention.novelty`).

        Then what is unusual also counts more in the layer's keys and values, see `novelty_gain` of the core.
        """
        return False

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return what is known of the new slots [N, F] from what is known of their blocks [N, m, F].

        By default that of the newest slot. A compressor that keeps one slot hands on that slot's. Adding a number to
        all of `facts` must add it to the result.

        :param facts: of each slot, the logarithm of what heads have kept of it, and how many steps what it holds lies
            from the middle of those that the new slot stands for
        """
        return facts[:, -1]

    def decoder(self) -> nn.Module:
        """Build what maps slots [N, D] back to blocks [N, m, D], for the loss `auto_encoding`."""
        return LinearDecoder(self.width, self.rate)


def importance_of(compressor: Compressor, attention: Tensor | None, novelty: Tensor | None) -> Tensor | None:
    """Return the `importance` [N, m] that a compressor is told with N blocks.

    :param attention: [N, m] that their slots have received, None unless the compressor uses it
    :param novelty: [N, m] of their slots, None if nobody measures it
    """
    if novelty is None or not compressor.uses_novelty():
        return attention
    return novelty if attention is None else attention * novelty


class LinearDecoder(nn.Module):
    """One linear map for each place in the block; at first each gives the slot itself."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(torch.eye(width).repeat(1, rate))  # [D, m * D]

    def forward(self, slots: Tensor) -> Tensor:
        """[N, D] -> [N, m, D]."""
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
    """The mean over the block, and what a network adds to it: at first nothing."""

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
        """[N, m, D] -> [N, D]."""


class DilatedConvCompressor(MeanPlus):
    """Causal convolutions of two taps with dilations 1, 2, 4, …, until the last step hears all of the block.

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

    A query is one vector, so it and its key projection are one map of the slots, and each place in the block has a
    score of its own.
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
    """Keeps one slot of the block as it is, the one that matters most, and drops the others; not in the paper.

    What is kept is never diluted, however many tiers it goes through. A slot's score is how unusual it is (its squared
    distance from the block's mean, relative to that of the others) plus a learned linear map of it, so at first the odd
    one out is kept. The choice is hard, its gradient that of the softmax over the scores (straight-through; Bengio et
    al. 2013, arXiv 1308.3432); under the attention reconstruction they learn what the layer's queries ask for.
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
        """Hand on that of the slot that is kept."""
        return _pick(facts, self.scores(blocks))

    def scores(self, blocks: Tensor) -> Tensor:
        """[N, m, D] -> [N, m]."""
        distances = (blocks - blocks.mean(dim=1, keepdim=True)).square().sum(dim=2)
        unusual = distances / distances.mean(dim=1, keepdim=True).clamp_min(1e-12)
        scores: Tensor = self.UNUSUAL * unusual + self.learned(blocks)[:, :, 0]
        return scores


class MostUsedCompressor(Compressor):
    """Keeps the slot of the block that has received most attention, and drops the others; the paper's `most-used`.

    That is the average over the steps for which its tier has held it, since those of a block come one by one and leave
    together. The attention is that of the slot's own layer, the mean over heads, as if the tier's slots were all that
    there is to attend to. So it depends neither on windows (what came before a window is part of the state) nor on the
    slots that are formed from it, and an unroll needs one pass.
    """

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] and importance [N, m] -> [N, D]."""
        return _pick(blocks, self._known(importance))

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Hand on that of the slot that is kept."""
        return _pick(facts, self._known(importance))

    def _known(self, importance: Tensor | None) -> Tensor:
        if importance is None:
            raise ValueError(
                f"importance must be given: {type(self).__name__} ranks slots by attention received; got None"
            )
        return importance

    def uses_attention(self) -> bool:
        """Say yes."""
        return True


class MostMissedCompressor(MostUsedCompressor):
    """Keeps the slot of the block that would be missed most, and drops the others; not in the paper.

    That is the attention that it has received, counted as for `most_used`, times what could not be rebuilt of it: how
    unusual it is among the inputs that its layer has learned from (`ctrl.compressive.attention.novelty`). Attention alone is a matter of luck
    while nobody knows yet what will be asked for, and what is dropped then can't teach its worth.
    """

    def uses_novelty(self) -> bool:
        """Say yes."""
        return True


class SurpriseCompressor(Compressor):
    """The mean of the block, weighted by surprise; not in the paper.

    A slot's weight is its novelty (`ctrl.compressive.attention.novelty`) to the power `POWER`, so a slot that is twice as unusual as the
    others nearly has the block for itself. What is rare goes through many tiers this way, before anything has learned
    to ask for it. There is no hard choice, and attention need not be counted.
    """

    POWER = 6.0

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] and novelty [N, m] -> [N, D]."""
        return torch.bmm(self._weights(importance), blocks)[:, 0]

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Hand on the mean with the same weights."""
        return torch.bmm(self._weights(importance), facts)[:, 0]

    def uses_novelty(self) -> bool:
        """Say yes."""
        return True

    def _weights(self, importance: Tensor | None) -> Tensor:
        """[N, m] -> [N, 1, m], which sum to 1."""
        if importance is None:
            raise ValueError(
                f"importance must be given: {type(self).__name__} weights slots by their novelty; got None"
            )
        return (self.POWER * importance.clamp_min(SMALLEST).log()).softmax(dim=1)[:, None]


def _pick(slots: Tensor, scores: Tensor) -> Tensor:
    """Pick the slot with the highest score: [N, m, ..] and [N, m] -> [N, ..]."""
    return slots[torch.arange(len(slots), device=slots.device), scores.argmax(dim=1)]


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
    :param factory: a subclass of `Compressor`, or what builds one from (width, rate)
    :raises ValueError: if the name is taken or no text, or the factory cannot be called
    """
    if not isinstance(name, str) or not callable(factory):
        raise ValueError(f"name must be a text and factory a class or function, got {name!r} and {factory!r}")
    if name in _COMPRESSORS:
        raise ValueError(f"compressor {name!r} is already registered")
    _COMPRESSORS[name] = factory


def compressor_factory(name: str) -> CompressorFactory:
    """Return what builds the compressor `name`; a ValueError where the name is unknown."""
    factory: CompressorFactory = choose("compressor", name, _COMPRESSORS)
    return factory


def make_compressor(name: str, width: int, rate: int) -> Compressor:
    """Build the compressor `name` for slots of `width` features, `rate` of them a block.

    :raises ValueError: where the name is unknown, or what is registered under it builds no `Compressor`
    """
    compressor = compressor_factory(name)(width, rate)
    if not isinstance(compressor, Compressor):
        raise ValueError(f"compressor {name!r} must be a ctrl.Compressor, got {type(compressor).__name__}")
    return compressor
