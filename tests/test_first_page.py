"""Numbers on the README's first page and on the page of the suite: they are those of the committed results."""

from __future__ import annotations

import io
import json
from pathlib import Path
from statistics import median

from rich.console import Console

from ctrl.experiments.report.summary import RunSummary, aggregate, comparison_table, count_text, number_text
from ctrl.experiments.suite.results import Results, markdown, rows, score_text
from ctrl.experiments.suite.suite import read_results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SUITE = read_results(ROOT / "docs" / "suite.json")
CORES = ("compressive", "transformer_xl", "lstm", "gru")
TASKS = {
    "a cue 24 steps back": "recall-24",
    "64 back": "recall-64",
    "250 back": "recall-250",
    "1,000 back": "recall-1000",
    "cues that replace old ones": "rewrite",
    "copying 4 symbols in order": "copy-4-8",
}
"""Lines of the README's first table, and their tasks in the suite."""
ABLATED = ("recall-250", "copy-4-8", "rewrite")
"""Tasks of the ablation, in the order of its table."""


def test_scores_are_the_suites() -> None:
    stated = [line for line in README.splitlines() if line.startswith(tuple(f"| {title}" for title in TASKS))]
    assert stated == [row_of(SUITE, title, task) for title, task in TASKS.items()]


def row_of(results: Results, title: str, task: str) -> str:
    """Write a task of the suite as a line of the README's table."""
    row = next(row for row in rows(results) if row.title == task)
    assert min(len(row.scores[core]) for core in CORES) >= 3, "too few seeds for the first page"
    scores = (score_text(row.scores[core]) for core in CORES)
    steps = count_text(results.tasks[task]["steps"])
    return f"| {title} | {steps} | {' | '.join(scores)} | {number_text(row.chance)} |"


def test_what_is_said_of_longer_episodes_is_the_suites() -> None:
    longer = [row.scores["compressive"] for row in rows(SUITE) if "then" in row.title]
    stated = " and ".join(map(score_text, longer))
    assert f"on 250 or 1,000 steps back, ours still has {stated} at 2,500" in README


def test_how_much_faster_an_lstm_trains_is_the_suites() -> None:
    ratios = [speed(task, "lstm") / speed(task, "compressive") for task in TASKS.values()]
    assert f"trains {min(ratios):.1f} to {max(ratios):.1f} times as many steps a second" in README


def speed(task: str, core: str) -> float:
    return median(run.steps_per_second for run in SUITE.chosen(task, core))


def test_the_table_of_the_demo_is_its_results() -> None:
    written = json.loads((ROOT / "docs" / "demo" / "summary.json").read_text(encoding="utf-8"))
    runs = [RunSummary.from_json(run) for run in written["runs"]]
    table = io.StringIO()
    Console(file=table, width=80).print(comparison_table(aggregate(runs), "", {"no memory": 0.25, "perfect": 1.0}))
    shown = [line.split() for line in table.getvalue().splitlines() if line.strip()]
    stated = README.split("```\n core ")[1].split("```")[0].splitlines()
    assert [line.split() for line in stated[2:]] == shown[2:]
    assert f"{count_text(runs[0].steps // 50_000 * 50_000)} steps" in README


def test_the_page_of_the_suite_is_its_results() -> None:
    assert (ROOT / "docs" / "suite.md").read_text(encoding="utf-8") == markdown(SUITE)


def test_the_ablation_of_the_default_is_its_results() -> None:
    written = json.loads((ROOT / "docs" / "memory_ablation.json").read_text(encoding="utf-8"))
    expected = []
    for name, tasks in written["variants"].items():
        scores = (number_text(tasks[task]["score"]) if task in tasks else "–" for task in ABLATED)
        expected.append(f"| {name} | {' | '.join(scores)} | {tasks[ABLATED[0]]['parameters']:,} |")
    page = (ROOT / "docs" / "research-log.md").read_text(encoding="utf-8")
    assert "\n".join(expected) in page
