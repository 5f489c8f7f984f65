"""Novelty of slots: compared with the formula, trained by the core's own loss, and used to choose slots to keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ctrl
from ctrl import Tier
from ctrl.compressive.attention.novelty import Novelty
from ctrl.compressive.core import CompressiveCore

WIDTH = 6


def inputs_of(rare: float) -> tuple[Tensor, Tensor]:
    """Return three usual inputs and one with probability `rare`, [4, D], and the probability of each, [4]."""
    torch.manual_seed(0)
    often = (1 - rare) / 3
    return torch.randn(4, WIDTH), torch.tensor([often, often, often, rare])


def trained(inputs: Tensor, often: Tensor) -> Novelty:
    """Return a `Novelty` that minimises the expected loss."""
    novelty = Novelty(WIDTH)
    optimizer = torch.optim.LBFGS(novelty.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    counts = (1000 * often).round().int()
    drawn = inputs.repeat_interleave(counts, dim=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = novelty.loss(novelty(drawn))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return novelty


def normed(inputs: Tensor) -> Tensor:
    centred = inputs - inputs.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()


def test_what_is_left_is_that_of_the_best_denoising_map() -> None:
    """The remainder is r (S + r)⁻¹ x, where S are the second moments."""
    inputs, often = inputs_of(rare=0.02)
    rows = normed(inputs)
    moments = torch.einsum("n,nd,ne->de", often, rows, rows)
    noise = Novelty.NOISE * torch.eye(WIDTH)
    left = Novelty.NOISE * torch.linalg.solve(moments + noise, rows.T).T
    found = trained(inputs, often)(inputs)
    torch.testing.assert_close(found, left.square().mean(dim=1), rtol=1e-2, atol=1e-3)
    assert found[3] > 5 * found[:3].max()


def test_at_first_all_are_as_unusual() -> None:
    torch.testing.assert_close(Novelty(WIDTH)(100 * torch.randn(2, 5, WIDTH)), torch.ones(2, 5), rtol=1e-3, atol=0.0)


def test_its_loss_reaches_the_map_alone_and_emphasis_nothing() -> None:
    novelty, inputs = Novelty(WIDTH), torch.randn(7, WIDTH, requires_grad=True)
    novelty.loss(novelty(inputs)).backward()  # type: ignore[no-untyped-call]
    assert novelty.rebuild.grad is not None and novelty.rebuild.grad.any() and inputs.grad is None
    emphasis = novelty.emphasis(novelty(inputs))
    assert emphasis is not None and not emphasis.requires_grad


def test_what_is_unusual_counts_more() -> None:
    """The factor is 1 + gain if the map rebuilds nothing of a slot, and 1 if it rebuilds all of it, for any norm."""
    torch.manual_seed(0)
    novelty = Novelty(4, gain=3.0)
    with torch.no_grad():
        novelty.rebuild[:2, :2] = torch.eye(2)
    slots = torch.tensor([[9.0, -9.0, 0.0, 0.0], [0.0, 0.0, 5.0, -5.0], [8.0, -8.0, 8.0, -8.0]])
    found = novelty.emphasis(novelty(slots.requires_grad_()))
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0, 2.5]))
    assert found is not None and not found.requires_grad


def test_what_is_rare_is_read_from_the_beginning() -> None:
    """Once the usual inputs are known, a single rare input among many changes the output of untrained heads."""
    changes = {}
    for gain in (0.0, Novelty.GAIN):
        torch.manual_seed(3)
        core = CompressiveCore(7, width=16, heads=2, memory=[Tier(40), Tier(2, 2, "most_missed")], novelty_gain=gain)
        inputs, _, reset = rarely(core)
        optimizer = torch.optim.Adam(core.compression_parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = core.unroll(inputs, core.initial_state(len(inputs)), reset).reconstruction_loss
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        reads = [last_read(core, inputs, reset, rare) for rare in (inputs[:, 3], inputs[:, 2])]
        changes[gain] = float((reads[0] - reads[1]).norm() / reads[1].norm())
    assert changes[Novelty.GAIN] > 1.5 * changes[0.0] > 0


def last_read(core: CompressiveCore, inputs: Tensor, reset: Tensor, rare: Tensor) -> Tensor:
    """Return the attention output of the last step if step 3 is `rare`, [B, D]."""
    changed = inputs.clone()
    changed[:, 3] = rare
    reads: list[Tensor] = []
    hook = core.layers[0].attention.register_forward_hook(lambda *passed: reads.append(passed[-1].outputs[:, -1]))
    core.unroll(changed, core.initial_state(len(changed)), reset)
    hook.remove()
    return reads[-1].detach()


def test_the_reconstruction_loss_compares_what_attention_reads() -> None:
    """In the keys and values novel slots count more; all weights of the attention are held fixed."""
    torch.manual_seed(0)
    core = CompressiveCore(3, width=8, heads=4, memory=[Tier(4), Tier(3, 2, "most_missed")])
    attention = core.layers[0].attention
    torch.nn.init.normal_(attention.novelty.rebuild)
    torch.nn.init.normal_(attention.key_value.bias)
    passes: list[tuple[Tensor, Tensor]] = []
    attention.register_forward_hook(lambda _, given, attended: passes.append((given[0], attended.keys_values.joined())))
    inputs = torch.randn(2, 5, 3)
    core.unroll(inputs, core.initial_state(2), torch.zeros(2, 5, dtype=torch.bool))
    normed, keys_values = passes[-1]
    slots = core.embed(inputs).detach().requires_grad_()
    torch.testing.assert_close(attention.norm.without_weights(slots), normed)
    found = attention.fixed_keys_values(slots)
    torch.testing.assert_close(found, keys_values[:, 4:9])
    found.square().sum().backward()  # type: ignore[no-untyped-call]
    assert slots.grad is not None and all(parameter.grad is None for parameter in attention.parameters())


def test_acting_follows_the_map() -> None:
    """Cached keys and values are those of the current map."""
    torch.manual_seed(0)
    core = CompressiveCore(3, width=WIDTH, heads=2, memory=[Tier(4), Tier(3, 2, "most_missed")])
    inputs, reset = torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool)
    acting, novelty = core.acting(core.initial_state(2)), core.novelty_of(0)
    assert novelty is not None
    for t in range(8):
        acting.step(inputs[:, t], reset[:, t])
    state = acting.state()
    with torch.no_grad():
        novelty.rebuild.normal_()
    expected = core.unroll(inputs[:, 8:], state, reset[:, 8:]).outputs[:, 0]
    torch.testing.assert_close(acting.step(inputs[:, 8], reset[:, 8]), expected)


def test_what_another_episode_left_does_no_harm() -> None:
    inputs = torch.tensor([[3e38] * 3 + [-3e38] * 3, [torch.nan] * 6, [torch.inf] * 6, [0.0] * 6])
    novelty = Novelty(WIDTH)
    assert novelty(inputs).isfinite().all() and novelty.loss(novelty(inputs)).isfinite()


def rarely(core: CompressiveCore, steps: int = 40, batch: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [B, T, I] of five kinds, of which the last comes once, at step 3; that kind; and no resets."""
    torch.manual_seed(1)
    kinds = torch.randn(5, core.input_size)
    inputs = kinds[torch.randint(4, (batch, steps))]
    inputs[:, 3] = kinds[4]
    return inputs, kinds[4], torch.zeros(batch, steps, dtype=torch.bool)


