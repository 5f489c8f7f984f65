"""Compressors: the slot that each makes of a block, the losses that train it, and options that exclude each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ctrl
from ctrl import Tier
from ctrl.compressive.compressors import MostUsedCompressor, SurpriseCompressor, make_compressor
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.reconstruction import QUERY_STEPS

BLOCKS, RATE, WIDTH = 7, 5, 6
LEARNED = ("conv", "dilated_conv", "gru", "attention", "select")


def scrambled(name: str, rate: int = RATE) -> ctrl.Compressor:
    torch.manual_seed(0)
    compressor = make_compressor(name, WIDTH, rate)
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return compressor


def compress(compressor: ctrl.Compressor, blocks: Tensor) -> Tensor:
    importance = torch.linspace(0, 1, blocks.shape[1]).expand(len(blocks), -1) if compressor.uses_attention() else None
    slots: Tensor = compressor(blocks, importance)
    return slots


@pytest.mark.parametrize("rate", [1, 2, 5])
@pytest.mark.parametrize("name", ["mean", "conv", "dilated_conv", "gru", "attention"])
def test_starts_as_the_mean(name: str, rate: int) -> None:
    blocks = torch.randn(BLOCKS, rate, WIDTH)
    torch.testing.assert_close(compress(make_compressor(name, WIDTH, rate), blocks), blocks.mean(dim=1))


def test_max_is_taken_feature_by_feature() -> None:
    block = torch.tensor([[[1.0, -5.0], [0.5, -1.0]]])
    assert make_compressor("max", 2, 2)(block).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("rate", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", ["conv", "dilated_conv", "gru", "attention"])
def test_every_slot_of_the_block_has_a_say_and_no_other_block_has(name: str, rate: int) -> None:
    """The test subtracts the mean, to which every slot contributes in any case."""
    compressor = scrambled(name, rate)
    blocks = torch.randn(BLOCKS, rate, WIDTH, requires_grad=True)
    (gradient,) = torch.autograd.grad((compress(compressor, blocks) - blocks.mean(dim=1))[3].sum(), blocks)
    heard = gradient.abs().sum(dim=2) > 1e-6  # the rest of the mean's own gradient is rounding
    assert heard[3].all() and not heard[[0, 1, 2, 4, 5, 6]].any()


def test_gru_by_hand() -> None:
    """The slot is the mean plus the output of a GRU that reads the block from the oldest slot on."""
    compressor, blocks = scrambled("gru"), torch.randn(BLOCKS, RATE, WIDTH)
    hidden = torch.zeros(BLOCKS, WIDTH)
    for place in range(RATE):
        hidden = torch.gru_cell(blocks[:, place], hidden, *compressor.rnn._flat_weights)  # type: ignore[union-attr, misc, arg-type]
    expected = blocks.mean(dim=1) + hidden @ compressor.output.weight.T + compressor.output.bias  # type: ignore[union-attr, operator]
    torch.testing.assert_close(compress(compressor, blocks), expected)


@pytest.mark.parametrize("name", ["conv", "dilated_conv", "gru", "attention"])
def test_learned_ones_tell_the_order(name: str) -> None:
    compressor, blocks = scrambled(name), torch.randn(BLOCKS, RATE, WIDTH)
    assert not torch.allclose(compress(compressor, blocks), compress(compressor, blocks.flip(1)), atol=1e-3)


def by_hand(compressor: ctrl.Compressor, blocks: Tensor) -> Tensor:
    distance = (blocks - blocks.mean(dim=1, keepdim=True)).norm(dim=2) ** 2
    return 4 * distance / distance.mean(dim=1, keepdim=True) + blocks @ compressor.learned.weight[0]  # type: ignore[union-attr, operator]


def test_select_keeps_the_slot_with_the_highest_score_as_it_is() -> None:
    compressor, blocks = scrambled("select"), torch.randn(BLOCKS, RATE, WIDTH)
    best = by_hand(compressor, blocks).argmax(dim=1)
    assert len(best.unique()) > 1
    for way in (torch.no_grad, torch.enable_grad):
        with way():
            assert torch.equal(compressor(blocks), blocks[torch.arange(BLOCKS), best])


def test_select_keeps_the_odd_one_out_at_first_through_any_number_of_tiers() -> None:
    torch.manual_seed(2)
    slots = torch.randn(WIDTH) + 0.1 * torch.randn(125, WIDTH)
    slots[37] += 3.0
    compressed = slots
    for _ in range(3):
        compressed = make_compressor("select", WIDTH, 5)(compressed.view(-1, 5, WIDTH))
    assert torch.equal(compressed, slots[37:38])


def test_the_gradient_of_select_is_that_of_the_soft_choice() -> None:
    compressor, blocks = scrambled("select"), torch.randn(BLOCKS, RATE, WIDTH)
    weight = compressor.learned.weight  # type: ignore[union-attr]
    projection = torch.randn(BLOCKS, WIDTH)
    (found,) = torch.autograd.grad((compressor(blocks) * projection).sum(), weight)
    soft = torch.einsum("nm,nmd->nd", by_hand(compressor, blocks).softmax(dim=1), blocks)
    (expected,) = torch.autograd.grad((soft * projection).sum(), weight)
    torch.testing.assert_close(found, expected)


def test_most_used_keeps_the_slot_that_was_used_most() -> None:
    blocks = torch.randn(2, 3, WIDTH)
    importance = torch.tensor([[0.1, 0.0, 0.4], [2.0, 0.3, 1.9]])
    assert torch.equal(MostUsedCompressor(WIDTH, 3)(blocks, importance), blocks[[0, 1], [2, 0]])
    with pytest.raises(ValueError, match="importance must be given: MostUsedCompressor ranks"):
        MostUsedCompressor(WIDTH, 3)(blocks)


def test_surprise_weights_slots_by_the_sixth_power_of_their_novelty() -> None:
    """Novelties 1, 2 and 1 give weights 1, 64 and 1."""
    compressor, blocks = SurpriseCompressor(WIDTH, 3), torch.randn(1, 3, WIDTH)
    expected = (blocks[:, 0] + 64 * blocks[:, 1] + blocks[:, 2]) / 66
    for scale in (1.0, 1e-3, 1e3):
        found = compressor(blocks, scale * torch.tensor([[1.0, 2.0, 1.0]]))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compressor(blocks, torch.zeros(1, 3)), blocks.mean(dim=1))  # nothing is unusual
    with pytest.raises(ValueError, match="importance must be given: SurpriseCompressor weights"):
        compressor(blocks)


@pytest.mark.parametrize("name", ctrl.compressor_names())
def test_decoders_have_the_shape_of_blocks(name: str) -> None:
    decoder = make_compressor(name, WIDTH, RATE).decoder()
    slots = torch.randn(BLOCKS, WIDTH)
    torch.testing.assert_close(decoder(slots), slots[:, None].expand(BLOCKS, RATE, WIDTH))


def test_what_is_registered_must_be_a_compressor() -> None:
    if "not one" not in ctrl.compressor_names():
        ctrl.register_compressor("not one", lambda width, rate: torch.nn.Linear(width, rate))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"compressor 'not one' must be a ctrl\.Compressor, got Linear"):
        ctrl.make_core("compressive", 3, memory=[Tier(4), Tier(4, 2, "not one")])
    del ctrl.compressive.compressors._COMPRESSORS["not one"]


@pytest.mark.parametrize(("name", "factory"), [(7, ctrl.compressive.compressors.MeanCompressor), ("a number", 7)])
def test_what_is_registered_must_have_a_name_and_be_callable(name: Any, factory: Any) -> None:
    with pytest.raises(ValueError, match=f"name must be a text and factory a class or function, got {name!r} and"):
        ctrl.register_compressor(name, factory)
    assert name not in ctrl.compressive.compressors._COMPRESSORS


class MeanWithoutUsage(ctrl.compressive.compressors.MeanCompressor):
    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        return super().forward(blocks) if importance is None else torch.full_like(blocks[:, 0], 9.0)


def test_only_compressors_that_ask_for_attention_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compressor that does not ask for it has its own tier, after one whose compressor ranks slots."""
    monkeypatch.setitem(ctrl.compressive.compressors._COMPRESSORS, "without", MeanWithoutUsage)
    core = build(memory=[Tier(3), Tier(4, 2, "most_used"), Tier(2, 3, "without")])
    inputs, reset = window()
    state = core.initial_state(2)
    unrolled = core.unroll(inputs, state, reset)
    acting = core.acting(state)
    for t in range(inputs.shape[1]):
        acted = acting.step(inputs[:, t], reset[:, t])
        torch.testing.assert_close(acted, unrolled.outputs[:, t], rtol=1e-4, atol=1e-5)


