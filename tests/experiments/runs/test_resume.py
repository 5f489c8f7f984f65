"""Runs of the command line that go on, and the folders of runs that ended early."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_test import kill_test
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctrl.agents import MemoryPPO
from ctrl.experiments.cli import main
from ctrl.experiments.report.summary import read_curve
from ctrl.experiments.runs import recorder, training
from ctrl.experiments.runs.checkpoints import best_checkpoint, known_progress, whole_models
from ctrl.experiments.runs.resume import stored_tensorboard

TASK = ("--env", "ctrl/Recall-v0", "--env-kwargs", "length=5")
CURVES = ("curve.csv", "held_out.csv")


def facts(folder: Path) -> dict[str, Any]:
    """Return what a resumed run must have in common with an uninterrupted one."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {
        "scalars": {tag: [(event.step, repr(event.value)) for event in events.Scalars(tag)] for tag in tags},
        "curves": {name: [repr(point[:4]) for point in read_curve(folder / name)] for name in CURVES},
        "status": status(folder),
    }


def status(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["status"])


def same_model(one: Path, other: Path) -> bool:
    first, second = (MemoryPPO.load(folder / "model.zip", device="cpu").policy.state_dict() for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Return a function that lets the recorder raise an error at a step."""

    def fail(at: int, error: BaseException) -> None:
        advance = recorder.Recorder._on_step

        def on_step(self: recorder.Recorder) -> bool:
            if self.num_timesteps >= at:
                monkeypatch.setattr(recorder.Recorder, "_on_step", advance)
                raise error
            return advance(self)

        monkeypatch.setattr(recorder.Recorder, "_on_step", on_step)

    return fail


def test_a_run_that_broke_goes_on_to_the_same_end(
    tmp_path: Path, tiny: tuple[str, ...], failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["train", *TASK, *tiny, "--core", "gru", "--steps", "640", "--checkpoint-every", "128"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*options, "--out", str(whole)]) == 0
    failing(300, RuntimeError("the simulator\nis gone"))
    assert main([*options, "--out", str(cut)]) == 1
    told = json.loads((cut / "summary.json").read_text())
    assert told["status"] == "failed"
    shown = capsys.readouterr()
    assert "RuntimeError: the simulator is gone; training stopped. The last good checkpoint is kept:" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert "Traceback" in (cut / "error.txt").read_text()
    (cut / "checkpoints" / "step_000000000300.zip").unlink()  # in mid-rollout, after an error: episodes begin anew
    assert main(["train", "--resume", str(cut)]) == 0
    assert same_model(whole, cut)
    assert facts(cut) == facts(whole)
    assert main(["train", "--resume", str(cut)]) == 0
    assert "has finished" in capsys.readouterr().out
    before = len(read_curve(cut / "curve.csv"))
    assert main(["train", "--resume", str(cut), "--steps", "768"]) == 0
    assert len(read_curve(cut / "curve.csv")) == before + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "64"), "--steps can only be raised: it was 128, got 64"),
        (("--seed", "3"), "does not go with --seed"),
        (("--learning-rate=0.1", "--steps", "640"), "does not go with --learning-rate"),
    ],
)
def test_only_steps_can_be_raised(
    options: tuple[str, ...], message: str, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", *TASK, *tiny, "--core", "gru", "--steps", "128", "--out", str(folder)]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_run_can_not_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"options": {"core": 3}}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["train", "--resume", str(folder)]) == 2
        assert main(["compare", "--resume", str(folder)]) == 2
        assert capsys.readouterr().err.count("error: ") == 2


def test_two_stops_leave_the_checkpoints(tmp_path: Path, tiny: tuple[str, ...], failing: Any) -> None:
    folder = tmp_path / "run"
    failing(200, KeyboardInterrupt())
    options = ("--core", "gru", "--steps", "640", "--checkpoint-every", "64")
    assert main(["train", *TASK, *tiny, *options, "--out", str(folder)]) == 130
    assert status(folder) == "interrupted" and not (folder / "model.zip").exists()
    assert main(["evaluate", str(folder)]) == 0


def test_damaged_files_are_passed_over(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = ("--core", "gru", "--steps", "256", "--checkpoint-every", "64")
    assert main(["train", *TASK, *tiny, *options, "--out", str(folder)]) == 0
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    for path in (folder / "model.zip", newest):
        path.write_bytes(path.read_bytes()[:-300])
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--json"]) == 0
    shown = capsys.readouterr()
    assert str(newest) not in json.loads(shown.out)["model"]
    assert shown.err.count("is damaged and passed over") == 2
    shutil.rmtree(folder / "checkpoints")
    assert main(["evaluate", str(folder)]) == 2


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    options = ("--core", "gru", "--steps", "1280", "--checkpoint-every", "64", "--keep-checkpoints", "2")
    assert main(["train", *TASK, *tiny, *options, "--eval-every", "128", "--out", str(folder)]) == 0
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    known = known_progress(folder)
    best = best_checkpoint(known)
    assert names == sorted({"step_000000001152.zip", "step_000000001216.zip", str(best)})
    assert set(known) == {*names, "model.zip"}
    assert json.loads((folder / "progress.json").read_text())["best"] == best


def test_a_folder_that_is_gone_ends_the_run_in_one_line(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    record = recorder.Recorder._record

    def remove(self: recorder.Recorder) -> None:
        record(self)
        shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(recorder.Recorder, "_record", remove)
    assert main(["train", *TASK, *tiny, "--core", "gru", "--steps", "640", "--out", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert not folder.exists()
    assert "; training stopped. no model was saved; summary.json could not be written: No such file" in shown


def test_a_full_disk_loses_nothing_that_was_whole(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit on file sizes stands for the disk: a model no longer fits, the first checkpoint stays."""
    folder = tmp_path / "run"
    limits, save = resource.getrlimit(resource.RLIMIT_FSIZE), recorder.ModelFiles.add_checkpoint
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full(self: Any, model: Any, progress: Any) -> Path:
        if progress.steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
        try:
            return save(self, model, progress)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(recorder.ModelFiles, "add_checkpoint", full)
    try:
        assert main(["train", *TASK, *tiny, "--core", "gru", "--steps", "640", "--out", str(folder)]) == 1
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in capsys.readouterr().out
    assert status(folder) == "failed"
    assert [start.progress.steps for start in whole_models(folder, print)] == [0]
    assert not list(folder.rglob(".partial-*"))


def test_a_run_that_was_stopped_in_its_evaluation_is_evaluated(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train", *TASK, *tiny, "--core", "gru", "--steps", "128", "--eval-every", "0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*options, "--out", str(whole)]) == 0

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "reconstruction_errors", stop)
        assert main([*options, "--out", str(cut)]) == 130
    assert status(cut) == "finished"
    assert main(["train", "--resume", str(cut)]) == 0
    assert facts(cut) == facts(whole)
    evaluations = [json.loads((folder / "summary.json").read_text())["evaluation"] for folder in (whole, cut)]
    assert evaluations[0] == evaluations[1] is not None