def kept(core: CompressiveCore, inputs: Tensor, kind: Tensor, reset: Tensor, tolerance: float) -> float:
    """Return the share of episodes in which the last tier has kept the rare input, to `tolerance` of its size."""
    slots = core.unroll(inputs, core.initial_state(len(inputs)), reset).state.slots[:, -2:]
    rare = core.embed(kind)
    there = (slots - rare).norm(dim=2) < tolerance * rare.norm()
    return float(there.any(dim=1).float().mean())


def test_what_is_rare_goes_through_all_tiers_once_the_usual_is_known() -> None:
    """The novelty's own loss is enough; no task asks for the input. Attention alone keeps it in few or no episodes.

    The gain is 0, because untrained heads may also look away from slots that count more.
    """
    shares = {}
    for compressor in ("most_used", "most_missed", "surprise"):
        torch.manual_seed(5)
        memory = [Tier(4), Tier(4, 4, compressor), Tier(2, 4, compressor)]
        core = CompressiveCore(7, width=16, heads=2, memory=memory, novelty_gain=0.0)
        inputs, kind, reset = rarely(core)
        optimizer = torch.optim.Adam(core.compression_parameters() or [torch.zeros(1, requires_grad=True)], lr=1e-2)
        for _ in range(150):
            loss = core.unroll(inputs, core.initial_state(len(inputs)), reset).reconstruction_loss
            if loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        mixes = compressor == "surprise"  # the others keep a slot as it is
        shares[compressor] = kept(core, inputs, kind, reset, tolerance=0.05 if mixes else 1e-5)
    assert shares["most_missed"] == shares["surprise"] == 1.0 > 0.5 > shares["most_used"]


