"""Tables of the README and the docs: current, and written anew where they are not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from docs_tables import __main__ as command
from docs_tables import code, results, speed
from docs_tables.pages import Lines, contents, filled, markdown

from ctrl.experiments.suite.suite import read_results

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in command.PAGES if "<!-- table: " in page.read_text(encoding="utf-8")]


def test_all_tables_are_current() -> None:
    stale = {page.name: names for page in PAGES if (names := command.update(page, check=True))}
    assert not stale, "`make docs-tables` writes them anew"


def test_every_table_stands_somewhere() -> None:
    found = [name.split()[0] for page in PAGES for name, _ in contents(page.read_text(encoding="utf-8"))]
    assert set(found) == command.TABLES.keys() and len(PAGES) >= 8


@pytest.mark.parametrize(("page", "table"), [("README.md", "demo"), ("docs/research-log.md", "recall")])
def test_a_stale_number_is_noticed_and_mended(
    page: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = (ROOT / page).read_text(encoding="utf-8")
    (content,) = (content for name, content in contents(right) if name == table)
    wrong = right.replace(content, re.sub(r"\d(?= \|)", lambda digit: str(9 - int(digit[0])), content, count=1))
    assert wrong != right
    copy = tmp_path / "page.md"
    copy.write_text(wrong, encoding="utf-8")
    assert command.main(["--check"], [copy]) == 1
    assert copy.read_text(encoding="utf-8") == wrong
    told = capsys.readouterr().out
    assert f"page.md: {table} is stale" in told and "`make docs-tables`" in told
    assert command.main([], [copy]) == 0
    assert copy.read_text(encoding="utf-8") == right
    assert command.main(["--check"], [copy]) == 0


def two_rows() -> Lines:
    yield "name", "value", "why"
    yield "b", "3"
    yield "a", "2"


def test_cells_written_by_hand_stay_with_their_row() -> None:
    page = "<!-- table: two_rows -->\n| name | value | why |\n| a | 1 | one |\n| b | 1 | two |\n<!-- /table -->\n"
    rows = filled(page, {"two_rows": two_rows}).splitlines()[1:-1]
    assert rows == ["| name | value | why |", "|---|---|---|", "| b | 3 | two |", "| a | 2 | one |"]


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("<!-- table: two_rows -->\n| a | 1 | one |\n<!-- /table -->\n", "row b"),
        ("<!-- table: three_rows -->\n<!-- /table -->\n", "three_rows"),
        ("<!-- table: two_rows -->\n| a | 1 | one |\n", "no `<!-- /table -->`"),
    ],
    ids=["text is missing", "no such table", "no end"],
)
def test_a_table_that_cannot_be_written_is_an_error(
    page: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TABLES", {"two_rows": two_rows})
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    with pytest.raises(SystemExit, match=told):
        command.main([], [tmp_path / "page.md"])


def test_a_text_is_written_as_it_is() -> None:
    def lines() -> Iterator[tuple[str, ...] | str]:
        yield "a line\n"
        yield ("head",)
        yield ("cell",)
        yield "- one\n- two\n"

    assert list(markdown(lines())) == ["a line", "", "| head |", "|---|", "| cell |", "", "- one\n- two"]


def test_the_suite_may_lack_tasks_cores_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_results(ROOT / "docs" / "suite.json")
    runs = [run for run in whole.runs if run.core != "gru" and run.seed == 0 and run.task != "recall-1000"]
    tasks = {name: task for name, task in whole.tasks.items() if name != "rewrite"}
    part = replace(whole, cores=[core for core in whole.cores if core != "gru"], runs=runs, tasks=tasks)
    monkeypatch.setattr(results, "read_results", lambda path: part)
    _, *rows = results.suite_chosen()
    scores = {row[0]: row[2:] for row in rows}
    assert results.SUITE_TITLES["rewrite"] not in scores
    assert scores["1,000 back"] == ("–", "–", "–", "–", "0.25")
    assert re.fullmatch(r"\d\.\d\d", scores["64 back"][0]) and scores["64 back"][3] == "–"
    (page,) = results.suite()
    assert "| gru |" not in page and "| rewrite |" not in page and "## What it cost" in page


def test_recall_counts_from_the_first_checkpoint_at_95() -> None:
    run = {"checkpoints": [[10, 0.5], [20, 0.95], [30, 0.93], [40, 1.0]], "success": 0.97}
    assert results.reached(run) == 1 and results.lowest_since(run, 1) == 0.93
    assert results.lowest_since(run, 3) == 0.97
    assert results.reached(run | {"checkpoints": [[10, 0.94]]}) is None


@pytest.mark.parametrize(
    ("met", "said"), [([True, True], "met"), ([False, False], "missed"), ([True, False, True], "met in 2 of 3")]
)
def test_verdicts(met: list[bool], said: str) -> None:
    assert speed.verdict(met) == said


def test_departures_are_those_of_the_signatures() -> None:
    rows = {row[0]: row[1:] for row in code.arguments()}
    assert rows["`n_steps`"] == ("`2048`", "`64`", "`64`")
    assert rows["`learning_rate`"][1] == "`0.001` to `0.0`"
    assert rows["`vf_coef`"] == ("`0.5`", "`0.1`", "`0.5`")  # one of ours alone departs
    assert rows["`window`"] == ("–", "`None`", "–") and rows["`use_sde`"] == ("`False`", "–", "–")
    assert rows.keys().isdisjoint({"`gamma`", "`max_grad_norm`"})
    entries = {row[0]: row[1:] for row in code.entries()}
    assert entries["`activation_fn`"] == ("`Tanh`", "`ReLU`")
    assert entries["`net_arch`"][1] == "`None`: `{'pi': [64], 'vf': [64]}`"
    assert entries["`share_features_extractor`"] == ("`True`", "`True`")
