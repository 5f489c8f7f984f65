from __future__ import annotations

from functools import partial

import pytest
import torch
from rich.console import Console

import ctrl
from ctrl import Tier
from ctrl.compressive.schedule import count_slots
from ctrl.experiments.bench.turns import (
    count,
    framed,
    number_of,
    range_text,
    ratio,
    ratio_text,
    ratios,
    seconds_per_call,
    shower,
    summarise,
    take_turns,
    use_threads,
    warm_state,
)
from ctrl.experiments.report import provenance


def test_turns_are_interleaved() -> None:
    order: list[str] = []
    shown: list[tuple[int, str, int]] = []

    def work(name: str) -> int:
        order.append(name)
        return len(order)

    turns = take_turns({name: partial(work, name) for name in "abc"}, 2, lambda *line: shown.append(line))
    assert order == ["a", "b", "c", "a", "b", "c"]
    assert turns == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}
    assert shown == [(1, "a", 1), (1, "b", 2), (1, "c", 3), (2, "a", 4), (2, "b", 5), (2, "c", 6)]


def test_ratios_are_taken_within_a_turn() -> None:
    # In turns 2 and 3 the machine was busy at times, so that medians of different turns would be compared: 40 / 25.
    assert ratio([100.0, 40.0, 30.0], [50.0, 20.0, 25.0]) == 2.0
    results = {"a": [6.0, 8.0], "b": [3.0, 4.0]}
    assert ratios(results, "a", ("b", "not measured")) == {"ratio_to_b": 2.0}
    assert ratios(results, "b", ("b",)) == {"ratio_to_b": 1.0}


def test_results_are_summed_up_as_median_and_range() -> None:
    assert summarise([3.0, 1.0, 20.0]) == {"median": 3.0, "range": [1.0, 20.0]}
    assert (ratio_text(1.234), ratio_text(None)) == ("1.23", "–")
    assert range_text([1234.5, 0.01234]) == "0.0123–1,234"
    assert number_of(0) == "0"


def test_a_call_is_the_mean_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += 0.25

    assert seconds_per_call(work, 8) == 0.25
    assert clock == [2.0]


def test_what_goes_on_is_told() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        shower(console, 3, lambda result: f"{result} ms")(2, "lstm", 7)
    assert captured.get().split() == ["turn", "2/3", "lstm", "7", "ms"]


def test_threads_are_set_and_told() -> None:
    before = torch.get_num_threads()
    assert use_threads(1) == 1 == torch.get_num_threads()
    torch.set_num_threads(before)
    assert use_threads(None) == before


def test_a_table_names_the_machine() -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(framed("what", ["name", "ms"], [["lstm", "3"]], ["ratio to nothing"], threads=5))
    lines = captured.get().splitlines()
    assert lines[0].strip() == "what"
    assert "lstm" in captured.get()
    assert lines[-2].strip() == "ratio to nothing"
    machine = provenance.machine()
    assert lines[-1].strip() == f"{machine['cpu']}, {machine['cores']} cores; torch threads: 5"


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
    assert count(core) == 4 * 4 * (3 + 4 + 2)
