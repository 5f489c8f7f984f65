"""`ctrl envs --sheet FILE`: pictures of our tasks as a person sees them, played by their perfect agents.

Each task has a row of pictures from one episode: its start, the steps before and after the first reward of each size,
its end, and moments between them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from ctrl.envs import TASKS, Task
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.report.plots import save_figure

SEED = 4
PICTURES = 5
"""Number of pictures of each task."""
WIDTH, MARGIN, GAP = 10.0, 0.2, 0.15  # inches
HEADER, TITLE, LINE, SPACE = 1.05, 0.5, 0.15, 0.3  # inches: sheet's head, task's head, line of a caption, gap below
PICTURE_WIDTH = (WIDTH - 2 * MARGIN - (PICTURES - 1) * GAP) / PICTURES
CAPTION_COLUMNS = 28
ID_WIDTH = 3.0
GREY = "#444444"
LEGEND = """\
!: keep this   ?: answer now   white dot: the right answer, which the agent does not see   green: right
grid world: the room from above, beside it what the agent sees and the match object   yellow: pad reached"""


class Moment(NamedTuple):
    """One step of an episode, as a person sees it."""

    picture: NDArray[np.uint8]
    """RGB picture [height, width, 3]."""
    text: str
    reward: float
    """Reward of the step that led here."""


def write_sheet(config: EnvsConfig, console: Console) -> int:
    """Draw all our tasks and write the PNG file."""
    path = config.sheet
    assert path is not None
    require(config.overwrite or not path.exists(), f"--sheet {path} exists; name another, or add --overwrite")
    require(path.suffix == ".png", f"--sheet must name a .png file, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(contact_sheet(TASKS), path)
    except OSError as error:
        raise UserError(f"--sheet {path} cannot be written: {error}") from error
    console.print(f"pictures: {path}", soft_wrap=True)
    return 0


def play_perfectly(task: Task, seed: int = SEED) -> list[Moment]:
    """Play one episode of a task with its perfect agent and return all its moments, including the end."""
    drawn, told = (
        gym.make_vec(task.id, 1, render_mode=mode, autoreset_mode=AutoresetMode.NEXT_STEP)
        for mode in ("rgb_array", "ansi")
    )
    agent, reset = task.agents["perfect"](drawn), np.ones(1, dtype=np.bool_)
    seen, _ = drawn.reset(seed=seed)
    told.reset(seed=seed)
    moments, ended = [_moment(drawn, told, 0.0)], False
    while not ended:
        actions = agent(seen, reset)
        told.step(actions)
        seen, rewards, terminated, truncated, _ = drawn.step(actions)
        moments.append(_moment(drawn, told, float(rewards[0])))
        ended, reset = bool(terminated[0] or truncated[0]), np.zeros(1, dtype=np.bool_)
    return moments


def _moment(drawn: VectorEnv[Any, Any, Any], told: VectorEnv[Any, Any, Any], reward: float) -> Moment:
    pictures, texts = cast(Any, drawn.render()), cast(Any, told.render())
    return Moment(pictures[0], texts[0], reward)


def telling(rewards: Sequence[float], count: int = PICTURES) -> list[int]:
    """Choose the moments to show: start, end, and the moments before and after the first reward of each size.

    If these are fewer than `count`, the middles of the longest gaps are added.

    :param rewards: reward of the step that led to each moment
    :param count: number of moments to choose; an episode with fewer shows all
    :return: indices of the chosen moments, in order
    """
    firsts = [rewards.index(size) for size in dict.fromkeys(rewards) if size != 0]
    wanted = dict.fromkeys([0, *(moment for first in firsts for moment in (first - 1, first)), len(rewards) - 1])
    chosen = sorted(list(wanted)[:count])
    while len(chosen) < min(count, len(rewards)):
        before, after = max(pairwise(chosen), key=lambda pair: pair[1] - pair[0])
        chosen = sorted([*chosen, (before + after) // 2])
    return chosen


def caption(text: str) -> list[str]:
    """Split the text of a moment into its step and wrapped description, without facts that the agent does not see."""
    step, rest = re.split(r"\s{2,}", text.rsplit("  (", 1)[0], maxsplit=1)
    return [step, *textwrap.wrap(rest, CAPTION_COLUMNS)]


class Strip(NamedTuple):
    """Row of pictures of one task, with sizes in inches."""

    task: Task
    moments: list[Moment]
    picture_height: float
    height: float
    """Height with title, captions and the space below."""


def contact_sheet(tasks: Mapping[str, Task]) -> Figure:
    """Draw a row of pictures for each task."""
    strips = [_strip(task) for task in tasks.values()]
    total = HEADER + sum(strip.height for strip in strips)
    figure = Figure(figsize=(WIDTH, total), dpi=160)
    _write(
        figure, MARGIN, total - MARGIN, "The tasks of ctrl, played by an agent that remembers", size=13, weight="bold"
    )
    _write(figure, MARGIN, total - MARGIN - 0.28, LEGEND)
    top = total - HEADER
    for strip in strips:
        _draw(figure, strip, top)
        top -= strip.height
    return figure


def _strip(task: Task) -> Strip:
    moments = play_perfectly(task)
    moments = [moments[index] for index in telling([moment.reward for moment in moments])]
    shapes = [moment.picture.shape for moment in moments]
    height = PICTURE_WIDTH * max(rows / columns for rows, columns, _ in shapes)
    lines = max(len(caption(moment.text)) for moment in moments)
    return Strip(task, moments, height, TITLE + height + lines * LINE + SPACE)


def _draw(figure: Figure, strip: Strip, top: float) -> None:
    """Draw the row of one task; `top` is its upper edge, in inches from the lower edge of the sheet."""
    _write(figure, MARGIN, top, strip.task.id, size=10.5, weight="bold")
    arguments = ", ".join(f"{name}={value}" for name, value in strip.task.defaults.items())
    _write(figure, MARGIN + ID_WIDTH, top - 0.02, arguments, colour=GREY)
    _write(figure, MARGIN, top - 0.22, strip.task.summary.replace("`", ""), size=9.5)
    bottom = top - TITLE - strip.picture_height
    for column, moment in enumerate(strip.moments):
        left = MARGIN + column * (PICTURE_WIDTH + GAP)
        inches = np.array([left, bottom, PICTURE_WIDTH, strip.picture_height])
        axes = figure.add_axes(tuple(inches / np.tile(figure.get_size_inches(), 2)))
        axes.imshow(moment.picture, interpolation="nearest")
        axes.set_axis_off()
        _write(figure, left, bottom - 0.06, "\n".join(caption(moment.text)), colour=GREY)


def _write(
    figure: Figure,
    left: float,
    top: float,
    text: str,
    *,
    size: float = 8.5,
    weight: str = "normal",
    colour: str = "black",
) -> None:
    """Write text at a position in inches, from the left and the lower edge of the sheet."""
    width, height = figure.get_size_inches()
    figure.text(left / width, top / height, text, fontsize=size, fontweight=weight, va="top", color=colour)
