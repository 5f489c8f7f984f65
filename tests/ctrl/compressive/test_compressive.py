"""Tests of the compressive core: against a slow reference in plain Python lists, and of its own features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ctrl
from ctrl.compressive.attention.block_mask import age_bucket, masked_bucket
from ctrl.compressive.attention.clock import PERIODS, EpisodeClock
from ctrl.compressive.attention.memory_attention import AgeAttention, MemoryAttention
from ctrl.compressive.attention.relative import RelativeAttention
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.layer import RESIDUALS, GatedLayer, PlainLayer, PostNormLayer, PreNormLayer
from ctrl.compressive.tiers import Tier, spans

COMPRESSORS = ctrl.compressor_names()


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
        for number, layer in enumerate(self.core.layers):
            self._insert(number, 0, Slot(self.time, hidden.detach(), [0.0] * self.core.forgetting_heads, self.time))
            self._forget(number, hidden)
            attended = self._attend(number, hidden)
            hidden = finish(layer, hidden, layer.attention.output(attended))
        outputs = self.core.norm(hidden)
        if self.core.output_clock is not None:
            outputs = outputs + self.core.output_clock(phases(self.time, self.core.clock))
        self.time += 1
        return outputs

    def _insert(self, number: int, level: int, slot: Slot) -> None:
        tiers, lists = self.core.tiers[number], self.memory[number]
        lists[level].append(slot)
        if len(lists[level]) <= tiers[level].slots:
            return
        if level + 1 == len(tiers):
            lists[level].pop(0)
            return
        block = [lists[level].pop(0) for _ in range(tiers[level + 1].rate)]
        values, used = (
            torch.stack([slot.value for slot in block]),
            torch.tensor([slot.used / slot.steps for slot in block]),
        )
        compressor = self.core.compressors[number][level]
        importance = used if compressor.uses_attention() else None
        if compressor.uses_novelty():
            importance = self._unusual(number, values) * (1 if importance is None else importance)
        known = values[None], None if importance is None else importance[None]
        compressed = compressor(*known)[0].detach()
        facts = torch.tensor([[[*slot.lost, float(slot.time)] for slot in block]])
        *lost, time = compressor.carry(facts, *known)[0].tolist()
        self._insert(number, level + 1, Slot(block[0].first, compressed, lost, time))

    def _forget(self, number: int, hidden: Tensor) -> None:
        """Fade all slots by the step's gates, except the step's own."""
        attention = self.core.layers[number].attention
        if attention.forget_gate is None:
            return
        kept = torch.sigmoid(attention.forget_gate(attention.norm(hidden))).log().tolist()
        older = [slot for slots in self.memory[number] for slot in slots if slot is not self.memory[number][0][-1]]
        for slot in older:
            slot.lost = [lost + now for lost, now in zip(slot.lost, kept, strict=True)]

    def _unusual(self, number: int, values: Tensor) -> Tensor:
        """Return each slot's variance of normed features that the layer's map does not rebuild."""
        normed = (values - values.mean(1, keepdim=True)) / (values.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        left = normed - normed @ self.core.layers[number].attention.novelty.rebuild
        return left.square().mean(dim=1).detach()

    def _emphasis(self, number: int, slot: Tensor) -> Tensor | float:
        """Return the factor of a slot's keys and values."""
        novelty = self.core.layers[number].attention.novelty
        return 1.0 if novelty is None else 1 + novelty.gain * self._unusual(number, slot[None])

    def _attend(self, number: int, hidden: Tensor) -> Tensor:
        attention = self.core.layers[number].attention
        width, heads = self.core.output_size, attention.heads
        size = width // heads
        query = attention.query(attention.norm(hidden))
        by_time = self._by_time(attention)
        result = torch.empty(width)
        for slots in self.memory[number]:
            for slot in slots:
                slot.steps += 1
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores, values, newer = [], [], 0
            for slots, span in zip(self.memory[number], spans(self.core.tiers[number]), strict=True):
                of_tier = []
                newer += len(slots)
                for index, slot in enumerate(slots):
                    key, value = attention.key_value(
                        self._emphasis(number, slot.value) * attention.norm(slot.value)
                    ).chunk(2)
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
        row = min(
            bias_bucket(age), int(attention.oldest_bucket)
        )  # older than all ages of training counts as the oldest
        return query @ key / math.sqrt(size) + attention.SCALE * attention.age_bias[head, row]
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