def test_the_loss_is_told_by_layer_and_only_where_a_compressor_asks_for_novelty() -> None:
    memory = [[Tier(4), Tier(3, 2, "most_missed")], [Tier(4), Tier(3, 2, "most_used")]]
    core = CompressiveCore(3, layers=2, width=8, heads=2, memory=memory)
    unrolled = core.unroll(torch.randn(2, 5, 3), core.initial_state(2), torch.zeros(2, 5, dtype=torch.bool))
    assert [name for name in unrolled.diagnostics if "_loss" in name] == ["reconstruction_loss/layer0/novelty"]
    assert [id(parameter) for parameter in core.compression_parameters()] == [
        id(core.layers[0].attention.novelty.rebuild)
    ]
    assert unrolled.reconstruction_loss.item() > 0


class Newest(ctrl.Compressor):
    """Compressor that keeps the slot with the largest novelty, without regard to attention."""

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        assert importance is not None
        return blocks[torch.arange(len(blocks)), importance.argmax(dim=1)]

    def uses_novelty(self) -> bool:
        return True


def test_a_registered_compressor_may_go_by_novelty_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ctrl.compressive.compressors._COMPRESSORS, "newest", Newest)
    core = CompressiveCore(3, layers=1, width=WIDTH, heads=2, memory=[Tier(4), Tier(3, 2, "newest")])
    novelty = core.novelty_of(0)
    assert novelty is not None
    torch.nn.init.normal_(novelty.rebuild)
    assert core.initial_state(1).importance.shape == (1, 0)
    inputs = torch.randn(1, 5, 3)
    state = core.unroll(inputs, core.initial_state(1), torch.zeros(1, 5, dtype=torch.bool)).state
    embedded = core.embed(inputs[0, :2])
    left = normed(embedded) - normed(embedded) @ novelty.rebuild
    torch.testing.assert_close(state.slots[0, 4], embedded[left.square().sum(dim=1).argmax()])


class TestHeadsThatBeginWithTheUnusual:
    """Heads whose scores start as larger, the more unusual a slot is."""

    def weights(self, *, gain: float | None = None, heads: int = 4) -> Tensor:
        """Return [H, 9] attention of the last of 9 steps, of which one before it and itself are unusual."""
        torch.manual_seed(0)
        core = ctrl.make_core("compressive", 3, width=16, heads=heads, novelty_gain=gain, clock=True, forgetting=True)
        inputs = torch.zeros(1, 9, 3)
        inputs[:, :, 0] = 1.0
        inputs[0, 2] = torch.tensor([0.0, 1.0, 0.0])
        inputs[0, 8] = torch.tensor([0.0, 0.0, 1.0])
        usual = torch.nn.functional.layer_norm(core.embed(inputs[0, :1]), (16,)).detach()
        with torch.no_grad():  # the measure has learned the usual step
            core.novelty_of(0).rebuild.copy_(usual.t() @ usual / usual.square().sum())
        explained = core.explain(inputs, core.initial_state(1), torch.zeros(1, 9, dtype=torch.bool))
        return explained.layers[0][0].attention[0, :, -1, -9:]

    def test_second_quarter_attends_to_the_unusual_but_not_to_the_step_itself(self) -> None:
        weights = self.weights()
        assert weights[1].argmax() == 2 and weights[1, 2] > 0.5 and weights[1, 8] < 0.05

    def test_without_a_gain_there_is_no_such_head(self) -> None:
        attention = ctrl.make_core("compressive", 3, width=16, novelty_gain=0.0).layers[0].attention
        assert attention.key_value.bias is None and not attention.query.bias.any()
        assert self.weights(gain=0.0)[1, 2] < 0.5

    def test_other_heads_and_fewer_than_four_have_no_bias(self) -> None:
        attention = ctrl.make_core("compressive", 3, width=16).layers[0].attention
        assert attention.query.bias.tolist() == attention.key_value.bias[:16].tolist() == [0] * 4 + [1] * 4 + [0] * 8
        assert not attention.key_value.bias[16:].any()
        attention = ctrl.make_core("compressive", 3, width=6, heads=3).layers[0].attention
        assert attention.key_value.bias is None and not attention.query.bias.any()
