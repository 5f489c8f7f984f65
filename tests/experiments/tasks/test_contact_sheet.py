from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from ctrl.envs import TASKS
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.tasks import contact_sheet as sheets
from ctrl.experiments.tasks.contact_sheet import caption, contact_sheet, play_perfectly, telling, write_sheet

RECALL = "ctrl/Recall-v0"


@pytest.mark.parametrize(
    ("rewards", "count", "chosen"),
    [
        ([0, 0, 0, 0, 1], 3, [0, 3, 4]),
        ([0, 0, 0, 0, 0, 0, 0, 0, 1], 5, [0, 3, 5, 7, 8]),  # rest: halves of the longest stretch
        ([0, 0, 1, 0, 1, 0, 10, 0, 0, 1, 10, 0], 5, [0, 1, 2, 5, 6]),  # the first reward of each size
        ([0, 0, 1, 1, 1, 1, 1, 1, 1], 5, [0, 1, 2, 5, 8]),
        ([0, 1], 5, [0, 1]),
        ([0] * 9, 3, [0, 4, 8]),
    ],
)
def test_moments_are_chosen_by_what_happens(rewards: list[float], count: int, chosen: list[int]) -> None:
    assert telling(rewards, count) == chosen


@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_seen_from_their_start_to_their_end(task: str) -> None:
    moments = play_perfectly(TASKS[task])
    assert 2 < len(moments) <= TASKS[task].rules().max_episode_steps + 1
    assert sum(moment.reward for moment in moments) > 0
    assert moments[0].reward == 0
    assert len(caption(moments[0].text)) > 1
    assert "(" not in "".join(caption(moment.text)[0] for moment in moments)
    assert {moment.picture.shape for moment in moments} == {moments[0].picture.shape}


def test_captions_leave_out_what_only_the_viewer_knows() -> None:
    assert caption("step 12/64  noise 3  (cue 1)") == ["step 12/64", "noise 3"]
    long = "step 1/9  room A, at (3, 8) facing south, a red ring on the left  (match blue key)"
    assert caption(long) == ["step 1/9", "room A, at (3, 8) facing", "south, a red ring on the", "left"]


def test_sheet_shows_every_task_within_its_borders() -> None:
    figure = contact_sheet({RECALL: TASKS[RECALL], "ctrl/TMaze-v0": TASKS["ctrl/TMaze-v0"]})
    texts = [text.get_text() for text in figure.texts]
    assert {RECALL, "ctrl/TMaze-v0"} <= set(texts)
    assert len(figure.axes) == 2 * sheets.PICTURES
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    boxes = [text.get_window_extent() for text in figure.texts] + [axes.get_window_extent() for axes in figure.axes]
    assert min(min(box.x0, box.y0) for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= width and max(box.y1 for box in boxes) <= height
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_sheet_is_written_and_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "TASKS", {RECALL: TASKS[RECALL]})
    path = tmp_path / "new" / "tasks.png"
    assert write_sheet(EnvsConfig(sheet=path), Console()) == 0
    assert imread(path).shape[1] == 1600
    assert np.ptp(imread(path)) > 0
    with pytest.raises(UserError, match="--overwrite"):
        write_sheet(EnvsConfig(sheet=path), Console())
    assert write_sheet(EnvsConfig(sheet=path, overwrite=True), Console()) == 0


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "TASKS", {RECALL: TASKS[RECALL]})
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.png", tmp_path / "file" / "tasks.png"):
        with pytest.raises(UserError, match=f"--sheet {path} cannot be written"):
            write_sheet(EnvsConfig(sheet=path, overwrite=True), Console())


def test_only_png_files_are_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--sheet must name a \.png file"):
        write_sheet(EnvsConfig(sheet=tmp_path / "tasks.jpg"), Console())