@st.composite
def cores(draw: st.DrawFn) -> CompressiveCore:
    def tiers() -> list[Tier]:
        result = [Tier(draw(st.integers(1, 5)))]
        for _ in range(draw(st.integers(0, 2))):
            rate = draw(st.integers(1, min(3, result[-1].slots)))
            result.append(Tier(draw(st.integers(1, 4)), rate, draw(st.sampled_from(COMPRESSORS))))
        return result

    layers = draw(st.integers(1, 3))
    memory = [tiers() for _ in range(layers)] if draw(st.booleans()) else tiers()
    torch.manual_seed(draw(st.integers(0, 1000)))
    core = CompressiveCore(
        input_size=3,
        layers=layers,
        width=12,
        heads=draw(st.sampled_from([1, 2, 3, 4])),
        memory=memory,
        position=draw(st.sampled_from(["age", "sinusoidal"])),
        residual=draw(st.sampled_from(list(RESIDUALS))),
        forgetting=draw(st.booleans()),
        clock=draw(st.booleans()),
    )
    scramble(core)
    longest = draw(st.sampled_from([None, 5, 30]))
    if longest is not None:
        core.adapt({"longest_time": longest})
    return core


def scramble(core: CompressiveCore) -> None:
    """Move every parameter away from its neutral start, so that no omission stays unseen."""
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@settings(max_examples=40, deadline=None)
@given(core=cores(), data=st.data(), length=st.sampled_from([1, 2, 9, 24, 40, 71]))
@pytest.mark.usefixtures("double")
def test_unroll_equals_the_slow_reference(core: CompressiveCore, data: st.DataObject, length: int) -> None:
    batch = 2
    reset = torch.tensor(
        [data.draw(st.lists(st.sampled_from([False] * 7 + [True]), min_size=length, max_size=length)) for _ in range(2)]
    )
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    inputs = torch.randn(batch, length, core.input_size)
    unrolled = core.unroll(inputs, core.initial_state(batch), reset)
    near = 1e-4 if core.position == "sinusoidal" else 1e-7  # the table of sinusoids is in float32
    for env in range(batch):
        reference = SlowReference(core)
        expected = torch.stack([reference.step(inputs[env, t], bool(reset[env, t])) for t in range(length)])
        torch.testing.assert_close(unrolled.outputs[env], expected, rtol=near, atol=near / 10)


