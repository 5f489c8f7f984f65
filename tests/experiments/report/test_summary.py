from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from ctrl.experiments.report.summary import (
    CURVE_COLUMNS,
    Evaluation,
    GroupEvaluation,
    Point,
    RunSummary,
    aggregate,
    bytes_text,
    comparison_table,
    count_text,
    duration_text,
    number_text,
    read_curve,
    recent,
    run_table,
)


def run(core: str, seed: int, return_: float, success: float | None = None, **changes: object) -> RunSummary:
    evaluation = Evaluation(40, return_, 0.25, 7.0, success, 1_000_000_000, True)
    summary = RunSummary(
        core=core,
        seed=seed,
        env="ctrl/Recall-v0",
        env_kwargs={"length": 6},
        status="finished",
        steps=12_000,
        parameters=12_345,
        state_bytes=4096,
        steps_per_second=1000.0 + seed,
        wall_seconds=12.0,
        evaluation=evaluation,
    )
    return replace(summary, **changes)  # type: ignore[arg-type]


def shown(table: RenderableType, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_a_summary_survives_json() -> None:
    grouped = Evaluation(5, 0.6, 0.5, 7.0, 0.6, 0, True, groups={"rare": GroupEvaluation(2, 0.5)})
    for summary in (
        run("lstm", 1, 0.5, 0.5),
        run("lstm", 1, 0.5, evaluation=None),
        run("gru", 0, 0.5, evaluation=grouped),
    ):
        assert RunSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_runs_are_aggregated_by_core_and_ordered_by_seed() -> None:
    runs = [run("lstm", 1, 0.4, 0.3), run("gru", 0, 9.0), run("lstm", 0, 0.2, 0.1, steps=11_000)]
    lstm, gru = aggregate(runs)
    assert (lstm.core, lstm.seeds, lstm.success, lstm.returns) == ("lstm", [0, 1], [0.1, 0.3], [0.2, 0.4])
    assert (lstm.steps, lstm.steps_per_second) == (11_000, 1000.5)
    assert (gru.core, gru.success, gru.returns) == ("gru", [], [9.0])


def test_aggregate_of_nothing_is_nothing() -> None:
    assert aggregate([]) == []


def test_runs_without_evaluation_are_counted_without_scores() -> None:
    (lstm,) = aggregate([run("lstm", 0, 0.5, evaluation=None)])
    assert (lstm.seeds, lstm.success, lstm.returns) == ([0], [], [])
    assert "–" in shown(comparison_table([lstm], "t"))


def test_the_table_shows_success_of_every_seed_and_the_baselines() -> None:
    cores = aggregate([run("compressive", 0, 3.0, 0.98), run("compressive", 1, 4.0, 0.94), run("lstm", 0, 0.3, 0.25)])
    text = shown(comparison_table(cores, "ctrl/Recall-v0 (length=48)", {"no memory": 0.25}, "held out"), width=80)
    lines = text.splitlines()
    assert lines[0].strip() == "ctrl/Recall-v0 (length=48)"
    assert lines[-1].strip() == "held out"
    (compressive,) = (line for line in lines if "compressive" in line)
    cells = re.split(r"\s{2,}", compressive.strip())
    assert cells == ["compressive", "0.96", "0.98 0.94", "3.50", "12,345", "4.0 KiB", "1,000", "12 s"]
    assert any(line.split() == ["no", "memory", "0.25"] for line in lines)


def test_a_return_that_is_the_success_is_not_shown_twice() -> None:
    text = shown(comparison_table(aggregate([run("gru", 0, 0.75, 0.75), run("gru", 1, 0.25, 0.25)]), "t"))
    assert "return" not in text
    assert "0.75 0.25" in text


def test_three_seeds_fit_eighty_columns() -> None:
    runs = [run("compressive", seed, 0.5, 0.5, parameters=212_453, wall_seconds=725.0) for seed in range(3)]
    text = shown(comparison_table(aggregate(runs), "t"), width=80)
    (line,) = (line for line in text.splitlines() if "compressive" in line)
    assert "0.50 0.50 0.50" in line
    assert "12 min 05 s" in line


def test_the_table_shows_returns_where_there_is_no_success() -> None:
    text = shown(comparison_table(aggregate([run("gru", 0, 195.5)]), "t"))
    assert "success" not in text
    assert "195.50" in text


def test_the_table_of_a_run() -> None:
    scores = {"random": 0.125, "best without memory": 0.25, "perfect": 1.0}
    training = {"training_episodes": 107, "training_return": 0.4, "training_success": 0.4}
    text = shown(run_table(run("gru", 2, 0.5, 0.75, **training, scores=scores)))
    assert "gru on ctrl/Recall-v0, seed 2" in text
    assert "return 0.50 ± 0.25, success 0.75" in text
    assert re.search(r"last 107 training episodes .* return 0.40, success 0.40, actions sampled", text)
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    below = lines.index("evaluation (40 episodes) return 0.50 ± 0.25, success 0.75") + 1
    assert lines[below : below + 3] == ["random return 0.12", "best without memory return 0.25", "perfect return 1.00"]


def test_baselines_stand_in_the_column_of_returns() -> None:
    """If success and return differ, a return in the column `success` would be wrong."""
    text = shown(comparison_table(aggregate([run("gru", 0, 30.5, 0.75)]), "t", {"perfect": 51.1}))
    header, gru, perfect = (
        next(line for line in text.splitlines() if name in line) for name in ("core", "gru", "perf")
    )
    assert perfect.index("51.10") + 5 == gru.index("30.50") + 5 == header.index("return") + 6


NAN = math.nan


@pytest.mark.parametrize(
    ("episodes", "expected"),
    [
        (1, Point(60, 6.0, 0.5, 2, 90.0)),  # an update's episodes are taken as a whole
        (3, Point(60, 4.0, 0.3, 4, 90.0)),
        (100, Point(60, 2.0, 0.15, 8, 90.0)),  # all there are
    ],
)
def test_the_latest_episodes_are_those_of_several_updates(episodes: int, expected: Point) -> None:
    curve = [
        *(Point(10, 0.0, 0.0, 3, 50.0), Point(20, 0.0, 0.0, 1, 60.0)),
        *(Point(30, NAN, NAN, 0, 70.0), Point(40, 2.0, 0.1, 2, 80.0)),
        *(Point(50, 6.0, 0.5, 2, 85.0), Point(60, NAN, NAN, 0, 90.0)),
    ]
    found = recent(curve, episodes)
    assert found == pytest.approx(expected)


def test_before_the_first_episode_ends_there_is_no_mean() -> None:
    found = recent([Point(10, NAN, NAN, 0, 50.0)])
    assert (found.steps, found.episodes) == (10, 0) and math.isnan(found.return_)
    assert math.isnan(recent([Point(10, 1.0, NAN, 5, 50.0)]).success)


def test_a_curve_is_read_up_to_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    assert read_curve(path) == []
    path.write_text(",".join(CURVE_COLUMNS) + "\n2048,0.5,nan,7,1000\n4096,0.6,0.5,9,1100\n6144,0.")
    first, second = read_curve(path)
    assert (first.steps, first.return_, first.episodes) == (2048, 0.5, 7)
    assert math.isnan(first.success)
    assert second == (4096, 0.6, 0.5, 9, 1100.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(512), "512 B"),
        (bytes_text(32768), "32.0 KiB"),
        (bytes_text(3 * 1024**2), "3.0 MiB"),
        (count_text(9_999), "9,999"),
        (count_text(300_000), "300k"),
        (count_text(2_500_000), "2.50M"),
        (duration_text(9.96), "10.0 s"),
        (duration_text(59.4), "59 s"),
        (duration_text(59.6), "1 min 00 s"),
        (duration_text(185), "3 min 05 s"),
        (duration_text(7620), "2 h 07 min"),
        (number_text(None), "–"),
        (number_text(math.nan), "–"),
        (number_text(0.5), "0.50"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected
