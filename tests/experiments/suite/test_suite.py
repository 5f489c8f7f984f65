from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ctrl.experiments.cli import main
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.options import MemoryOptions, PPOOptions, RunOptions, TaskOptions
from ctrl.experiments.report.summary import CURVE_COLUMNS, Evaluation, RunSummary
from ctrl.experiments.runs.build import Match, build_model
from ctrl.experiments.runs.run_folder import read_json, write_json
from ctrl.experiments.runs.tasks import make_task
from ctrl.experiments.runs.training import Place
from ctrl.experiments.suite import suite
from ctrl.experiments.suite import worker as suite_worker
from ctrl.experiments.suite.suite import SuiteJob

SMALL = (
    *("--num-envs", "4", "--n-steps", "16", "--n-epochs", "1", "--eval-episodes", "2", "--device", "cpu"),
    *("--width", "16", "--heads", "2", "--memory", "4,4x2", "--jobs", "2"),
)
UNTUNED = ("--no-tune", "--seeds", "1", "--cores", "compressive", "gru")
PAIR = ("--tasks", "copy-4-8", "rare-cue", "--cores", "compressive", "lstm", "--steps-scale", "1e-6")


def success(config: TrainConfig) -> float:
    """Return the success of a run: the LSTM is best at 0.003, and only there better than ours."""
    if config.core == "lstm":
        return {1e-3: 0.25, 3e-3: 0.75, 1e-2: 0.5}[config.ppo.learning_rate] + config.seed / 100
    return 0.5 + config.seed / 100


