"""Method `core.explain`: the slots that each step of a window attends to."""

from __future__ import annotations

import torch
from torch import Tensor

import ctrl
from ctrl import Tier
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.schedule import count_slots

MEMORY = [[Tier(6), Tier(3, 3, "conv"), Tier(4, 2, "conv")], [Tier(5), Tier(7, 2, "most_used")]]
BATCH, LENGTH = 3, 75


def explained() -> tuple[CompressiveCore, Tensor, object, Tensor]:
    torch.manual_seed(0)
    core = CompressiveCore(4, layers=2, width=6, heads=3, memory=MEMORY)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    reset[0, [0, 31]] = True
    reset[2, [9]] = True
    before = torch.zeros(BATCH, 29, dtype=torch.bool)
    state = core.unroll(torch.randn(BATCH, 29, 4), core.initial_state(BATCH), before).state
    return core, torch.randn(BATCH, LENGTH, 4), state, reset


def test_outputs_are_those_of_the_unroll_and_weights_sum_to_one() -> None:
    core, inputs, state, reset = explained()
    found = core.explain(inputs, state, reset)  # type: ignore[arg-type]
    unrolled = core.unroll(inputs, state, reset, diagnose=True)  # type: ignore[arg-type]
    assert torch.equal(found.outputs, unrolled.outputs) and not found.outputs.requires_grad
    for number, tiers in enumerate(found.layers):
        total = sum(tier.attention.sum(dim=3) for tier in tiers)
        torch.testing.assert_close(total, torch.ones(BATCH, 3, LENGTH))
        for at, tier in enumerate(tiers):
            mass = tier.attention.sum(dim=3).mean()
            torch.testing.assert_close(unrolled.diagnostics[f"attention_mass/layer{number}/tier{at}"], mass)
            assert not tier.attention[(tier.age < 0)[:, None].expand_as(tier.attention)].any()


def test_each_step_sees_just_the_slots_and_ages_that_the_timeline_gives_it() -> None:
    core, inputs, state, reset = explained()
    found = core.explain(inputs, state, reset)  # type: ignore[arg-type]
    for env in range(BATCH):
        time = 29
        for t in range(LENGTH):
            time = 0 if reset[env, t] else time
            for tiers, layer in zip(core.tiers, found.layers, strict=True):
                for (created, evicted), tier in zip(count_slots(tiers, torch.tensor(time + 1)), layer, strict=True):
                    ages = tier.age[env, t]
                    assert ages.dtype == torch.int64
                    expected = [time - k * tier.span - tier.span // 2 for k in range(int(evicted), int(created))]
                    assert sorted(ages[ages >= 0].tolist(), reverse=True) == expected
            time += 1


def test_weights_are_those_of_each_head_by_hand() -> None:
    """One layer with two heads. At step 6, steps 4 to 6 are raw slots; two slots hold steps 0 and 1, and 2 and 3."""
    torch.manual_seed(0)
    memory = [Tier(3), Tier(4, 2, "conv")]
    core = CompressiveCore(4, layers=1, width=6, heads=2, memory=memory, forgetting=False, clock=False)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inputs, reset = torch.randn(1, 7, 4), torch.zeros(1, 7, dtype=torch.bool)
    (raw, compressed) = core.explain(inputs, core.initial_state(1), reset).layers[0]
    attention, steps = core.layers[0].attention, core.embed(inputs[0])
    merged = core.compressors[0][0](steps[:4].view(2, 2, 6))  # type: ignore[index]
    slots, ages = torch.cat([steps[4:], merged]), torch.tensor([2, 1, 0, 5, 3])
    keys = attention.key_value(attention.norm(slots))[:, :6]  # type: ignore[union-attr, operator]
    query = attention.query(attention.norm(steps[6]))  # type: ignore[union-attr, operator]
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        scores = keys[:, part] @ query[part] / 3**0.5 + attention.age_biases()[head, ages]  # type: ignore[union-attr, operator]
        found = [tier.attention[0, head, 6][tier.age[0, 6] >= 0] for tier in (raw, compressed)]
        torch.testing.assert_close(torch.cat(found), scores.softmax(dim=0).detach())


def test_errors_are_there_for_just_the_blocks_that_were_compressed() -> None:
    core, inputs, state, reset = explained()
    for tiers in core.explain(inputs, state, reset).layers:  # type: ignore[arg-type]
        for tier in tiers[1:]:
            seen = (tier.age >= 0).any(dim=1)[:, -tier.error.shape[1] :]
            assert torch.equal(~tier.error.isnan(), seen)
            assert (tier.error[seen] > 0).all()
            assert (tier.formed[:, -tier.error.shape[1] :][seen] >= 0).all()


def test_a_slot_that_is_formed_from_equal_slots_loses_nothing() -> None:
    core = ctrl.make_core("compressive", 4, layers=1, width=6, heads=3, memory=[Tier(3), Tier(5, 3, "conv")])
    inputs, reset = torch.ones(2, 12, 4), torch.zeros(2, 12, dtype=torch.bool)
    (tiers,) = core.explain(inputs, core.initial_state(2), reset).layers  # type: ignore[operator]
    error = tiers[1].error[:, 1:]  # none is formed in steps 0 to 2
    torch.testing.assert_close(error, torch.zeros(2, 3), atol=1e-6, rtol=0)
