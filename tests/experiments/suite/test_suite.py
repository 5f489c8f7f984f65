from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ctrl.experiments.cli import main
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.options import MemoryOptions, PPOOptions, RunOptions, TaskOptions
from ctrl.experiments.report.summary import CURVE_COLUMNS, Evaluation, RunSummary
from ctrl.experiments.runs.build import Match, build_model, core_kwargs, parameter_count
from ctrl.experiments.runs.run_folder import read_json, write_json
from ctrl.experiments.runs.tasks import make_task
from ctrl.experiments.runs.training import Place
from ctrl.experiments.suite import suite
from ctrl.experiments.suite import worker as suite_worker
from ctrl.experiments.suite.config import RATES, SuiteConfig
from ctrl.experiments.suite.suite import SuiteJob, plan
from ctrl.experiments.suite.tasks import SUITE, TASKS, SuiteTask

SMALL = (
    *("--num-envs", "4", "--n-steps", "16", "--n-epochs", "1", "--eval-episodes", "2", "--device", "cpu"),
    *("--width", "16", "--heads", "2", "--memory", "4,4x2", "--jobs", "2"),
)
UNTUNED = ("--no-tune", "--seeds", "1", "--cores", "compressive", "gru")
PAIR = ("--tasks", "copy-4-8", "rare-cue", "--cores", "compressive", "lstm", "--steps-scale", "1e-6")


@pytest.mark.parametrize("task", SUITE, ids=[task.name for task in SUITE])
def test_each_task_builds_and_says_what_is_reached_without_memory(task: SuiteTask) -> None:
    for one in (task, task.transferred()):
        env = make_task(one.options(2), seed=0, training=True)
        assert env.num_envs == 2
        env.close()
    chance, perfect = task.chance, task.perfect
    assert chance is not None and perfect is not None
    assert chance < perfect - 0.2
    assert 200_000 <= task.steps <= 3_000_000
    assert task.name == task.name.lower() and "/" not in task.name


def test_scores_are_on_the_scale_that_is_shown() -> None:
    known = {name: (TASKS[name].chance, TASKS[name].perfect) for name in TASKS}
    assert known["recall-250"] == (0.25, 1.0)
    assert known["copy-4-8"] == (0.0, 1.0)
    assert known["select-room"][0] == pytest.approx((19.27 - 0.17) / (67 - 0.17), abs=1e-3)
    assert known["repeat-first-medium"] == (-0.5, 1.0)
    assert len(TASKS) == len(SUITE) == 20


def test_transfer_changes_the_named_arguments_alone() -> None:
    task = replace(TASKS["copy-4-8"], transfer=("delay=99",))
    assert task.transferred().arguments == ("length=4", "delay=99")
    assert TASKS["recall-250"].transferred().options(1).env_arguments == {"length": 2500}


def test_recurrent_cores_are_planned_with_each_rate_and_at_least_as_many_parameters() -> None:
    contenders = plan(SuiteConfig(tasks=("rare-cue", "t-maze"), steps_scale=0.5))
    cores = ["compressive", "transformer_xl", *["lstm"] * 3, *["gru"] * 3]
    assert [(one.task.name, one.config.core) for one in contenders] == [
        (task, core) for task in ("rare-cue", "t-maze") for core in cores
    ]
    first, raw, *tuned = (one.config for one in contenders[: len(cores)])
    assert [config.ppo.learning_rate for config in tuned] == [*RATES, *RATES]
    assert (first.memory.width, first.run.steps, first.run.threads) == (None, 200_000, 1)
    env = make_task(TASKS["rare-cue"].options(1), seed=0, training=True)
    ours = parameter_count(build_model(first, env))
    assert core_kwargs("transformer_xl", raw.memory)["slots"] == sum(slots for slots, _ in first.memory.tiers)
    build_model(raw, env)
    for config in tuned:
        narrower = replace(config, memory=replace(config.memory, width=(config.memory.width or 0) - 1))
        sizes = [parameter_count(build_model(one, env)) for one in (narrower, config)]
        assert sizes[0] < ours <= sizes[1]
    env.close()


def test_without_tuning_all_have_one_rate() -> None:
    config = SuiteConfig(tasks=("copy-4-8",), cores=("lstm", "gru"), tune=False, ppo=PPOOptions(learning_rate=0.5))
    assert [one.config.ppo.learning_rate for one in plan(config)] == [0.5, 0.5]


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
        assert ctrl_suite(again, "--known", str(known / "suite.json"), *changed) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(suite, "fingerprint", lambda _: "0123")
    old = read(known)
    del old["settings"]
    write_json(tmp_path / "old.json", old)
    assert ctrl_suite(again, "--known", str(tmp_path / "old.json")) == 2
    assert "holds no results of a suite: KeyError('settings')" in " ".join(capsys.readouterr().err.split())
    assert not again.exists()
    assert ctrl_suite(again, "--seeds", "1", "--known", str(known)) == 0  # a suite's folder


