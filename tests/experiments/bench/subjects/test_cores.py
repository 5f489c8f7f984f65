from __future__ import annotations

import ctrl
from ctrl import Tier
from ctrl.compressive.schedule import count_slots
from ctrl.experiments.bench.subjects.cores import parameters_of, warm_state


def test_warm_states_are_full_and_out_of_step() -> None:
    tiers = (Tier(5), Tier(3, 2, "mean"))
    core = ctrl.make_core("compressive", 3, width=8, heads=2, memory=list(tiers))
    state = warm_state(core, 6)
    core.check_state(state, 6)
    for tier, counts in zip(tiers, count_slots(tiers, state.clock), strict=True):
        assert (counts.created - counts.evicted > tier.slots - 2).all()
    assert len(set(state.clock.tolist())) == 6
    assert len(set((state.clock % 2).tolist())) == 2
    assert state.slots.abs().sum(dim=2).gt(0).all()


def test_other_cores_start_as_they_do() -> None:
    core = ctrl.make_core("lstm", 3, width=4)
    assert all((leaf == 0).all() for leaf in warm_state(core, 2))
    assert parameters_of(core) == 4 * 4 * (3 + 4 + 2)
