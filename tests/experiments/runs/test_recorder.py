from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ctrl.agents import MemoryPPO
from ctrl.experiments.cli import main
from ctrl.experiments.report.summary import Point, read_curve
from ctrl.experiments.runs import recorder
from ctrl.experiments.runs.recorder import NATIVE_SHARE, SHARE, CurveFile, ElapsedTime, affordable_episodes

TASK = ("--env-kwargs", "length=5")
DUMMY = ("--env", "MountainCar-v0", "--env-kwargs", "goal_velocity=0.0")


def test_times_are_added_and_subtracted_clock_by_clock() -> None:
    assert ElapsedTime(3.0, 5.0).minus(ElapsedTime(1.0, 2.0)) == (2.0, 3.0)
    assert ElapsedTime(3.0, 5.0).plus(ElapsedTime(1.0, 2.0)) == (4.0, 7.0)
    start = ElapsedTime.now()
    torch.ones(400, 400) @ torch.ones(400, 400)
    passed = ElapsedTime.now().minus(start)
    assert 0 < passed.wall < 60 and 0 < passed.cpu < 60


def test_a_curve_can_be_read_while_it_grows(tmp_path: Path) -> None:
    file = CurveFile(tmp_path / "curve.csv")
    points = [Point(64, 0.25, 0.5, 4, 1000.0), Point(128, 0.5, 0.75, 3, 900.0)]
    for number, point in enumerate(points):
        file.add(point)
        assert read_curve(tmp_path / "curve.csv") == points[: number + 1]
    file.close()


@pytest.mark.parametrize(
    ("lengths", "episodes"),
    [
        ([], 0),  # no episode has ended, so nobody knows how long one is
        ([251.0], 7),
        ([100.0, 300.0], 10),
        ([6.0], 32),  # more would bring little
        ([2_001.0], 0),  # not one of them
    ],
)
def test_an_evaluation_takes_no_more_steps_than_it_may(lengths: list[float], episodes: int) -> None:
    assert affordable_episodes(lengths, 2_000) == episodes


@pytest.mark.parametrize(
    ("task", "share"), [(TASK, NATIVE_SHARE), (("--env", "CartPole-v1"), NATIVE_SHARE), (DUMMY, SHARE)]
)
def test_tasks_that_step_their_copies_one_by_one_are_evaluated_less(
    task: tuple[str, ...], share: float, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(recorder, "affordable_episodes", lambda _, steps: asked.append(steps) or 0)
    options = ("--core", "feedforward", "--steps", "256", "--eval-every", "100")
    assert main(["train", *task, *tiny, *options, "--out", str(tmp_path / "run")]) == 0
    assert asked == [100 * share]


def train(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    assert main(["train", *TASK, *options, "--steps", "640", "--out", str(folder)]) == 0
    return MemoryPPO.load(folder / "model.zip", device="cpu").policy.state_dict()


@pytest.mark.parametrize("core", [("compressive", "--memory", "4,4x2"), ("transformer_xl",), ("gru",)])
def test_training_does_not_notice_that_it_is_evaluated(
    core: tuple[str, ...], tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    options = (*tiny, "--core", *core)
    watched = train(tmp_path / "watched", *options, "--eval-every", "128")
    alone = train(tmp_path / "alone", *options, "--eval-every", "0")
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
    points = read_curve(tmp_path / "watched" / "held_out.csv")
    assert [(point.steps, point.episodes) for point in points] == [(s, 8) for s in (128, 256, 384, 512)] + [(640, 8)]
    assert [point.steps for point in read_curve(tmp_path / "alone" / "held_out.csv")] == [640]
    curves = [read_curve(tmp_path / name / "curve.csv") for name in ("watched", "alone")]
    assert [point[:4] for point in curves[0]] == [point[:4] for point in curves[1]]


def test_without_evaluation_there_is_none_during_training(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    train(tmp_path / "run", *tiny, "--core", "gru", "--eval-episodes", "0", "--eval-every", "64")
    assert read_curve(tmp_path / "run" / "held_out.csv") == []


def test_time_of_evaluations_is_not_learnings(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that takes 1,000 seconds by the clock does not change the logged speed."""
    spent = [0.0]
    now = ElapsedTime.now
    monkeypatch.setattr(recorder.ElapsedTime, "now", lambda: now().plus(ElapsedTime(spent[0], spent[0])))
    evaluate = recorder.evaluate_run

    def slowly(*arguments: object, **options: object) -> object:
        spent[0] += 1000
        return evaluate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder, "evaluate_run", slowly)
    train(tmp_path / "run", *tiny, "--core", "gru", "--eval-every", "128")
    assert spent[0] == 4000
    assert all(point.steps_per_second > 5 for point in read_curve(tmp_path / "run" / "curve.csv"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["wall_seconds"] < 1000