Started = list[str]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Replace training by runs that finish as soon as they start; return their names, in this order."""
    names: Started = []

    def start(job: SuiteJob) -> None:
        names.append(job.name)
        Place.write_config(job.place, job.config)
        write_json(job.place.folder / "suite_run.json", job.order)
        write_json(job.place.folder / "summary.json", finished(job.config).to_json())
        score = success(job.config)
        (job.place.folder / "curve.csv").write_text(f"{','.join(CURVE_COLUMNS)}\n1,{score},{score},2,500\n")
        job.process = subprocess.Popen(["true"])

    monkeypatch.setattr(SuiteJob, "start", start)
    monkeypatch.setattr("ctrl.experiments.runs.jobs.POLL_SECONDS", 0.01)
    monkeypatch.setattr(suite, "match_width", lambda *_: Match(7, 1, 1))  # this and the next take seconds
    monkeypatch.setattr(suite, "fingerprint", lambda _: "0123")
    return names


def finished(config: TrainConfig) -> RunSummary:
    score = success(config)
    return RunSummary(
        core=config.core,
        seed=config.seed,
        env=config.task.env,
        env_kwargs={},
        status="finished",
        steps=config.run.steps,
        parameters=1234,
        state_bytes=2048,
        steps_per_second=500.0,
        wall_seconds=61.0,
        evaluation=Evaluation(2, score, 0.0, 9.0, score, 0, True, normalised=score),
        hyperparameters=config.to_json(),
    )


def ctrl_suite(folder: Path, *options: str) -> int:
    return main(["suite", *PAIR, *SMALL, "--out", str(folder), *options])


def read(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "suite.json"))


def test_the_first_seed_of_all_comes_first_and_then_the_best_rates(tmp_path: Path, started: Started) -> None:
    assert ctrl_suite(tmp_path, "--seeds", "3") == 0
    first = [
        f"{task}/{core}/seed0"
        for task in ("copy-4-8", "rare-cue")
        for core in ("compressive-RATE", "lstm-0.001", "lstm-0.003", "lstm-0.01")
    ]
    rest = [
        f"{task}/{core}/seed{seed}"
        for seed in (1, 2)
        for task in ("copy-4-8", "rare-cue")
        for core in ("compressive-RATE", "lstm-0.003")
    ]
    rate = f"{PPOOptions().learning_rate:g}"
    assert started == [name.replace("RATE", rate) for name in (*first, *rest)]
    data = read(tmp_path)
    assert len(data["runs"]) == len(started)
    assert data["tuning"]["rare-cue"] == {
        "lstm": {"returns": {"0.001": 0.25, "0.003": 0.75, "0.01": 0.5}, "chosen": 0.003}
    }
    assert set(data["tuning"]) == {"copy-4-8", "rare-cue"}
    assert data["settings"]["memory"]["memory"] == "4,4x2"
    assert {run["width"] for run in data["runs"] if run["core"] == "compressive"} == {16}
    lines = (tmp_path / "suite.md").read_text().splitlines()
    assert "| task | score | chance | compressive | lstm | perfect |" in lines
    assert "| copy-4-8 | normalised | 0.00 | 0.51 (0.50–0.52) | **0.76 (0.75–0.77)** | 1.00 |" in lines
    assert "| rare-cue | lstm | 0.003 | 8 | 1,234 | 2.0 KiB | 1 | 500 | 1 min 01 s |" in lines


def test_known_runs_are_taken_over_and_not_repeated(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known"
    assert ctrl_suite(known, "--seeds", "1") == 0
    begun = len(started)
    assert ctrl_suite(tmp_path / "more", "--seeds", "2", "--known", str(known / "suite.json")) == 0
    assert {name.rsplit("/", 1)[1] for name in started[begun:]} == {"seed1"}
    whole, again = read(tmp_path / "more"), tmp_path / "again"
    assert whole["runs"][:begun] == read(known)["runs"] and len(whole["runs"]) == len(started) == begun + 4
    assert "8 runs were taken over from `" in whole["notes"][-1]
    assert ctrl_suite(tmp_path / "more", "--seeds", "2") == 0  # also without naming them again
    assert read(tmp_path / "more") == whole | {"command": whole["command"]} and len(started) == begun + 4
    for code, changed, message in (
        ("0123", ("--gamma", "0.5"), "other options (ppo.gamma is 0.99 there and 0.5 now)"),
        ("4567", (), "other code (0123, this is 4567)"),
    ):
        monkeypatch.setattr(suite, "fingerprint", lambda _, code=code: code)
        refused(capsys, again, "--known", str(known / "suite.json"), *changed, told=(message,))
    monkeypatch.setattr(suite, "fingerprint", lambda _: "0123")
    old = read(known)
    del old["settings"]
    write_json(tmp_path / "old.json", old)
    refused(capsys, again, "--known", str(tmp_path / "old.json"), told=("no results of a suite: KeyError: 'settings'",))
    assert not again.exists()
    assert ctrl_suite(again, "--seeds", "1", "--known", str(known)) == 0  # a suite's folder


def test_what_is_finished_is_kept_and_what_was_interrupted_begins_anew(tmp_path: Path, started: Started) -> None:
    assert ctrl_suite(tmp_path, "--seeds", "1") == 0
    stopped = tmp_path / "runs/rare-cue/lstm-0.003/seed0/summary.json"
    write_json(stopped, read_json(stopped) | {"status": "interrupted", "evaluation": None})
    started.clear()
    assert ctrl_suite(tmp_path, "--seeds", "1") == 0
    assert started == ["rare-cue/lstm-0.003/seed0"]
    started.clear()
    assert ctrl_suite(tmp_path, "--seeds", "1") == 0
    assert started == []
    assert len(read(tmp_path)["runs"]) == 8


def test_a_run_without_its_second_evaluation_is_not_finished(tmp_path: Path, started: Started) -> None:
    options = ("--tasks", "recall-250", "--cores", "compressive", "--seeds", "1")
    assert ctrl_suite(tmp_path, *options) == 0
    assert read(tmp_path)["runs"] == []
    (run,) = tmp_path.glob("runs/recall-250/*/seed0")
    write_json(run / "transfer.json", asdict(Evaluation(2, 0.5, 0.5, 9.0, 0.125, 0, True)))
    started.clear()
    assert ctrl_suite(tmp_path, *options) == 0
    assert started == []
    assert "| recall-250, then length=2500 | success | 0.25 | 0.12 | 1.00 |" in (tmp_path / "suite.md").read_text()


def test_a_folder_may_gain_tasks_cores_and_seeds(tmp_path: Path, started: Started) -> None:
    assert ctrl_suite(tmp_path, "--seeds", "1", "--tasks", "rare-cue") == 0
    assert ctrl_suite(tmp_path, "--seeds", "1", "--tasks", "copy-4-8", "--cores", "gru", "--no-tune") == 2
    assert ctrl_suite(tmp_path, "--seeds", "2", "--tasks", "copy-4-8", "--cores", "transformer_xl") == 0
    data = read(tmp_path)
    assert list(data["tasks"]) == ["copy-4-8", "rare-cue"]
    assert data["cores"] == ["transformer_xl", "compressive", "lstm"]
    assert any(note.startswith("lstm: on each task the best of 0.001, 0.003, 0.01") for note in data["notes"])
    assert any(note.startswith("transformer_xl, compressive: one learning rate") for note in data["notes"])
    assert len(data["runs"]) == 6


def test_results_with_other_options_or_of_other_code_are_refused_unless_they_may_go(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--seeds", "1", "--tasks", "rare-cue", "--cores", "compressive")
    assert ctrl_suite(tmp_path, *options) == 0
    before = (tmp_path / "suite.json").read_text()
    for change, told in (
        (("--memory", "8,8x2"), "memory.memory is '4,4x2' there and '8,8x2' now"),
        (("--gamma", "0.5"), "ppo.gamma is 0.99 there and 0.5 now"),
        (("--steps-scale", "0.5"), "steps_scale is 1e-06 there and 0.5 now"),
    ):
        refused(capsys, tmp_path, *options, "--tasks", "copy-4-8", *change, told=(told, "--overwrite"))
    (config,) = tmp_path.glob("runs/rare-cue/*/seed0/config.json")
    saved = read_json(config)
    other = saved["options"]["task"] | {"env_kwargs": ["length=99"]}  # of another table of tasks
    write_json(config, saved | {"options": saved["options"] | {"task": other}})
    told = "task.env_kwargs is ['length=99'] there and ['length=12', 'num_cues=16'] now"
    refused(capsys, tmp_path, *options, told=(told, "--overwrite"))
    monkeypatch.setattr(suite, "fingerprint", lambda _: "new")
    refused(capsys, tmp_path, *options, told=("holds results of other code", "this is new", "--overwrite"))
    assert (tmp_path / "suite.json").read_text() == before
    assert ctrl_suite(tmp_path, *options, "--overwrite") == 0
    assert read(tmp_path)["code"] == "new"
    assert len(started) == 2


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *options: str, told: tuple[str, ...]) -> None:
    capsys.readouterr()
    assert ctrl_suite(folder, *options) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert all(text in shown for text in told)


def test_other_folders_are_left_alone(tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for options in ((), ("--overwrite",)):
        assert ctrl_suite(tmp_path, *options) == 2
    assert "is not a results folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_failed_run_is_told_and_the_others_go_on(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = SuiteJob.start

    def fail(job: SuiteJob) -> None:
        start(job)
        if job.label == "rare-cue/lstm-0.003":
            (job.place.folder / "summary.json").unlink()
            (job.place.folder / "log.txt").write_text("out of luck\n")

    monkeypatch.setattr(SuiteJob, "start", fail)
    assert ctrl_suite(tmp_path, "--seeds", "2") == 1
    data = read(tmp_path)
    assert [(failure["label"], failure["seed"]) for failure in data["failures"]] == [("rare-cue/lstm-0.003", 0)]
    assert data["tuning"]["rare-cue"]["lstm"]["chosen"] == 1e-2  # the best of those that there are
    assert "rare-cue/lstm-0.01/seed1" in started
    assert "rare-cue/lstm-0.003/seed0: out of luck" in capsys.readouterr().out


def test_a_worker_refuses_other_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "suite_run.json", {"task": "rare-cue", "code": "0123", "transfer": None})
    assert suite_worker.main(tmp_path, os.getppid()) == 2
    assert "the code is another one" in capsys.readouterr().err


def test_the_second_evaluation_is_on_the_other_arguments(tmp_path: Path) -> None:
    config = TrainConfig(
        core="gru",
        task=TaskOptions(env="ctrl/Recall-v0", env_kwargs=("length=3", "num_cues=2"), num_envs=3),
        run=RunOptions(steps=1, eval_episodes=5, device="cpu"),
        memory=MemoryOptions(width=8),
    )
    Place(tmp_path, tmp_path, "").write_config(config)
    env = make_task(config.task, seed=0, training=True)
    build_model(config, env).save(tmp_path / "model.zip")
    env.close()
    found = suite_worker.evaluate_transfer(tmp_path, ("length=9", "num_cues=2"))
    assert (found["episodes"], found["length_mean"]) == (5, 10.0)
    assert 0 <= found["success"] <= 1


def test_a_suite_from_end_to_end(tmp_path: Path) -> None:
    assert ctrl_suite(tmp_path, *UNTUNED, "--tasks", "copy-4-8", "--cores", "gru") == 0
    data = read(tmp_path)
    (run,) = data["runs"]
    assert (run["task"], run["core"], run["steps"], run["held_out"]["episodes"]) == ("copy-4-8", "gru", 64, 2)
    assert 0 <= run["held_out"]["success"] <= 1
    assert run["curve"][-1][0] == 64
    assert data["failures"] == []
    (order,) = tmp_path.glob("runs/*/*/*/suite_run.json")
    assert read_json(order)["code"] == data["code"] == read_json(tmp_path / "config.json")["code"]


def test_after_ctrl_c_the_folder_can_be_used_and_gone_on_in(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = SuiteJob.start

    def interrupt(job: SuiteJob) -> None:
        if job.label == "copy-4-8/lstm-0.003":
            raise KeyboardInterrupt
        start(job)

    with monkeypatch.context() as patched:
        patched.setattr(SuiteJob, "start", interrupt)
        assert ctrl_suite(tmp_path, "--seeds", "1", "--jobs", "1") == 130
    assert [run["core"] for run in read(tmp_path)["runs"]] == ["compressive", "lstm"]
    assert "| copy-4-8 | normalised | 0.00 | 0.50 | 0.25 | 1.00 |" in (tmp_path / "suite.md").read_text()
    assert "| rare-cue | success | 0.30 | – | – | 1.00 |" in (tmp_path / "suite.md").read_text()
    assert ctrl_suite(tmp_path, "--seeds", "1") == 0
    assert len(started) == len(set(started)) == len(read(tmp_path)["runs"]) == 8


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_and_again(
    tmp_path: Path, stop_ctrl: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("suite", *PAIR, *SMALL, "--out", str(tmp_path), *UNTUNED, "--jobs", "1")
    assert stop_ctrl((tmp_path / "suite.json").exists, *options)[0] == 130
    kept = read(tmp_path)["runs"]
    assert 1 <= len(kept) < 4
    assert ctrl_suite(tmp_path, *UNTUNED) == 0
    assert f"{4 - len(kept)} runs, " in capsys.readouterr().out
    runs = read(tmp_path)["runs"]
    assert [(run["task"], run["core"], run["steps"]) for run in runs] == [
        (task, core, 64) for task in ("copy-4-8", "rare-cue") for core in ("compressive", "gru")
    ]
    assert all(run in runs for run in kept)


def test_the_table_can_be_shown_again(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert ctrl_suite(tmp_path, "--seeds", "2") == 0
    shown = capsys.readouterr().out
    for path in (tmp_path, tmp_path / "suite.json"):
        assert main(["suite", "--table", str(path)]) == 0
        assert capsys.readouterr().out.strip() == shown[shown.index("scores") : shown.index("numbers:")].strip()
    (tmp_path / "suite.json").write_text(json.dumps({"runs": []}))
    assert main(["suite", "--table", str(tmp_path)]) == 2
    assert "holds no results of a suite" in capsys.readouterr().err
