from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ctrl
from ctrl.compressive.compressors import compressor_names
from ctrl.compressive.tiers import always_seen
from ctrl.experiments.cli import main
from ctrl.experiments.compare import ablation
from ctrl.experiments.compare.ablation_config import REFERENCE, VARIANTS, AblateConfig, Variant
from ctrl.experiments.compare.ablation_results import (
    AblationRun,
    ablation_table,
    aggregate,
    markdown_table,
    result_cells,
    steps_to_level,
    thinned,
)
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.options import MemoryOptions
from ctrl.experiments.report.summary import Evaluation, Point, RunSummary
from ctrl.experiments.report.tensorboard import address
from ctrl.experiments.runs.build import core_kwargs
from ctrl.experiments.runs.jobs import Job
from ctrl.experiments.runs.run_folder import write_json

BUILT_IN = set(compressor_names())  # on import, before any test registers one
NAN = float("nan")
TASK = ("--env-kwargs", "length=7")
TWO = ("--variants", "mean+none", "select+auto_encoding")


def core_of(variant: Variant) -> Any:
    memory = variant.memory(MemoryOptions(width=12, layers=1, heads=2, memory="6,5x3"))
    return ctrl.make_core("compressive", input_size=5, **core_kwargs("compressive", memory))


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_every_variant_builds_and_trains_what_it_says(variant: Variant) -> None:
    core = core_of(variant)
    (((compressor,),), parameters) = core.compressors, core.compression_parameters()
    assert type(compressor).__name__.lower() == variant.compressor.replace("_", "") + "compressor"
    learns = list(compressor.parameters())
    by_reconstruction = {id(parameter) for parameter in parameters} >= {id(parameter) for parameter in learns}
    assert bool(learns) is (variant.compressor not in ("mean", "max", "most_used", "most_missed", "surprise"))
    assert core.trained_by_task is (variant.loss == "task")
    assert (len(core.decoders) == 1) is (variant.loss == "auto_encoding")
    assert (core.reconstruction is None) is (variant.loss in ("none", "task"))
    assert by_reconstruction is (variant.loss != "task")
    assert (core.novelty_of(0) is not None) is (variant.compressor in ("most_missed", "surprise"))


def test_variants_are_distinct_and_cover_all_compressors_and_the_paper() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) == 21
    assert {variant.compressor for variant in VARIANTS} == BUILT_IN
    order = sorted((variant for variant in VARIANTS if variant.paper), key=lambda variant: variant.paper or 0)
    assert [variant.name for variant in order] == [
        "conv+attention_reconstruction",
        "dilated_conv+attention_reconstruction",
        "most_used+none",
        "mean+none",
        "conv+auto_encoding",
        "max+none",
        "conv+task",
    ]


def test_the_cue_is_long_gone_from_raw_memory_and_always_in_compressed() -> None:
    config = AblateConfig()
    tiers = [ctrl.Tier(slots, rate) for slots, rate in config.memory.tiers]
    length = config.task.env_arguments["length"]
    assert f"length={length} and num_cues={config.task.env_arguments['num_cues']}" in (AblateConfig.__doc__ or "")
    assert config.memory.layers == 1  # raw slots of stacked layers reach further together
    assert 3 * tiers[0].slots <= length <= always_seen(tiers)
    assert tiers[1].rate >= 4


def test_runs_are_planned_seed_by_seed_with_the_same_options() -> None:
    config = AblateConfig(variants=("max+none", "conv+task"), seeds=2)
    runs = ablation.plan(config)
    assert [(variant.name, run.seed) for variant, run in runs] == [
        (name, seed) for seed in (0, 1) for name in ("max+none", "conv+task")
    ]
    assert {(run.core, run.run.threads, run.ppo) for _, run in runs} == {("compressive", 1, config.ppo)}