def test_a_run_without_a_checkpoint_begins_anew(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", *TASK, *tiny, "--core", "gru", "--steps", "128", "--out", str(folder)]) == 0
    before = facts(folder)["curves"]
    shutil.rmtree(folder / "checkpoints")
    (folder / "model.zip").unlink()
    assert main(["train", "--resume", str(folder)]) == 0
    assert "begins anew: there is no checkpoint" in capsys.readouterr().out
    assert facts(folder)["curves"] == before


@pytest.mark.parametrize("out", ["x" * 300, "file/run"])
def test_a_folder_that_can_not_be_is_refused_in_one_line(
    out: str, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    code = main(["train", *TASK, *tiny, "--core", "gru", "--steps", "64", "--out", str(tmp_path / out)])
    shown = capsys.readouterr()
    assert code in (1, 2) and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_a_comparison_goes_on_and_is_drawn_again(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "compare"
    options = ("--cores", "gru", "--seeds", "2", "--jobs", "2", "--steps", "128")
    assert main(["compare", *TASK, *tiny, *options, "--out", str(folder)]) == 0
    before = json.loads((folder / "summary.json").read_text())["runs"]
    broken = folder / "runs" / "gru" / "seed1"
    (broken / "summary.json").unlink()
    (broken / "model.zip").write_bytes(b"half a file")
    (folder / "learning_curves.png").unlink()
    assert main(["compare", "--table", str(folder)]) == 0
    assert (folder / "learning_curves.png").is_file()
    assert "has not finished" in capsys.readouterr().out
    assert main(["compare", "--resume", str(folder), "--jobs", "1"]) == 0
    after = json.loads((folder / "summary.json").read_text())["runs"]
    assert [run["evaluation"] for run in after] == [run["evaluation"] for run in before]


def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    found = kill_test(tmp_path, kills=3, steps=384)
    assert found["equal"] and found["damaged"] == []
    assert list(whole_models(tmp_path / "killed", print))


@pytest.mark.slow
def test_many_kills_change_nothing(tmp_path: Path) -> None:
    found = kill_test(tmp_path, kills=25, steps=3_200, seed=1, longest=4.0)
    assert found["equal"] and found["damaged"] == [] and found["kills"] == 25


@pytest.mark.parametrize(
    ("told", "found"),
    [("logs/lstm", "logs/lstm"), ("../elsewhere", None), ("/elsewhere", None), (3, None), (None, None)],
    ids=str,
)
def test_a_run_logs_nowhere_but_in_its_folder_or_its_comparison(
    told: object, found: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "comparison/runs/lstm/seed0"
    folder.mkdir(parents=True)
    stored = str(tmp_path / "comparison" / told) if isinstance(told, str) else told
    (folder / "config.json").write_text(json.dumps({"tensorboard": stored}))
    expected = folder / "tensorboard" if found is None else tmp_path / "comparison" / found
    assert stored_tensorboard(folder) == expected
