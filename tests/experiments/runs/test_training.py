from __future__ import annotations

import csv
import json
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctrl.agents import MemoryPPO
from ctrl.experiments.cli import main
from ctrl.experiments.report.summary import CURVE_COLUMNS, RunSummary, read_curve, recent
from ctrl.experiments.report.tensorboard import address

TASK = ("--env", "ctrl/Recall-v0", "--env-kwargs", "length=5")


def summary_of(folder: Path) -> RunSummary:
    return RunSummary.from_json(json.loads((folder / "summary.json").read_text()))


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def weights(path: Path) -> dict[str, torch.Tensor]:
    return MemoryPPO.load(path, device="cpu").policy.state_dict()


def test_a_run_leaves_everything(tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["train", *TASK, *small, "--steps", "200", "--seed", "3", "--out", str(folder)]
    assert main(arguments) == 0
    summary = summary_of(folder)
    assert (summary.core, summary.seed, summary.status) == ("compressive", 3, "finished")
    assert summary.steps == 256  # whole updates of 4 × 16
    assert summary.env_kwargs == {"length": 5}
    assert summary.hyperparameters["ppo"]["n_steps"] == 16
    assert summary.versions["torch"] == torch.__version__
    assert summary.evaluation is not None
    assert (summary.evaluation.episodes, summary.evaluation.length_mean) == (8, 6.0)
    assert summary.evaluation.success == summary.evaluation.return_mean
    model = MemoryPPO.load(folder / "model.zip", device="cpu")
    assert summary.parameters == sum(parameter.numel() for parameter in model.policy.parameters())
    assert summary.state_bytes == model.policy.core.state_bytes
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    shown = capsys.readouterr().out
    assert str(folder) in shown
    assert "evaluation (8 episodes)" in shown
    assert summary.scores == {"random": 0.25, "best without memory": 0.25, "perfect": 1.0}
    assert all(name in shown for name in summary.scores)
    assert address() in shown.replace("\n", "")


def test_tensorboard_has_the_held_out_curve_and_what_to_read_it_by(tmp_path: Path, small: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    assert main(["train", *TASK, *small, "--steps", "640", "--eval-every", "256", "--out", str(folder)]) == 0
    evaluation = summary_of(folder).evaluation
    assert evaluation is not None
    told = scalars(folder / "tensorboard")
    assert [step for step, _ in told["eval/mean_reward"]] == [256, 512, 640]
    assert told["eval/mean_reward"] == told["eval/success_rate"]
    assert told["eval/mean_reward"][-1] == (640, pytest.approx(evaluation.return_mean))
    assert [point.steps for point in read_curve(folder / "held_out.csv")] == [256, 512, 640]
    assert scalars(folder / "tensorboard" / "no_memory")["eval/success_rate"] == [(0, 0.25), (640, 0.25)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the list of (step, value) of each tag of one run."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_refresh_reaches_the_agent_and_stays_with_it(tmp_path: Path, small: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    options = ["--steps", "128", "--eval-episodes", "0", "--refresh", "5"]
    assert main(["train", *TASK, *small, *options, "--out", str(folder)]) == 0
    assert summary_of(folder).hyperparameters["ppo"]["refresh"] == "5"
    model = MemoryPPO.load(folder / "model.zip", device="cpu")
    assert (model.refresh, model.rollout_buffer.burn_in) == (5, 5)


IMPALA = ("--algorithm", "impala", "--num-envs", "4", "--n-steps", "16", "--eval-episodes", "8", "--threads", "1")


def test_impala_with_actors_leaves_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    small = ["--width", "8", "--heads", "2", "--memory", "4,4x2", "--device", "cpu", "--num-actors", "1"]
    assert main(["train", *TASK, *IMPALA, *small, "--steps", "200", "--out", str(folder)]) == 0
    summary = summary_of(folder)
    assert (summary.status, summary.hyperparameters["algorithm"]) == ("finished", "impala")
    assert summary.steps >= 200 and summary.steps % (4 * 16) == 0
    assert summary.evaluation is not None and summary.evaluation.length_mean == 6.0
    assert sum(point.episodes for point in read_curve(folder / "curve.csv")) >= 200 // 6 - 4
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--episodes", "8"]) == 0
    assert f"{summary.evaluation.success:.3f}" in capsys.readouterr().out


def test_an_env_that_fails_in_actors_ends_the_run_with_its_own_words(
    tmp_path: Path, fragile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    task = ["--env", f"{fragile}:fragile/Raises-v0", "--env-kwargs", "after=100"]
    actors = ["--num-actors", "1", "--max-restarts", "1", "--steps", "2000"]
    with pytest.warns(RuntimeWarning, match="actor 0 is restarted with another seed"):
        assert main(["train", *IMPALA, *task, *actors, "--out", str(folder)]) == 1
    summary = summary_of(folder)
    assert summary.status == "failed"
    assert "RuntimeError: broken after 100 steps" in summary.message
    assert "max_restarts = 1" in summary.message and "last good checkpoint" in summary.message


def test_the_curve_has_a_point_for_each_update(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    main(["train", *TASK, *tiny, "--core", "lstm", "--steps", "256", "--out", str(folder)])
    with (folder / "curve.csv").open(newline="") as file:
        assert next(csv.reader(file)) == list(CURVE_COLUMNS)
    points = read_curve(folder / "curve.csv")
    assert [point.steps for point in points] == [64, 128, 192, 256]
    # 256 steps of 6-step episodes, the first ones shorter as they start staggered
    assert 256 // 6 <= sum(point.episodes for point in points) <= 256 // 6 + 4
    assert all(point.return_ == point.success for point in points if point.episodes)
    assert all(point.steps_per_second > 0 for point in points)


def test_checkpoints_come_at_their_interval(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    options = ["--core", "gru", "--steps", "320", "--checkpoint-every", "128", "--eval-episodes", "0"]
    assert main(["train", *TASK, *tiny, *options, "--out", str(folder)]) == 0
    assert checkpoints(folder) == [f"step_{step:012d}.zip" for step in (0, 128, 256)]
    assert summary_of(folder).evaluation is None


def test_a_seed_gives_the_same_run_twice(tmp_path: Path, small: tuple[str, ...]) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(["train", *TASK, *small, "--steps", "64", "--seed", seed, "--out", str(tmp_path / name)])
    first, again, other = (weights(tmp_path / name / "model.zip") for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_results_are_never_overwritten_silently(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", *TASK, *tiny, "--core", "feedforward", "--steps", "64", "--out", str(folder)]
    assert main(arguments) == 0
    before = (folder / "summary.json").read_text()
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--env", "NoSuch-v0"]) == 2  # a mistake costs no results either
    assert (folder / "summary.json").read_text() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert (folder / "summary.json").read_text() != before


def test_a_folder_without_a_name_is_new(tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", *TASK, *tiny, "--core", "feedforward", "--steps", "64"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["recall-v0-feedforward-1", "recall-v0-feedforward-2"]


def test_nan_stops_training_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, small: tuple[str, ...], fragile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    task = ["--env", f"{fragile}:fragile/NaN-v0", "--env-kwargs", "after=40"]
    assert main(["train", *task, *small, "--steps", "2000", "--out", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "observation is not finite at step 160" in shown
    kept = folder / "checkpoints" / checkpoints(folder)[-1]
    assert str(kept) in shown
    assert kept.name == "step_000000000156.zip"  # NaN is found before the step counts
    assert all(bool(torch.isfinite(value).all()) for value in weights(kept).values())
    assert not (folder / "model.zip").exists()
    summary = summary_of(folder)
    assert summary.status == "failed"
    assert "not finite" in summary.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_where(
    number: signal.Signals, tmp_path: Path, tiny: tuple[str, ...], stop_ctrl: Callable[..., tuple[int, str]]
) -> None:
    folder = tmp_path / "run"
    options = ("--core", "gru", "--steps", "100000000", "--out", str(folder))
    exit_code, shown = stop_ctrl(
        lambda: read_curve(folder / "curve.csv"), "train", *TASK, *tiny, *options, number=number
    )
    assert exit_code == 128 + number
    assert f"the model is saved in {folder / 'model.zip'}" in shown
    summary = summary_of(folder)
    assert (summary.status, summary.evaluation) == ("interrupted", None)
    assert summary.steps > 0
    points = read_curve(folder / "curve.csv")
    assert summary.training_episodes == min(sum(point.episodes for point in points), recent(points).episodes)
    assert summary.training_episodes >= min(100, sum(point.episodes for point in points))
    assert summary.training_return == pytest.approx(recent(points).return_, rel=1e-4)
    assert f"last {summary.training_episodes} training episodes" in shown
    assert zipfile.is_zipfile(folder / "model.zip")
    assert all(bool(torch.isfinite(value).all()) for value in weights(folder / "model.zip").values())
