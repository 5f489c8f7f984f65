"""Slow reference of the compressive core: every tier is a plain Python list, run one env and one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrl.compressive.attention.clock import PERIODS, EpisodeClock
from ctrl.compressive.attention.memory_attention import AgeAttention, MemoryAttention
from ctrl.compressive.attention.relative import RelativeAttention
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.layer import GatedLayer, PlainLayer, PostNormLayer, PreNormLayer
from ctrl.compressive.tiers import spans


class SlowReference:
    """One env of a compressive core: every tier of every layer is a Python list, run one step at a time.

    It is written from the text of DESIGN 3 to 5 and shares the core's weights. Of the core's code it uses only the
    parts for a single vector (norms, linear maps, gates) or a single block (compressors).
    """

    def __init__(self, core: CompressiveCore) -> None:
        self.core = core
        self.restart()

    def restart(self) -> None:
        self.time = 0
        self.memory: list[list[list[Slot]]] = [[[] for _ in tiers] for tiers in self.core.tiers]

    def step(self, inputs: Tensor, reset: bool) -> Tensor:
        if reset:
            self.restart()
        hidden = self.core.embed(inputs)
        for layer, module in enumerate(self.core.layers):
            self._insert(layer, 0, Slot(self.time, hidden.detach(), [0.0] * self.core.forgetting_heads, self.time))
            self._forget(layer, hidden)
            attended = self._attend(layer, hidden)
            hidden = finish(module, hidden, module.attention.output(attended))
        outputs = self.core.norm(hidden)
        if self.core.output_clock is not None:
            outputs = outputs + self.core.output_clock(phases(self.time, self.core.clock))
        self.time += 1
        return outputs

    def _insert(self, layer: int, tier: int, slot: Slot) -> None:
        tiers, lists = self.core.tiers[layer], self.memory[layer]
        lists[tier].append(slot)
        if len(lists[tier]) <= tiers[tier].slots:
            return
        if tier + 1 == len(tiers):
            lists[tier].pop(0)
            return
        block = [lists[tier].pop(0) for _ in range(tiers[tier + 1].rate)]
        values = torch.stack([slot.value for slot in block])
        used = torch.tensor([slot.used / slot.steps for slot in block])
        compressor = self.core.compressors[layer][tier]
        importance = used if compressor.uses_attention() else None
        if compressor.uses_novelty():
            importance = self._unusual(layer, values) * (1 if importance is None else importance)
        known = values[None], None if importance is None else importance[None]
        compressed = compressor(*known)[0].detach()
        carried = torch.tensor([[[*slot.lost, float(slot.time)] for slot in block]])
        *lost, time = compressor.carry(carried, *known)[0].tolist()
        self._insert(layer, tier + 1, Slot(block[0].first, compressed, lost, time))

    def _forget(self, layer: int, hidden: Tensor) -> None:
        """Fade all slots by the step's gates, except the step's own."""
        attention = self.core.layers[layer].attention
        if attention.forget_gate is None:
            return
        kept = torch.sigmoid(attention.forget_gate(attention.norm(hidden))).log().tolist()
        older = [slot for slots in self.memory[layer] for slot in slots if slot is not self.memory[layer][0][-1]]
        for slot in older:
            slot.lost = [lost + now for lost, now in zip(slot.lost, kept, strict=True)]

    def _unusual(self, layer: int, values: Tensor) -> Tensor:
        """Return each slot's variance of normed features that the layer's map does not rebuild."""
        normed = (values - values.mean(1, keepdim=True)) / (values.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        left = normed - normed @ self.core.layers[layer].attention.novelty.rebuild
        return left.square().mean(dim=1).detach()

    def _emphasis(self, layer: int, slot: Tensor) -> Tensor | float:
        """Return the factor of a slot's keys and values."""
        novelty = self.core.layers[layer].attention.novelty
        return 1.0 if novelty is None else 1 + novelty.gain * self._unusual(layer, slot[None])

    def _attend(self, layer: int, hidden: Tensor) -> Tensor:
        attention = self.core.layers[layer].attention
        width, heads = self.core.output_size, attention.heads
        size = width // heads
        query = attention.query(attention.norm(hidden))
        by_time = self._by_time(attention)
        result = torch.empty(width)
        for slots in self.memory[layer]:
            for slot in slots:
                slot.steps += 1
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores, values, newer = [], [], 0
            for slots, span in zip(self.memory[layer], spans(self.core.tiers[layer]), strict=True):
                of_tier = []
                newer += len(slots)
                for index, slot in enumerate(slots):
                    projected = attention.key_value(attention.norm(slot.value))
                    key, value = (self._emphasis(layer, slot.value) * projected).chunk(2)
                    age, distance = self.time - slot.first - span // 2, newer - 1 - index
                    faded = ([0.0] * (heads - len(slot.lost)) + slot.lost)[head]
                    of_content = score(attention, part, query[part], key[part], age, distance)
                    of_tier.append(of_content + faded + by_time(head, slot))
                    values.append(value[part])
                shares = torch.tensor([score.item() for score in of_tier]).softmax(dim=0)
                for slot, share in zip(slots, shares.tolist(), strict=True):
                    slot.used += share / heads
                scores += of_tier
            weights = torch.stack(scores).softmax(dim=0)
            result[part] = weights @ torch.stack(values)
        return result

    def _by_time(self, attention: MemoryAttention) -> Callable[[int, Slot], float]:
        """Return a function of head and slot: the term of the score by the times of step and slot."""
        if attention.time_queries is None:
            return lambda head, slot: 0.0
        weight, end = attention.time_queries.weight.tolist(), int(self.core.clock.end)

        def by_time(head: int, slot: Slot) -> float:
            score = 0.0
            for index, period in enumerate(PERIODS[::2]):
                if head < len(weight):
                    a, b = weight[head][index], weight[head][index + len(PERIODS) // 2]
                    now, then = (2 * math.pi * min(time, end) / period for time in (self.time, slot.time))
                    score += a * math.cos(now + then) + b * math.sin(now + then)
            return 2 * score

        return by_time


def phases(time: float, clock: EpisodeClock) -> Tensor:
    """Return the clock features of a time; the clock stands still after its end."""
    angles = [2 * math.pi * min(time, int(clock.end)) / period for period in PERIODS]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])