@pytest.fixture
def double() -> Iterator[None]:
    """Set float64, in which an exact law holds to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_core(**options: object) -> CompressiveCore:
    torch.manual_seed(0)
    options = {"layers": 2, "memory": [Tier(4), Tier(3, 2, "conv")]} | options
    core = CompressiveCore(3, width=8, heads=2, **options)  # type: ignore[arg-type]
    scramble(core)
    return core


def no_reset(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, dtype=torch.bool)


@pytest.mark.parametrize("position", ["age", "sinusoidal"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_reconstruction_loss_by_hand(position: str, residual: str) -> None:
    """Compare with the mean squared difference of two attention outputs: one head, one layer, every step of the window.

    Scores are by content alone, whatever the positions.
    """
    torch.manual_seed(3)
    core = CompressiveCore(
        2, layers=1, width=4, heads=1, memory=[Tier(2), Tier(3, 2, "conv")], position=position, residual=residual
    )
    scramble(core)
    inputs = torch.randn(1, 6, 2)
    loss = core.unroll(inputs, core.initial_state(1), no_reset(1, 6)).reconstruction_loss

    attention = core.layers[0].attention
    slots = core.embed(inputs[0])
    norm = torch.nn.Identity() if residual == "post_norm" else attention.norm
    query = attention.query(norm(slots))
    # Tier 0 holds two steps, so within six steps (0, 1) and (2, 3) are evicted.
    old = slots[:4]
    new = core.compressors[0][0](slots[:4].reshape(2, 2, 4))

    def read(memory: Tensor) -> Tensor:
        key, value = attention.key_value(norm(memory)).chunk(2, dim=-1)
        return (query @ key.T / math.sqrt(4)).softmax(dim=-1) @ value

    torch.testing.assert_close(loss, (read(old) - read(new)).square().mean())


def test_reconstruction_loss_counts_only_what_the_own_episode_evicts() -> None:
    core = make_core(layers=1)
    inputs, reset = torch.randn(2, 9, 3), no_reset(2, 9)
    alone = core.unroll(inputs[:1], core.initial_state(1), reset[:1]).reconstruction_loss
    reset[1] = True  # the other env never lives long enough to evict anything
    both = core.unroll(inputs, core.initial_state(2), reset).reconstruction_loss
    torch.testing.assert_close(both, alone)


def test_steps_ask_about_their_own_episode_alone() -> None:
    """Two episodes in a row lose as much as the same two side by side."""
    core = make_core(layers=1)
    inputs, reset = torch.randn(2, 11, 3), no_reset(2, 11)
    beside = core.unroll(inputs, core.initial_state(2), reset).reconstruction_loss
    reset[:, 0] = True
    after = core.unroll(inputs.reshape(1, 22, 3), core.initial_state(1), reset.reshape(1, 22)).reconstruction_loss
    torch.testing.assert_close(after, beside)


def test_a_window_that_evicts_nothing_has_no_loss() -> None:
    core = make_core()
    unrolled = core.unroll(torch.randn(2, 3, 3), core.initial_state(2), no_reset(2, 3))
    assert unrolled.reconstruction_loss.item() == 0.0
    unrolled.reconstruction_loss.backward()


def test_learning_the_reconstruction_lowers_it() -> None:
    core = make_core()
    inputs, reset = torch.randn(4, 40, 3), no_reset(4, 40)
    optimizer = torch.optim.Adam(core.compression_parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        unrolled = core.unroll(inputs, core.initial_state(4), reset)
        losses.append(unrolled.reconstruction_loss.item())
        optimizer.zero_grad()
        unrolled.reconstruction_loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_diagnostics_name_every_layer_and_tier() -> None:
    core = make_core(layers=2)
    unrolled = core.unroll(torch.randn(2, 20, 3), core.initial_state(2), no_reset(2, 20), diagnose=True)
    for layer in range(2):
        shares = [unrolled.diagnostics[f"attention_mass/layer{layer}/tier{tier}"] for tier in range(2)]
        assert sum(share.item() for share in shares) == pytest.approx(1.0, abs=1e-5)
        assert 0 < unrolled.diagnostics[f"attended_age/layer{layer}"].item() < 4 + 3 * 2
        assert unrolled.diagnostics[f"reconstruction_loss/layer{layer}/tier1"] > 0


@pytest.mark.parametrize("forgetting", [False, True])
@pytest.mark.usefixtures("double")
def test_gradients_flow_through_the_windows_own_short_term_slots_and_gates_only(forgetting: bool) -> None:
    core = make_core(layers=1, forgetting=forgetting)
    inputs = torch.randn(1, 12, 3, requires_grad=True)
    outputs = core.unroll(inputs, core.initial_state(1), no_reset(1, 12)).outputs
    (gradient,) = torch.autograd.grad(outputs[0, 11].sum(), inputs)
    reached = gradient[0].abs().sum(dim=1) > 1e-12  # gates that fade all slots alike cancel, but for rounding
    # After step 11 tier 0 has slots 8 to 11; compressed slots carry no gradient. Tier 1 has steps 2 to 7. The first of
    # its slots ends with step 3, so the gates of step 4 and later change how much it counts beside the others.
    first = 4 if forgetting else 8
    assert reached.tolist() == [False] * first + [True] * (12 - first)


def test_what_is_remembered_is_the_slots_and_not_what_is_known_of_them() -> None:
    """`memory/staleness` compares remembered slots; times in steps would drown them."""
    core, lstm = make_core(), ctrl.make_core("lstm", 3, width=4)
    state, other = core.initial_state(2), lstm.initial_state(2)
    assert [id(leaf) for leaf in core.remembered(state)] == [id(state.slots)]
    assert [id(leaf) for leaf in lstm.remembered(other)] == [id(leaf) for leaf in other]


def test_compressed_slots_are_read() -> None:
    """A change of a step that only a compressed slot still holds must change the output."""
    core = make_core(layers=1, forgetting=False)
    inputs = torch.randn(1, 14, 3)
    changed = inputs.clone()
    changed[0, 3] += 1.0
    before, after = (core.unroll(x, core.initial_state(1), no_reset(1, 14)).outputs for x in (inputs, changed))
    assert not torch.equal(before[0, 8], after[0, 8])  # slots 0 to 2 of tier 1 hold steps 0 to 5 at step 8
    assert torch.equal(before[0, 13], after[0, 13])  # by then slots 0 and 1, steps 0 to 3, are dropped


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "heads must divide width, got heads = 3 and width = 64; use heads = 2 or 4$"),
        ({"heads": 100}, "heads must divide width, got heads = 100 and width = 64; use heads = 64$"),
        ({"layers": 0}, "layers"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"reconstruction": "l2"}, "unknown reconstruction 'l2'.*attention_reconstruction"),
        ({"memory": [Tier(4), Tier(4, rate=2, compressor="zip")]}, "unknown compressor 'zip'.*conv.*max.*mean"),
        ({"memory": [Tier(4, compressor="zip")]}, "unknown compressor 'zip'.*conv.*max.*mean"),
        (
            {"memory": [Tier(2), Tier(4, 4, "conv")]},
            "tier 1 merges rate = 4 slots, but tier 0 has only slots = 2; .* use rate = 2, or slots = 4 for tier 0",
        ),
        ({"novelty_gain": -1.0}, "novelty_gain must be a finite number, at least 0, got -1.0"),
        ({"novelty_gain": math.inf}, "novelty_gain must be .* got inf"),
        ({"novelty_gain": "2"}, "novelty_gain must be .* got '2'"),
        (
            {"novelty_gain": 2.0, "memory": [Tier(8), Tier(8, 4, "conv")]},
            "novelty_gain = 2.0 needs a compressor that measures novelty.* use compressor 'surprise'",
        ),
        ({"widht": 3}, "does not take widht; its options are .*width.*; for widht use width$"),
        ({"dropout": 0.1}, "does not take dropout; .*, clock$"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctrl.make_core("compressive", 3, **options)


def test_a_registered_compressor_can_be_used_by_name() -> None:
    class First(ctrl.Compressor):
        def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
            return blocks[:, 0]

    if "first" not in ctrl.compressor_names():
        ctrl.register_compressor("first", First)
    with pytest.raises(ValueError, match="already"):
        ctrl.register_compressor("first", First)
    core = CompressiveCore(3, layers=2, width=8, heads=2, memory=[Tier(4), Tier(3, 2, "first")])
    state = core.initial_state(1)
    inputs = torch.randn(1, 7, 3)
    state = core.unroll(inputs, state, no_reset(1, 7)).state
    torch.testing.assert_close(state.slots[0, 4:6], core.embed(inputs[0, [0, 2]]))


def test_a_registered_compressor_starts_as_it_likes() -> None:
    class Silent(ctrl.Compressor):
        def __init__(self, width: int, rate: int) -> None:
            super().__init__(width, rate)
            self.linear = torch.nn.Linear(width, width)
            torch.nn.init.zeros_(self.linear.weight)

        def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
            return self.linear(blocks[:, 0])

    if "silent" not in ctrl.compressor_names():
        ctrl.register_compressor("silent", Silent)
    core = CompressiveCore(3, layers=2, width=8, heads=2, memory=[Tier(4), Tier(3, 2, "silent")])
    assert all(not parameter.any() for name, parameter in core.compressors.named_parameters() if "weight" in name)


def test_a_reach_of_millions_costs_no_more_memory() -> None:
    """Sixteen slots a tier reach back 17 million steps; no parameter or buffer may grow with the reach."""
    core = CompressiveCore(3, layers=1, width=8, heads=2, memory=[Tier(16), *[Tier(16, 16, "conv")] * 5])
    assert sum(tensor.numel() for tensor in [*core.parameters(), *core.buffers()]) < 10_000
    state = core.initial_state(2)._replace(clock=torch.tensor([5, 123_456_789]))
    inputs = torch.randn(2, 20, 3)
    unrolled = core.unroll(inputs, state, no_reset(2, 20))
    for t in range(20):
        outputs, state = core.step(inputs[:, t], state, no_reset(2, 20)[:, t])
        torch.testing.assert_close(outputs, unrolled.outputs[:, t], rtol=1e-4, atol=1e-5)


def test_empty_slots_are_hidden_from_a_step_however_far_it_can_see() -> None:
    """The reach is 2 ** 44 steps."""
    torch.manual_seed(0)
    core = CompressiveCore(3, layers=1, width=8, heads=2, memory=[Tier(16), *[Tier(16, 16, "conv")] * 10])
    scramble(core)
    inputs = torch.randn(2, 5, 3)
    expected = core.unroll(inputs, core.initial_state(2), no_reset(2, 5)).outputs
    acting = core.acting(core.initial_state(2))
    for t in range(5):
        found = acting.step(inputs[:, t], no_reset(2, 5)[:, t])
        torch.testing.assert_close(found, expected[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clock", [True, False])
def test_ages_that_training_has_not_met_count_as_the_oldest_that_it_has(clock: bool) -> None:
    """Among 9 steps the oldest age is 8. Biases of greater ages never learned, so they must have no effect."""
    torch.manual_seed(0)
    core = CompressiveCore(3, width=8, heads=2, memory=[Tier(12)], clock=clock)
    inputs, reset, state = torch.randn(2, 30, 3), torch.zeros(2, 30, dtype=torch.bool), core.initial_state(2)
    diagnostics = core.unroll(inputs[:, :9], state, reset[:, :9]).diagnostics
    state = core.unroll(inputs[:, :12], state, reset[:, :12]).state
    attention = core.layers[0].attention
    assert isinstance(attention, AgeAttention)
    with torch.no_grad():
        attention.age_bias.normal_()
    acting = core.acting(state)
    core.adapt({name: float(value) for name, value in diagnostics.items()})
    expected = core.unroll(inputs[:, 12:], state, reset[:, 12:]).outputs
    steps = [acting.step(inputs[:, t], reset[:, 0]) for t in range(12, 30)]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        attention.age_bias[:, 9:] = 100.0
    torch.testing.assert_close(core.unroll(inputs[:, 12:], state, reset[:, 12:]).outputs, expected)
    core.adapt({"longest_time": 10.0})
    assert not torch.allclose(core.unroll(inputs[:, 12:], state, reset[:, 12:]).outputs, expected)
    core.adapt({"longest_time": 3.0})  # must not lower it
    assert int(attention.oldest_bucket) == 10


def test_age_buckets_are_exact_then_four_per_doubling() -> None:
    ages = torch.tensor([0, 1, 31, 32, 39, 40, 47, 48, 55, 56, 63, 64, 79, 80, 128, 299, 10**6])
    assert age_bucket(ages).tolist() == [0, 1, 31, 32, 32, 33, 33, 34, 34, 35, 35, 36, 36, 37, 40, 44, 91]
    assert age_bucket(ages).tolist() == [bias_bucket(int(age)) for age in ages]
    assert masked_bucket((Tier(299),)) == 300 and masked_bucket((Tier(32), Tier(33, 8))) == 45


@pytest.mark.parametrize("amount", [2, 2.0, np.float32(2), np.int64(2)])
def test_amounts_may_be_any_real_numbers(amount: Any) -> None:
    core = ctrl.make_core("compressive", input_size=3, novelty_gain=amount)
    assert core.layers[0].attention.novelty.gain == 2  # type: ignore[union-attr]


def test_many_slots_whose_blocks_are_larger_are_read_alike() -> None:
    """A window of several larger blocks equals itself in pieces and step by step."""
    torch.manual_seed(0)
    core = CompressiveCore(3, width=8, heads=2, memory=[Tier(500), Tier(40, 3, "most_missed")]).double()
    inputs, reset = torch.randn(2, 150, 3, dtype=torch.float64), torch.zeros(2, 150, dtype=torch.bool)
    reset[1, 70] = True
    state = core.unroll(
        torch.randn(2, 640, 3, dtype=torch.float64), core.initial_state(2), reset.new_zeros(2, 640)
    ).state
    whole = core.unroll(inputs, state, reset)
    outputs, acting = [], core.acting(state)
    for first, last in ((0, 90), (90, 150)):
        part = core.unroll(inputs[:, first:last], state, reset[:, first:last])
        outputs.append(part.outputs)
        state = part.state
    acted = torch.stack([acting.step(inputs[:, t], reset[:, t]) for t in range(150)], dim=1)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole.outputs)
    torch.testing.assert_close(acted, whole.outputs)