# What trains them


def build(compressor: str = "conv", **options: Any) -> CompressiveCore:
    torch.manual_seed(options.pop("seed", 0))
    memory = options.pop("memory", [Tier(4), Tier(3, 3, compressor), Tier(4, 2, compressor)])
    core = CompressiveCore(3, width=8, heads=2, memory=memory, **{"layers": 1, **options})
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return core


def window(length: int = 40, batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, length, 3), torch.zeros(batch, length, dtype=torch.bool)


@pytest.mark.parametrize("loss", ["attention_reconstruction", "auto_encoding"])
@pytest.mark.parametrize("name", LEARNED)
def test_each_loss_trains_each_learned_compressor(name: str, loss: str) -> None:
    core = build(name, reconstruction=loss, seed=1)
    inputs, reset = window()
    steps, rate = (150, 3e-3) if name == "select" else (60, 1e-2)  # a hard choice jumps from slot to slot
    optimizer = torch.optim.Adam(core.compression_parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        unrolled = core.unroll(inputs, core.initial_state(2), reset)
        losses.append(unrolled.reconstruction_loss.item())
        optimizer.zero_grad()
        unrolled.reconstruction_loss.backward()
        optimizer.step()
    assert min(losses[-20:]) < (0.9 if name == "select" else 0.7) * losses[0]


def test_auto_encoding_by_hand() -> None:
    core = build(memory=[Tier(3), Tier(3, 2, "conv")], reconstruction="auto_encoding")
    inputs, reset = window(length=7)
    reset[1, 3] = True  # env 0 evicts steps (0, 1), (2, 3), (4, 5); env 1 only, later, steps (3, 4)
    loss = core.unroll(inputs, core.initial_state(2), reset).reconstruction_loss
    slots = core.embed(inputs)
    blocks = torch.stack([slots[0, 0:2], slots[0, 2:4], slots[1, 3:5]])
    # At step 6 env 0 has 7 steps for 3 slots, so it has evicted 4; env 1 has 4 steps, and has evicted 2.
    decoded = (core.compressors[0][0](blocks) @ core.decoders[0][0].weight).view(3, 2, 8)  # type: ignore[index]
    torch.testing.assert_close(loss, (decoded - blocks).square().mean())


class OwnDecoder(torch.nn.Module):
    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.places = torch.nn.Parameter(torch.randn(rate, width))

    def forward(self, slots: Tensor) -> Tensor:
        return slots[:, None] * self.places


class WithDecoder(ctrl.compressive.compressors.ConvCompressor):
    def decoder(self) -> torch.nn.Module:
        return OwnDecoder(self.width, self.rate)


def test_a_compressors_own_decoder_is_what_is_used_and_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ctrl.compressive.compressors._COMPRESSORS, "with decoder", WithDecoder)
    core = build(memory=[Tier(3), Tier(3, 2, "with decoder")], reconstruction="auto_encoding")
    inputs, reset = window(length=7, batch=1)
    decoder = core.decoders[0][0]  # type: ignore[index]
    assert isinstance(decoder, OwnDecoder)
    places = decoder.places
    assert any(places is parameter for parameter in core.compression_parameters())
    loss = core.unroll(inputs, core.initial_state(1), reset).reconstruction_loss
    blocks = core.embed(inputs[0, :4]).view(2, 2, 8).detach()  # by step 6 the four oldest of 7 steps have left 3 slots
    decoded = core.compressors[0][0](blocks)[:, None] * places  # type: ignore[index]
    expected = (decoded - blocks).square().mean()
    torch.testing.assert_close(loss, expected)
    (found, wanted) = (torch.autograd.grad(of, places)[0] for of in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    core = build(layers=2, memory=[Tier(4), Tier(3, 3, "conv"), Tier(4, 2, "conv")])
    inputs, reset = window()
    unrolled = core.unroll(inputs, core.initial_state(2), reset)
    places = [f"layer{layer}/tier{tier}" for layer in range(2) for tier in (1, 2)]
    parts = [unrolled.diagnostics[f"reconstruction_loss/{place}"] for place in places]
    assert len({round(part.item(), 6) for part in parts}) == 4 and min(parts) > 0
    torch.testing.assert_close(unrolled.reconstruction_loss, torch.stack(parts).sum())


def test_what_is_read_within_blocks_is_compared_block_by_block() -> None:
    """The expected loss is computed by hand for one head: each step of the window queries each block alone."""
    torch.manual_seed(3)
    core = CompressiveCore(3, layers=1, width=4, heads=1, memory=[Tier(2), Tier(3, 2, "conv")])
    inputs, reset = window(length=6, batch=1)
    (tiers,) = core.explain(inputs, core.initial_state(1), reset).layers
    attention, slots = core.layers[0].attention, core.embed(inputs[0])
    query = attention.query(attention.norm(slots))  # type: ignore[union-attr, operator]
    for block in range(2):
        old = slots[2 * block : 2 * block + 2]
        new = core.compressors[0][0](old[None])  # type: ignore[index]
        key, value = attention.key_value(attention.norm(old)).chunk(2, dim=-1)  # type: ignore[union-attr, operator]
        before = (query @ key.T / math.sqrt(4)).softmax(dim=-1) @ value
        after = attention.key_value(attention.norm(new)).chunk(2, dim=-1)[1]  # type: ignore[union-attr, operator]
        expected = (before - after).square().sum() / before.square().sum()
        torch.testing.assert_close(tiers[1].error[0, 1 + block], expected)  # formed at steps 2 and 4
    assert tiers[1].error.shape == (1, 3) and tiers[1].error[0, 0].isnan() and tiers[0].error.shape == (1, 0)


def test_the_reconstruction_error_is_a_share_of_what_is_read() -> None:
    inputs, reset = window()
    for memory, low, high in (([Tier(4), Tier(6, 1, "conv")], 0.0, 1e-10), ([Tier(4), Tier(6, 3, "conv")], 0.01, 2.0)):
        core = CompressiveCore(3, width=8, heads=2, layers=1, memory=memory, reconstruction="none")
        unrolled = core.unroll(inputs, core.initial_state(2), reset, diagnose=True)
        assert low <= unrolled.diagnostics["reconstruction_error/layer0/tier1"].item() <= high
        assert "reconstruction_loss/layer0/tier1" not in unrolled.diagnostics


def test_no_reconstruction_error_where_nothing_is_compressed() -> None:
    core = CompressiveCore(3, width=8, heads=2, memory=[Tier(4), Tier(6, 3, "conv"), Tier(2, 2, "conv")])
    inputs, _ = window(length=30)
    reset = torch.arange(30).expand(2, 30) % 8 == 0  # tier 1 forms slots in episodes of 8 steps, tier 2 none
    diagnostics = core.unroll(inputs, core.initial_state(2), reset, diagnose=True).diagnostics
    assert [name for name in diagnostics if "error" in name] == ["reconstruction_error/layer0/tier1"]
    assert diagnostics["reconstruction_loss/layer0/tier2"] == 0.0


def test_no_loss_is_computed_that_nothing_learns_from_unless_asked_for() -> None:
    inputs, reset = window(length=30)
    memory = [Tier(4), Tier(6, 3, "most_used")]
    for asked, found in ((None, []), ("attention_reconstruction", ["reconstruction_loss/layer0/tier1"])):
        core = CompressiveCore(3, width=8, heads=2, memory=memory, reconstruction=asked)
        unrolled = core.unroll(inputs, core.initial_state(2), reset, diagnose=True)
        assert [name for name in unrolled.diagnostics if "_loss" in name] == found
        assert "reconstruction_error/layer0/tier1" in unrolled.diagnostics


def test_the_task_trains_compressors_through_what_is_formed_and_attended_in_the_window() -> None:
    core = build(compression_gradient="task")
    assert core.compression_parameters() == []
    inputs, reset = window()
    start = core.initial_state(2)

    def reached(length: int) -> list[bool]:
        core.zero_grad()
        unrolled = core.unroll(inputs[:, :length], start, reset[:, :length])
        assert unrolled.reconstruction_loss.item() == 0
        unrolled.outputs.square().sum().backward()
        gradients = [core.compressors[0][tier].weight.grad for tier in range(2)]  # type: ignore[index]
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    # Slot 0 of tier 1 is formed at step 4, slot 0 of tier 2 at step 4 + 3 * 3.
    assert [reached(length) for length in (4, 5, 13, 14)] == [[False] * 2, [True, False], [True, False], [True, True]]


def test_the_gradient_of_the_task_stops_at_the_block() -> None:
    """Compressed slots carry no gradient, so it reaches inputs only through the raw slots."""
    core = build(memory=[Tier(4), Tier(3, 2, "conv")], compression_gradient="task", forgetting=False)
    inputs, reset = window(length=12, batch=1)
    inputs.requires_grad_()
    outputs = core.unroll(inputs, core.initial_state(1), reset).outputs
    (gradient,) = torch.autograd.grad(outputs[0, 11].sum(), inputs)
    assert (gradient[0].abs().sum(dim=1) > 0).tolist() == [False] * 8 + [True] * 4


def test_questions_are_bounded() -> None:
    core = build()
    _, reset = window(length=QUERY_STEPS * 3 + 1)
    (plan,) = core.plan(core.initial_state(2), reset).values()
    assert all(query_mask.shape[1] <= QUERY_STEPS for query_mask in plan.query_masks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compression_gradient": "both"}, "unknown compression_gradient 'both'.*'reconstruction', 'task'"),
        (
            {"compression_gradient": "task", "reconstruction": "auto_encoding"},
            "task loss alone.*reconstruction is 'auto_encoding'; use reconstruction='none'",
        ),
        (
            {"compression_gradient": "task", "memory": [Tier(4), Tier(4, 2, "mean")]},
            "compression_gradient='task' needs compressors with something to train.*'mean'; use compressor 'conv', or "
            "compression_gradient='reconstruction'",
        ),
        ({"compression_gradient": "task", "memory": [Tier(4)]}, "something to train, but memory has none at all"),
        (
            {"reconstruction": "auto_encoding", "memory": [Tier(4), Tier(4, 2, "most_used")]},
            "reconstruction='auto_encoding' needs compressors with something to train.*'most_used'; use compressor "
            "'conv', or reconstruction='attention_reconstruction'",
        ),
        *(
            (
                {"reconstruction": loss, "layers": 2, "memory": [Tier(4)]},
                f"reconstruction='{loss}' needs a compressed tier, but memory has none; use reconstruction='none'",
            )
            for loss in ("attention_reconstruction", "auto_encoding")
        ),
        ({"reconstruction": ["none"]}, r"unknown reconstruction \['none'\]; valid are 'attention_reconstruction'"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctrl.make_core("compressive", 3, **options)