def test_the_table_shows_the_best_rate_and_all_seeds(tmp_path: Path, started: Started) -> None:
    assert ctrl_suite(tmp_path, "--seeds", "3") == 0
    lines = (tmp_path / "suite.md").read_text().splitlines()
    assert "| task | score | chance | compressive | lstm | perfect |" in lines
    assert "| copy-4-8 | normalised | 0.00 | 0.51 (0.50–0.52) | **0.76 (0.75–0.77)** | 1.00 |" in lines
    assert "| rare-cue | lstm | 0.003 | 8 | 1,234 | 2.0 KiB | 1 | 500 | 1 min 01 s |" in lines


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--memory", "8,8x2"), "memory.memory is '4,4x2' there and '8,8x2' now"),
        (("--gamma", "0.5"), "ppo.gamma is 0.99 there and 0.5 now"),
        (("--steps-scale", "0.5"), "steps_scale is 1e-06 there and 0.5 now"),
    ],
)
def test_results_with_other_options_are_refused(
    change: tuple[str, ...], told: str, tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctrl_suite(tmp_path, "--seeds", "1", "--tasks", "rare-cue", "--cores", "compressive") == 0
    before = (tmp_path / "suite.json").read_text()
    capsys.readouterr()
    assert ctrl_suite(tmp_path, "--tasks", "copy-4-8", "--cores", "compressive", *change) == 2
    error = capsys.readouterr().err
    assert told in error and "--overwrite" in error
    assert (tmp_path / "suite.json").read_text() == before
    assert len(started) == 1


def test_results_of_other_code_are_refused_unless_they_may_go(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--seeds", "1", "--tasks", "rare-cue", "--cores", "compressive")
    assert ctrl_suite(tmp_path, *options) == 0
    monkeypatch.setattr(suite, "fingerprint", lambda _: "new")
    assert ctrl_suite(tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert "holds results of other code" in error and "this is new" in error and "--overwrite" in error
    assert ctrl_suite(tmp_path, *options, "--overwrite") == 0
    assert read(tmp_path)["code"] == "new"
    assert len(started) == 2


def test_a_finished_run_of_another_table_of_tasks_is_refused(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctrl_suite(tmp_path, "--seeds", "1") == 0
    config = tmp_path / "runs/rare-cue/lstm-0.001/seed0/config.json"
    saved = read_json(config)
    saved["options"]["task"]["env_kwargs"] = ["length=99"]
    write_json(config, saved)
    assert ctrl_suite(tmp_path, "--seeds", "1") == 2
    assert "task.env_kwargs is ['length=99'] there and ['length=12', 'num_cues=16'] now" in capsys.readouterr().err


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
    tmp_path: Path, start_ctrl: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    process = start_ctrl("suite", *PAIR, *SMALL, "--out", str(tmp_path), *UNTUNED, "--jobs", "1")
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "suite.json").exists():
            assert time.monotonic() < end, "no run ended"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "")
    kept = read(tmp_path)["runs"]
    assert 1 <= len(kept) < 4
    assert ctrl_suite(tmp_path, *UNTUNED) == 0
    assert f"{4 - len(kept)} runs, " in capsys.readouterr().out
    runs = read(tmp_path)["runs"]
    assert [(run["task"], run["core"], run["steps"]) for run in runs] == [
        (task, core, 64) for task in ("copy-4-8", "rare-cue") for core in ("compressive", "gru")
    ]
    assert all(run in runs for run in kept)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--tasks recall-25", "did you mean 'recall-250'"),
        ("--tasks t-maze t-maze", "--tasks names one twice: t-maze t-maze"),
        ("--cores lstm rnn", "unknown core 'rnn'"),
        ("--seeds 0", "--seeds must be at least 1, got 0"),
        ("--jobs 0", "--jobs must be at least 1, got 0"),
        ("--steps-scale 0", "--steps-scale must be above 0 and at most 1000, got 0.0"),
        ("--steps-scale nan", "--steps-scale must be above 0 and at most 1000, got nan"),
        ("--table nowhere", "nowhere does not exist"),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    line: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["suite", *line.split()]) == 2
    printed, shown = capsys.readouterr()
    assert not printed
    assert shown.startswith("error: ") and told in shown
    assert list(tmp_path.iterdir()) == []


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