def test_an_ablation_from_end_to_end_and_again(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    options = [*TASK, *small, *TWO, "--seeds", "1", "--steps", "200", "--jobs", "2", "--out", str(folder)]
    assert main(["ablate", *options]) == 0
    data = json.loads((folder / "summary.json").read_text())
    assert [(run["variant"], run["seed"]) for run in data["runs"]] == [("mean+none", 0), ("select+auto_encoding", 0)]
    for run in data["runs"]:
        assert run["steps"] == 256
        assert 0 <= run["success"] <= 1
        assert 0 < run["cpu_seconds"] < 60
        assert list(run["reconstruction_error"]) == ["layer0/tier1"]
        assert 0 < run["reconstruction_error"]["layer0/tier1"] < 10
        assert [point[0] for point in run["curve"]] == sorted({point[0] for point in run["curve"]})
    assert data["failures"] == []
    shown = capsys.readouterr().out
    assert "ctrl/Recall-v0 (length=7)" in shown and "auto-encoding" in shown

    for name in ("mean+none", "select+auto_encoding"):
        saved = json.loads((folder / "runs" / name / "seed0" / "config.json").read_text())
        assert saved["options"]["memory"]["compressor"] == name.split("+")[0]

    assert main(["ablate", "--table", str(folder / "summary.json")]) == 0
    assert address() in shown.replace("\n", "")
    assert (folder / "tensorboard" / "no_memory").is_dir()
    table = shown[shown.index("ctrl/Recall-v0") : shown.index("    numbers:")]
    assert capsys.readouterr().out.strip() == table.strip()
    assert main(["ablate", "--table", str(folder / "summary.json"), "--markdown"]) == 0
    assert capsys.readouterr().out == (folder / "table.md").read_text()


def test_a_stopped_ablation_goes_on(tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Finished runs are kept unchanged; an unfinished run is trained again."""
    folder = tmp_path / "results"
    options = [*TASK, *small, *TWO, "--steps", "64", "--jobs", "2", "--out", str(folder)]
    assert main(["ablate", *options, "--seeds", "1"]) == 0
    kept, stopped = (folder / "runs" / name / "seed0" for name in ("mean+none", "select+auto_encoding"))
    before = (kept / "summary.json").stat().st_mtime_ns
    summary = json.loads((stopped / "summary.json").read_text())
    (stopped / "summary.json").write_text(json.dumps(summary | {"status": "interrupted", "evaluation": None}))
    capsys.readouterr()

    assert main(["ablate", *options, "--seeds", "1", "--gamma", "0.5", "--resume"]) == 2
    assert "mean+none/seed0 holds a run with other options" in capsys.readouterr().err
    assert main(["ablate", *options, "--seeds", "2", "--resume"]) == 0
    assert "3 runs, 2 at a time" in capsys.readouterr().out
    assert (kept / "summary.json").stat().st_mtime_ns == before
    assert json.loads((stopped / "summary.json").read_text())["status"] == "finished"
    runs = json.loads((folder / "summary.json").read_text())["runs"]
    assert sorted((run["variant"], run["seed"]) for run in runs) == [
        (name, seed) for name in ("mean+none", "select+auto_encoding") for seed in (0, 1)
    ]
    assert main(["ablate", *options, "--seeds", "2", "--resume"]) == 0
    assert "at a time" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"status": "interrupted"}, False),
        ({"status": "failed"}, False),
        ({"evaluation": None}, False),  # stopped while it was evaluated
    ],
)
def test_only_what_has_finished_is_kept(changes: dict[str, Any], kept: bool, tmp_path: Path) -> None:
    config = TrainConfig(seed=3)
    job = Job.within(tmp_path, "mean+none", config, "ctrl ablate")
    assert ablation.resumed(job).result is None
    job.place.write_config(config)
    evaluation = Evaluation(5, 0.5, 0.1, 7.0, 0.5, 0, True)
    done = RunSummary("compressive", 3, "a/b-v0", {}, "finished", 64, 9, 9, 9.0, 9.0, evaluation=evaluation)
    write_json(job.place.folder / "summary.json", done.to_json() | changes)
    assert ablation.resumed(job).result == (done if kept else None)


def test_a_failed_run_takes_no_other_with_it(
    tmp_path: Path, small: tuple[str, ...], fragile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    task = ["--env", f"{fragile}:fragile/NaN-v0", "--env-kwargs", "after=20", "from_seed=10000"]
    assert main(["ablate", *task, *small, *TWO, "--seeds", "2", "--steps", "100", "--out", str(folder)]) == 1
    data = json.loads((folder / "summary.json").read_text())
    assert [(run["variant"], run["seed"]) for run in data["runs"]] == [(name, 0) for name in TWO[1:]]
    assert [(run["label"], run["seed"]) for run in data["failures"]] == [(name, 1) for name in TWO[1:]]
    assert "select+auto_encoding/seed1: observation is not finite" in capsys.readouterr().out
    assert {run["success"] for run in data["runs"]} == {None}  # this task reports none


def points(*values: tuple[float, int]) -> list[Point]:
    return [Point(100 * (i + 1), 0.0, success, episodes, 9.0) for i, (success, episodes) in enumerate(values)]


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        ([], None),
        (points((1.0, 9)), None),  # too few episodes to tell
        (points((1.0, 9), (1.0, 1)), 200),
        (points((0.0, 10), (1.0, 9), (1.0, 1)), 300),  # episodes before the last 10 don't count
        (points((0.0, 10), (1.0, 9), (0.8, 10), (1.0, 5), (1.0, 5)), 400),  # 8 of 10 fall short, 13 of 15 don't
        (points((0.0, 5), (NAN, 0), (1.0, 9), (NAN, 0), (1.0, 2), (0.0, 50)), 500),
    ],
)
def test_steps_to_level_looks_at_the_last_episodes(curve: list[Point], steps: int | None) -> None:
    assert steps_to_level(curve, level=0.85, episodes=10) == steps


def test_the_level_is_nine_tenths_of_two_hundred_episodes() -> None:
    assert steps_to_level(points((0.95, 199))) is None
    assert steps_to_level(points((0.89, 300))) is None
    assert steps_to_level(points((0.89, 300), (0.9, 200))) == 200


def test_curves_are_thinned_by_the_mean_of_their_episodes() -> None:
    curve = points((0.0, 1), (1.0, 3), (NAN, 0), (0.5, 2), (0.5, 6), (0.25, 4))
    assert thinned(curve, 3) == [[200, 0.75], [500, 0.5], [600, 0.25]]
    assert len(thinned(points(*[(0.5, 2)] * 601))) <= 60
    assert thinned(points((NAN, 0))) == []


def run(
    variant: str, seed: int, success: float, steps: int | None, cpu: float = 8.0, error: float = 0.25
) -> AblationRun:
    return AblationRun(
        variant=variant,
        seed=seed,
        success=success,
        steps_to_level=steps,
        steps=4000,
        wall_seconds=10.0,
        cpu_seconds=cpu,
        steps_per_second=400.0,
        reconstruction_error={"layer0/tier1": error},
        curve=[[2000, 0.5], [4000, success]],
    )


RUNS = [
    run("mean+none", 0, 0.25, None),
    run("gru+task", 2, 0.75, 3000),
    run("gru+task", 0, 1.0, 1000),
    run("gru+task", 1, 0.5, None),
    run(REFERENCE.name, 1, 0.96, 2500, cpu=12.0, error=0.5),
    run(REFERENCE.name, 0, 1.0, 1500, cpu=20.0),
    run("max+none", 0, 0.5, None, cpu=4.0),
]


def test_results_are_sorted_by_who_learned_and_how_soon() -> None:
    results = aggregate(RUNS)
    assert [result.variant for result in results] == [REFERENCE.name, "gru+task", "max+none", "mean+none"]
    reference, gru, *_ = results
    assert (gru.seeds, gru.success, gru.reached, gru.steps_to_level) == ([0, 1, 2], [1.0, 0.5, 0.75], 2, 3000)
    assert (reference.steps_to_level, reference.reconstruction_error) == (2000, {"layer0/tier1": 0.375})
    assert [result.cost for result in results] == [1.0, 0.5, 0.25, 0.5]


def test_what_was_learned_and_lost_comes_last_and_the_fast_come_first() -> None:
    runs = [
        run("select+none", 0, 0.3, 1000),
        run("mean+none", 0, 0.7, None),
        run("conv+task", 0, 1.0, 3000),
        run("gru+task", 0, 0.98, 2000),
        run("max+none", 0, 0.9, 1500),
    ]
    order = ["gru+task", "conv+task", "max+none", "mean+none", "select+none"]
    assert [result.variant for result in aggregate(runs)] == order


def test_without_the_reference_there_is_no_cost() -> None:
    (result,) = aggregate(RUNS[1:4])
    assert (result.cost, result_cells(result)[5]) == (None, "–")


def lines_of(show: Callable[[Console], None], width: int = 80) -> list[str]:
    """Return the lines that a terminal of this width shows."""
    console = Console(width=width, record=True, file=io.StringIO())
    show(console)
    return [line.strip() for line in console.export_text().splitlines()]


def test_the_table_says_it_all_and_fits_a_terminal_and_markdown_is_the_same() -> None:
    results = aggregate(RUNS)
    lines = lines_of(lambda console: console.print(ablation_table(results, "the task", "held out")))
    assert (lines[0], lines[-1]) == ("the task", "held out")
    cells = [result_cells(result) for result in results]
    assert cells[0] == ("conv", "attention", "0.98 (0.96–1.00)", "2,000 (2/2)", "0.38", "1.00", "0.973")
    assert cells[1] == ("gru", "task gradient", "0.75 (0.50–1.00)", "3,000 (2/3)", "0.25", "0.50", "–")
    assert cells[3] == ("mean", "none", "0.25 (0.25–0.25)", "– (0/1)", "0.25", "0.50", "0.982")
    for row in cells:
        assert sum(line.split() == " ".join(row).split() for line in lines) == 1
    header, rule, *rows = markdown_table(results).splitlines()
    assert header == "| compressor | loss | success (range) | until 0.9 | error | cost | paper |"
    assert rule == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert rows == [f"| {' | '.join(row)} |" for row in cells]


def test_nothing_that_is_shown_wraps_in_a_terminal() -> None:
    config, longest = AblateConfig(), [run("dilated_conv+auto_encoding", seed, 0.5, 299_008) for seed in range(9)]
    data = {
        "task": config.task.title,
        "memory": config.memory.memory,
        "steps": config.run.steps,
        "eval_episodes": config.run.eval_episodes,
        "runs": [asdict(entry) for entry in [*longest, *RUNS]],
        "failures": [],
    }
    narrow, wide = (lines_of(lambda console: ablation.show(data, console), width) for width in (80, 300))
    assert narrow == wide
    assert any("299k (9/9)" in line for line in narrow) and not any("…" in line for line in narrow)


def test_runs_survive_json() -> None:
    assert [AblationRun(**entry) for entry in json.loads(json.dumps([asdict(entry) for entry in RUNS]))] == RUNS


@pytest.mark.parametrize("text", ['{"runs": [{"variant": "mean+none"}]}', '{"runs": []}', "[]", "{"])
def test_what_is_no_ablation_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    assert main(["ablate", "--table", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
