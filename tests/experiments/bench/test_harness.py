from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ctrl.experiments.bench.harness import (
    Case,
    Column,
    Table,
    Turn,
    calls_per_second,
    measure,
    milliseconds,
    number_of,
    ratio,
    seconds_per_call,
    turns_note,
)

MACHINE = {"machine": {"cpu": "Z80", "cores": 3}}


def test_cases_take_turns_and_each_turn_is_told() -> None:
    order: list[str] = []

    def case(name: str) -> Case:
        return Case(name, {"agent": name}, lambda: {"ms": len(order), "list": order.append(name)})

    console = Console(width=80)
    with console.capture() as captured:
        rows = measure([case(name) for name in "abc"], 2, console)
    assert order == ["a", "b", "c"] * 2
    assert [(row["agent"], [turn["ms"] for turn in row["turns"]]) for row in rows] == [
        ("a", [0, 3]),
        ("b", [1, 4]),
        ("c", [2, 5]),
    ]
    assert captured.get().splitlines()[4].split() == ["turn", "2/2", "b", "ms:", "4"]


def results(turns: dict[str, list[Turn]], bases: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of cases whose turns are given."""
    cases = [Case(name, {"agent": name}, iter(each).__next__) for name, each in turns.items()]
    return measure(cases, len(next(iter(turns.values()))), Console(quiet=True), bases)


def test_ratios_are_taken_within_a_turn() -> None:
    # In turns 2 and 3 the machine was busy at times, so that medians of different turns would be compared: 40 / 25.
    turns = {name: [{"speed": speed, "lag": 1.0} for speed in speeds] for name, speeds in SPEEDS.items()}
    assert ratio(turns["lstm"], turns["gru"]) == 2.0
    lstm, gru = results(turns, {"ratio_to_gru": "gru", "ratio_to_none": "not measured"})
    assert (lstm["ratio_to_gru"], gru["ratio_to_gru"]) == (2.0, 1.0)
    assert "ratio_to_none" not in lstm
    assert not any("ratio" in name for name in results(turns)[0])


SPEEDS = {"lstm": [100.0, 40.0, 30.0], "gru": [50.0, 20.0, 25.0]}


def test_rows_have_median_and_range_of_what_is_a_float_in_all_turns() -> None:
    turns: list[Turn] = [{"speed": speed, "parameters": 7, "ray": "2.60"} for speed in (3.0, 1.0, 20.0)]
    (row,) = results({"gru": turns})
    assert row == {"agent": "gru", "turns": turns, "speed": {"median": 3.0, "range": [1.0, 20.0]}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_a_call_is_the_mean_of_many_after_the_warm_up(clock: list[float]) -> None:
    seconds = iter([9.0] * 3 + [0.25, 0.75] * 4)

    def work() -> None:
        clock[0] += next(seconds)

    assert seconds_per_call(work, 8, warm_up=3) == 0.5
    assert list(seconds) == []


def test_speed_counts_whole_calls(clock: list[float]) -> None:
    def work() -> None:
        clock[0] += 0.25

    assert calls_per_second(work, seconds=0.9) == 4.0
    assert clock == [1.0]
    assert calls_per_second(work, seconds=0.01) == 4.0
    assert clock == [1.25]


def test_numbers_have_three_digits() -> None:
    assert [number_of(number) for number in (0, 0.01234, 99.94, 1234.5, -100)] == [
        "0",
        "0.0123",
        "99.9",
        "1,234",
        "-100",
    ]
    assert milliseconds(0.01234) == "12.3"


def test_cells() -> None:
    row = {"agent": "lstm", "size": 12_345, "ratio_to_gru": 1.234, "turns": [{"s": 0.5}, {"s": 0.002}, {"s": 0.003}]}
    columns = [
        (Column.text("", "size"), "12345"),
        (Column.count("", "size"), "12,345"),
        (Column.ratio("", "ratio_to_gru"), "1.23"),
        (Column.ratio("", "ratio_to_lstm"), "–"),
        (Column.median("", "s"), "0.003"),
        (Column.range("", "s", milliseconds), "2–500"),
    ]
    assert [column.cell(row) for column, _ in columns] == [text for _, text in columns]
    assert turns_note([row], "ms") == "median of 3 interleaved turns; ms"


@pytest.mark.parametrize(("threads", "told"), [({}, ""), ({"torch_threads": 5}, "; torch threads: 5")])
def test_a_table_names_the_machine(threads: dict[str, int], told: str) -> None:
    table = Table("what", [{"name": "lstm"}], [Column.text("model", "name")], ["ratio to nothing"])
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table.render({**MACHINE, **threads}))
    lines = [line.strip() for line in captured.get().splitlines()]
    assert [lines[0], lines[1], *lines[-3:]] == ["what", "model", "lstm", "ratio to nothing", f"Z80, 3 cores{told}"]