@dataclass
class Slot:
    """A slot of the slow reference."""

    first: int
    """The first step that it stands for."""
    value: Tensor
    lost: list[float]
    """The logarithm of what each forgetting head has kept of it so far."""
    time: float
    """The step of the episode that its content comes from."""
    used: float = 0.0
    """The attention that it has received within its tier."""
    steps: int = 0
    """Number of steps for which its tier has held it."""


def bias_bucket(age: int) -> int:
    """Return the bucket of an age: one for each age up to 32, then 4 of equal width for each doubling."""
    if age < 32:
        return age
    octave = math.floor(math.log2(age / 32))
    return 32 + 4 * octave + math.floor(4 * (age / (32 * 2**octave) - 1))


def score(attention: MemoryAttention, part: slice, query: Tensor, key: Tensor, age: int, distance: int) -> Tensor:
    """Return one head's score, for its features `part`: by age, or the four terms of Dai et al. 2019, section 3.3."""
    size = len(query)
    head = part.start // size
    if isinstance(attention, AgeAttention):
        bucket = min(bias_bucket(age), int(attention.oldest_bucket))  # older than in training counts as the oldest
        return query @ key / math.sqrt(size) + attention.SCALE * attention.age_bias[head, bucket]
    assert isinstance(attention, RelativeAttention)
    width = attention.query.in_features
    angles = [distance / 10000 ** (feature / width) for feature in range(0, width, 2)]
    encoding = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])[:width]
    position_key = attention.position_key(encoding)[part]
    u, v = attention.content_bias[head], attention.position_bias[head]
    return (query @ key + query @ position_key + u @ key + v @ position_key) / math.sqrt(size)


def finish(layer: torch.nn.Module, hidden: Tensor, update: Tensor) -> Tensor:
    """Return a layer's output from its input and its attention output."""
    if isinstance(layer, PostNormLayer):
        hidden = layer.attention_norm(hidden + update)
        return layer.feedforward_norm(hidden + layer.narrow(torch.relu(layer.widen(hidden))))
    if isinstance(layer, PlainLayer):
        return hidden + update
    if isinstance(layer, PreNormLayer):
        hidden = hidden + update
        return hidden + layer.narrow(torch.relu(layer.widen(layer.norm(hidden))))
    assert isinstance(layer, GatedLayer)
    hidden = gate(layer.attention_gate, hidden, torch.relu(update))
    widened = torch.relu(layer.widen(layer.norm(hidden)))
    return gate(layer.feedforward_gate, hidden, torch.relu(layer.narrow(widened)))


def gate(cell: torch.nn.GRUCell, kept: Tensor, update: Tensor) -> Tensor:
    """Return the output of a GRU, by its equations, with the residual stream as memory and the update as input."""
    of_update = (cell.weight_ih @ update + cell.bias_ih).chunk(3)
    of_kept = (cell.weight_hh @ kept + cell.bias_hh).chunk(3)
    reset = torch.sigmoid(of_update[0] + of_kept[0])
    keep = torch.sigmoid(of_update[1] + of_kept[1])
    candidate = torch.tanh(of_update[2] + reset * of_kept[2])
    return keep * kept + (1 - keep) * candidate
