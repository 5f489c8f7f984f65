from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ctrl.agents import MemoryPPO
from ctrl.experiments.cli import main
from ctrl.experiments.compare.compare import plan, runs_at_a_time
from ctrl.experiments.config import CompareConfig
from ctrl.experiments.options import ImpalaOptions, MemoryOptions, PPOOptions, RunOptions, TaskOptions
from ctrl.experiments.report import provenance
from ctrl.experiments.report.summary import read_curve
from ctrl.experiments.report.tensorboard import address

TASK = ("--env", "ctrl/Recall-v0", "--env-kwargs", "length=5")


def planned(config: CompareConfig) -> tuple[list[tuple[str, int, float, int | None]], str]:
    console = Console(file=io.StringIO(), width=100, record=True)
    runs = plan(config, console)
    return [(run.core, run.seed, run.ppo.learning_rate, run.memory.width) for run in runs], console.export_text()


def test_runs_are_planned_seed_by_seed_with_each_core_s_learning_rate() -> None:
    config = CompareConfig(cores=("gru", "lstm"), seeds=2, learning_rates=("lstm=0.003",))
    runs, _ = planned(config)
    assert runs == [(core, seed, rate, None) for seed in (0, 1) for core, rate in (("gru", 1e-3), ("lstm", 3e-3))]


def test_each_core_gets_the_options_that_it_has() -> None:
    memory = MemoryOptions(width=16, memory="4,4x2", chrono_horizon=9)
    config = CompareConfig(
        cores=("compressive", "lstm"), seeds=1, memory=memory, ppo=PPOOptions(memory_learning_rate=1)
    )
    compressive, lstm = plan(config, Console(file=io.StringIO()))
    assert compressive.memory == MemoryOptions(width=16, memory="4,4x2")
    assert lstm.memory == MemoryOptions(width=16, chrono_horizon=9)
    assert (compressive.ppo.memory_learning_rate, lstm.ppo.memory_learning_rate) == (1, None)


@pytest.mark.parametrize(
    ("algorithm", "num_actors", "runs"), [("ppo", None, 6), ("impala", None, 2), ("impala", 0, 6), ("impala", 8, 1)]
)
def test_actors_take_the_cores_of_other_runs(
    algorithm: str, num_actors: int | None, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "usable_cores", lambda: 6)
    config = CompareConfig(algorithm=algorithm, impala=ImpalaOptions(num_actors=num_actors))
    assert runs_at_a_time(config) == runs


def test_matched_widths_are_said() -> None:
    config = CompareConfig(
        cores=("compressive", "lstm"),
        seeds=1,
        match_parameters=True,
        task=TaskOptions(env_kwargs=("length=5",)),
        memory=MemoryOptions(width=16, layers=1),
        run=RunOptions(device="cpu"),
    )
    ((_, _, _, first), (_, _, _, second)), text = planned(config)
    assert first == 16
    assert f"lstm: width {second} gives" in text


def test_a_comparison_from_end_to_end(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    options = ["--cores", "compressive", "lstm", "--seeds", "2", "--steps", "300", "--jobs", "2", "--eval-every", "128"]
    assert main(["compare", *TASK, *small, *options, "--match-parameters", "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert [(run["core"], run["seed"]) for run in summary["runs"]] == [
        (core, seed) for core in ("compressive", "lstm") for seed in (0, 1)
    ]
    assert summary["failures"] == []
    assert summary["scores"]["memoryless"] == 0.25
    for run in summary["runs"]:
        assert run["steps"] == 320
        assert run["evaluation"]["episodes"] == 8
        assert run["versions"]["torch"]
        assert run["hyperparameters"]["run"]["threads"] == 1
        name = f"{run['core']}/seed{run['seed']}"
        assert list((folder / "tensorboard" / name).glob("events.*"))
        held_out = read_curve(folder / "runs" / name / "held_out.csv")
        assert (held_out[-1].steps, held_out[-1].success) == (320, run["evaluation"]["success"])
        assert [point.steps for point in held_out[:-1]] == [128, 256]
        assert MemoryPPO.load(folder / "runs" / name / "model.zip", device="cpu").policy.core is not None
    seeds = {(run["core"], run["evaluation"]["seed"]) for run in summary["runs"]}
    assert len(seeds) == 4  # the cores of a seed are evaluated on the same episodes
    assert summary["cores"]["lstm"]["parameters"] == pytest.approx(
        summary["cores"]["compressive"]["parameters"], rel=0.1
    )
    assert (folder / "learning_curves.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "compressive" in shown and "no memory" in shown
    assert "perfect" in shown
    assert f"--logdir {folder / 'tensorboard'}" in shown
    assert address() in shown.replace("\n", "")
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"compressive", "lstm", "no_memory", "perfect"}


def test_a_failed_run_takes_no_other_with_it(
    tmp_path: Path, tiny: tuple[str, ...], fragile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    task = ["--env", f"{fragile}:fragile/NaN-v0", "--env-kwargs", "after=20", "from_seed=10000"]
    options = ["--cores", "feedforward", "--seeds", "2", "--steps", "200", "--jobs", "2"]
    assert main(["compare", *task, *tiny, *options, "--out", str(folder)]) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert [run["seed"] for run in summary["runs"]] == [0]
    (failure,) = summary["failures"]
    assert (failure["core"], failure["seed"]) == ("feedforward", 1)
    assert "observation is not finite" in failure["message"]
    assert "feedforward/seed1: observation is not finite" in capsys.readouterr().out


def test_ctrl_c_lets_the_runs_save(
    tmp_path: Path, tiny: tuple[str, ...], stop_ctrl: Callable[..., tuple[int, str]]
) -> None:
    folder = tmp_path / "results"
    first = folder / "runs" / "gru" / "seed0"
    options = ["--cores", "gru", "--seeds", "2", "--steps", "100000000", "--jobs", "1", "--out", str(folder)]
    exit_code, shown = stop_ctrl(lambda: read_curve(first / "curve.csv"), "compare", *TASK, *tiny, *options)
    assert exit_code == 130
    assert (first / "model.zip").is_file()
    assert str(first / "model.zip") in shown
    assert not (folder / "runs" / "gru" / "seed1").exists()
