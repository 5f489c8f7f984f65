from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from ctrl.experiments.report.summary import Evaluation, Point, RunSummary
from ctrl.experiments.suite.results import (
    HeldOut,
    Results,
    Row,
    SuiteRun,
    best_rate,
    markdown,
    rows,
    score_text,
    tables,
)

NAN = float("nan")


def run(
    core: str, seed: int, success: float, *, task: str = "recall-9", rate: float = 3e-4, **changes: Any
) -> SuiteRun:
    facts: dict[str, Any] = {
        "width": None,
        "steps": 200_704,
        "parameters": 101_177,
        "state_bytes": 4096,
        "steps_per_second": 1000.0 + 100 * seed,
        "wall_seconds": 200.0,
        "held_out": HeldOut(100, 10 * success, success, success / 2),
        "curve": [[100_000, 0.0], [200_704, success]],
    }
    return SuiteRun(task=task, core=core, learning_rate=rate, seed=seed, **facts | changes)


RUNS = [
    *(run("compressive", seed, score) for seed, score in enumerate((0.9, 1.0, 0.95))),
    *(run("lstm", 0, score, rate=rate, width=117) for rate, score in ((3e-4, 0.25), (1e-3, 0.5), (3e-3, 0.75))),
    *(run("lstm", seed, 0.25, rate=3e-3, width=117, parameters=101_777) for seed in (1, 2)),
    run("compressive", 0, 0.0, task="copy"),
    run("lstm", 0, -0.5, task="copy"),
]
TASKS: dict[str, dict[str, Any]] = {
    "recall-9": {"score": "success", "chance": 0.25, "perfect": 1.0, "transfer": None},
    "copy": {"score": "return", "chance": -0.5, "perfect": None, "transfer": None},
}


def results(runs: list[SuiteRun], **tasks: dict[str, Any]) -> Results:
    return Results("ctrl suite", tasks or TASKS, ["compressive", "lstm"], ["One note."], runs, [])


GOLDEN = """\
# Memory suite

`ctrl suite`

| task | score | chance | compressive | lstm | perfect |
| --- | --- | ---: | ---: | ---: | ---: |
| recall-9 | success | 0.25 | **0.95 (0.90–1.00)** | 0.42 (0.25–0.75) | 1.00 |
| copy | return | -0.50 | 0.00 | -5.00 | – |

- One note.

## What it cost

| task | core | rate | width | parameters | state | steps | steps/s | time |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| recall-9 | compressive | 0.0003 | default | 101,177 | 4.0 KiB | 201k | 1,100 | 3 min 20 s |
| recall-9 | lstm | 0.003 | 117 | 101,177 | 4.0 KiB | 201k | 1,100 | 3 min 20 s |
| copy | compressive | 0.0003 | default | 101,177 | 4.0 KiB | 201k | 1,000 | 3 min 20 s |
| copy | lstm | 0.0003 | default | 101,177 | 4.0 KiB | 201k | 1,000 | 3 min 20 s |
"""


def test_the_page_is_as_written_here() -> None:
    assert markdown(results(RUNS)) == GOLDEN


def test_a_terminal_shows_the_same_cells() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(tables(results(RUNS)))
    shown = [line.split() for line in console.export_text().splitlines()]
    for line in GOLDEN.splitlines():
        if line.startswith("| ") and "---" not in line:
            assert shown.count(line.replace("|", " ").replace("**", "").split()) == 1


def test_a_second_evaluation_is_a_row_of_its_own() -> None:
    task = TASKS["recall-9"] | {"transfer": {"changes": ["length=99"], "chance": 0.2, "perfect": 1.0}}
    runs = [
        run("compressive", 0, 1.0, transfer=HeldOut(100, 0.5, 0.5, None)),
        run("lstm", 0, 0.5),
        run("compressive", 1, 1.0, transfer=HeldOut(100, 0.7, 0.7, None)),
    ]
    first, second = rows(results(runs, **{"recall-9": task}))
    assert first.scores == {"compressive": [1.0, 1.0], "lstm": [0.5]}
    assert second == Row("recall-9, then length=99", "success", 0.2, 1.0, {"compressive": [0.5, 0.7], "lstm": []})


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"a": [0.9, 1.0], "b": [0.8, 0.89]}, "a"),
        ({"a": [0.8, 0.89], "b": [0.9, 1.0]}, "b"),
        ({"a": [0.9, 1.0], "b": [0.8, 0.9]}, None),  # they touch
        ({"a": [1.0, 1.0], "b": [1.0, 1.0]}, None),
        ({"a": [0.9], "b": [0.1, 0.2]}, None),  # one seed says too little
        ({"a": [0.9, 0.9], "b": [0.1]}, None),
        ({"a": [0.9, 0.9], "b": []}, None),  # nothing to compare with
        ({"a": [0.9, 0.9], "b": [0.1, 0.2], "c": []}, "a"),
        ({"a": [0.7, 0.8], "b": [0.1, 0.2], "c": [0.3, 0.75]}, None),
    ],
)
def test_the_best_is_above_all_seeds_of_all_others(scores: dict[str, list[float]], best: str | None) -> None:
    assert Row("task", "success", None, None, scores).best == best


def test_rates_are_judged_by_the_first_seed_and_then_by_how_soon_it_learned() -> None:
    assert best_rate([]) is None
    assert best_rate([run("lstm", 1, 1.0)]) is None
    scores = [run("lstm", 0, 0.5, rate=1e-3), run("lstm", 0, 0.4, rate=3e-3), run("lstm", 1, 1.0, rate=3e-3)]
    assert best_rate(scores) == 1e-3
    soon = run("lstm", 0, 1.0, rate=3e-3, curve=[[100_000, 0.9], [200_000, 1.0]])
    assert best_rate([run("lstm", 0, 1.0, rate=1e-3), soon]) == 3e-3


def test_rates_are_judged_by_the_end_of_training_and_not_by_held_out_episodes() -> None:
    late = [[10 * step, float(step >= 8)] for step in range(10)]
    early = [[10 * step, 0.9] for step in range(10)]
    runs = [run("gru", 0, 0.1, rate=1e-3, curve=late), run("gru", 0, 1.0, rate=3e-3, curve=early)]
    assert best_rate(runs) == 1e-3
    assert best_rate([run("gru", 0, 1.0, rate=3e-4, curve=[]), *runs]) == 1e-3


def test_an_evaluation_knows_its_scores() -> None:
    low = HeldOut(9, 2.0, 0.1, 0.9)
    assert [low.score(name) for name in ("return", "success", "normalised")] == [2.0, 0.1, 0.9]
    with pytest.raises(ValueError, match="no success"):
        HeldOut(9, 2.0, None, None).score("success")


def test_tuning_is_told_where_there_was_any() -> None:
    found = results(RUNS).tuning()
    assert found == {"recall-9": {"lstm": {"returns": {"0.0003": 0.25, "0.001": 0.5, "0.003": 0.75}, "chosen": 3e-3}}}


def test_texts_of_scores() -> None:
    assert [score_text([]), score_text([0.5]), score_text([-0.5, 0.25])] == ["–", "0.50", "-0.12 (-0.50–0.25)"]


def test_a_run_is_shortened_and_survives_json() -> None:
    options = {"ppo": {"learning_rate": 0.001}, "memory": {"width": 117}}
    summary = RunSummary(
        *("lstm", 2, "a/b-v0", {}, "finished", 640, 99, 7, 9.87, 6.54),
        evaluation=Evaluation(100, 3.5, 0.1, 9.0, None, 0, True, normalised=0.25),
        hyperparameters=options,
    )
    curve = [Point(16 * (i + 1), float(i), NAN, 2, 9.0) for i in range(40)]
    short = SuiteRun.of("rewrite", summary, None, curve)
    assert (short.learning_rate, short.width, short.seed, short.task) == (0.001, 117, 2, "rewrite")
    assert short.held_out == HeldOut(100, 3.5, None, 0.25)
    assert (len(short.curve), short.curve[0], short.curve[-1]) == (20, [32, 0.5], [640, 38.5])
    with_transfer = SuiteRun.of("rewrite", summary, HeldOut(1, 2.0, 0.5, None), curve)
    for one in (short, with_transfer):
        assert SuiteRun.from_json(json.loads(json.dumps(asdict(one)))) == one
