"""Windows that reach the learner: they are what the envs did, in this process or through the queues of two actors.

The env shows (copy, episode, step, place), where place identifies the process. The core's state holds the number of
steps since the reset, and the last input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import UPDATE, WINDOW, WINDOWS, StopOnce, collect, make_impala, placed_makers
from agent_toys import (
    MODES,
    STAGGERED,
    TRANSPARENT,
    AtRolloutEnd,
    BookkeepingCore,
    late_resets,
    set_units,
    states_of_the_next_env,
    vectorized,
)
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ctrl.agents import MemoryImpala
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.impala.trajectories import TrajectoryBatch, trajectory_batch
from ctrl.agents.policy.policy_data import Acted, PolicyState

COPY, EPISODE, STEP, PLACE = range(4)
LEAST = 10
"""Smallest number of windows from each process before training stops."""
ACTORS = pytest.mark.parametrize("num_actors", [0, 2])


pytestmark = pytest.mark.usefixtures("bookkeeping")


def bookkeeper(mode: AutoresetMode | None = None, **options: Any) -> MemoryImpala:
    policy_kwargs = {**TRANSPARENT, "previous_action": False}
    env = vectorized(placed_makers(), mode)  # type: ignore[arg-type]
    model = make_impala(env, "bookkeeping", policy_kwargs=policy_kwargs, **options)
    set_units(model.policy)  # without, values would be 0 until the first update
    return model


class Seen:
    """Observations of a batch by part, each [N, T + 1]: the steps of each window and the following step."""

    def __init__(self, batch: TrajectoryBatch) -> None:
        shown = torch.cat([batch.windows.observations, batch.following[:, None]], dim=1)  # type: ignore[list-item]
        self.copy, self.episode, self.step, self.place = shown.long().unbind(dim=2)
        self.first = torch.cat([batch.windows.reset, batch.following_starts[:, None]], dim=1)
        self.terminates = self.episode % 2 == 0
        whose = zip(self.copy.flatten().tolist(), self.episode.flatten().tolist(), strict=True)
        length = [STAGGERED[copy][episode % len(STAGGERED[copy])] for copy, episode in whose]
        self.length = torch.tensor(length).view_as(self.copy)
        self.is_last = self.step == self.length
        """True at the last observation of an episode, which only NEXT_STEP envs show as a step of its own."""


def check_windows(batch: TrajectoryBatch, mode: AutoresetMode | None) -> None:
    """Compare the parts of the windows with each other, and with the env's given episodes."""
    seen, books = Seen(batch), batch.windows.core_state
    assert seen.copy[:, 0].tolist() == list(range(len(STAGGERED))) * WINDOWS
    for constant in (seen.copy, seen.place):
        assert torch.equal(constant, constant[:, :1].expand_as(constant)), "a window is one env's, in one process"
    assert torch.equal(seen.step[seen.first], torch.zeros_like(seen.step[seen.first]))
    going_on = ~seen.first[:, 1:]
    assert torch.equal(seen.step[:, 1:][going_on], seen.step[:, :-1][going_on] + 1)
    assert torch.equal(seen.episode[:, 1:], seen.episode[:, :-1] + seen.first[:, 1:].long())
    assert torch.equal(batch.ends, seen.first[:, 1:])
    if mode != AutoresetMode.NEXT_STEP:
        assert not seen.is_last.any()
    assert torch.equal(torch.cat([batch.over, batch.following_over[:, None]], 1), seen.is_last & seen.terminates)
    assert torch.equal(batch.loss_mask, ~seen.is_last[:, :-1])
    assert torch.equal(batch.rewards, torch.where(batch.loss_mask, seen.step[:, :-1] + 1, 0).float())
    cut = (seen.step + 1 == seen.length) & ~seen.terminates & (mode != AutoresetMode.NEXT_STEP)
    assert torch.equal(batch.bootstraps != 0, cut[:, :-1])
    check_snapshots(books, batch)


def check_snapshots(books: Any, batch: TrajectoryBatch) -> None:
    """Compare each window's state before its first step with the window's observations, and unroll from it."""
    first = batch.windows.observations[:, 0]  # type: ignore[index]
    going_on = ~batch.windows.reset[:, 0]
    assert torch.equal(books.count[going_on].float(), first[going_on, STEP])
    before = first - torch.eye(4)[STEP]
    assert torch.equal(books.last[going_on], before[going_on])
    unrolled = BookkeepingCore(4).unroll(batch.windows.observations, books, batch.windows.reset)  # type: ignore[arg-type]
    assert torch.equal(unrolled.outputs[:, :, 0], batch.windows.observations[:, :, STEP] + 1)  # type: ignore[call-overload]


@ACTORS
@MODES
def test_what_reaches_the_learner_is_what_happened(mode: AutoresetMode | None, num_actors: int) -> None:
    """The windows of each actor also follow each other without a gap."""
    model = bookkeeper(mode, num_actors=num_actors)
    following: dict[int, tuple[Tensor, Tensor]] = {}
    windows: Counter[int] = Counter()
    gapless, resets = [], []

    def check(model: MemoryImpala) -> None:
        batch = trajectory_batch(model.rollout_buffer, model.policy)
        check_windows(batch, mode)
        for rows in torch.arange(len(batch.rewards)).chunk(WINDOWS):
            first, reset = batch.windows.observations[rows, 0], batch.windows.reset[rows, 0]  # type: ignore[index]
            place = int(first[0, PLACE])
            if place in following:
                gapless.append(torch.equal(first, following[place][0]) and torch.equal(reset, following[place][1]))
            else:
                assert reset.all() and not first[:, EPISODE].any(), "what an actor does first starts all episodes"
            windows[place] += 1
            following[place] = batch.following[rows], batch.following_starts[rows]
            resets.extend(reset.tolist())

    def enough() -> bool:
        return len(windows) == max(num_actors, 1) and min(windows.values()) >= LEAST

    callback = AtRolloutEnd(check)
    model.learn(1000 * UPDATE, [callback, StopOnce(enough)])
    assert enough() and sum(windows.values()) == callback.rollouts * WINDOWS
    assert all(gapless) and len(gapless) == sum(windows.values()) - len(following)
    assert 0 < sum(resets) < len(resets) / 2, "windows must start both at resets and in mid-episode"


def to_the_next_window(buffer: WindowBuffer) -> None:
    buffer.snapshots[0], buffer.snapshots[WINDOW] = buffer.snapshots[WINDOW], buffer.snapshots[0]


def another_actors(buffer: WindowBuffer) -> None:
    """Change the steps as if they came from another process, whose env is at the same position."""
    buffer.observations[..., PLACE] += 1
    buffer.following[..., PLACE] += 1


def following_of_another_window(buffer: WindowBuffer) -> None:
    buffer.following = buffer.following[::-1].copy()


@pytest.mark.parametrize(
    "spoil", [states_of_the_next_env, to_the_next_window, another_actors, late_resets, following_of_another_window]
)
def test_what_is_mixed_up_is_noticed(spoil: Callable[[WindowBuffer], None]) -> None:
    model = bookkeeper()
    for _ in range(3):
        check_windows(collect(model), None)
        assert not model.rollout_buffer.episode_starts[0].all() or model.num_timesteps == UPDATE
    spoil(model.rollout_buffer)
    with pytest.raises(AssertionError):
        check_windows(trajectory_batch(model.rollout_buffer, model.policy), None)


# The buffer alone, filled by hand


def window_of(first: int, space: spaces.Space[Any], envs: int = 2) -> tuple[WindowBuffer, PolicyState]:
    """Return one window of 3 steps, numbered from `first` on, whose entries encode step and env."""
    buffer = WindowBuffer(3, space, spaces.Discrete(100), "cpu", n_envs=envs, window=3)
    state = PolicyState(BookkeepingCore(1).initial_state(envs)._replace(count=torch.full((envs,), first)), *2 * [None])

    def shown(step: int) -> Any:
        column = np.array([[10.0 * step + env] for env in range(envs)], dtype=np.float32)
        return {"x": column, "y": column.astype(np.uint8)} if isinstance(space, spaces.Dict) else column

    for step in range(first, first + 3):
        told = torch.tensor([10.0 * step + env for env in range(envs)])
        buffer.add_step(shown(step), Acted(told.long(), told + 0.1, -told), told.numpy() + 0.5, np.zeros(envs, bool))
    buffer.add_truncation([1], state, None)
    buffer.bootstrap(np.array([first + 0.25]))
    buffer.ignore_step(0, terminated=True)
    buffer.add_following(shown(first + 3), np.array([False, True]), np.array([first == 7, False]))
    return buffer, state


BOX = spaces.Box(-1e3, 1e3, (1,), np.float32)


@pytest.mark.parametrize(
    "space", [BOX, spaces.Dict({"x": BOX, "y": spaces.Box(0, 255, (1,), np.uint8)})], ids=["box", "dict"]
)
def test_windows_are_loaded_into_their_places(space: spaces.Space[Any]) -> None:
    whole = WindowBuffer(6, space, spaces.Discrete(100), "cpu", n_envs=2, window=3)
    for number, first in enumerate([7, 2]):
        assert not whole.full
        part, state = window_of(first, space)
        whole.load(part.arrays(), state, number)
    assert whole.full
    told = np.array([[70, 71], [80, 81], [90, 91], [20, 21], [30, 31], [40, 41]])
    is_dict = isinstance(space, spaces.Dict)
    assert ((whole.observations["x"] if is_dict else whole.observations)[..., 0] == told).all()
    if is_dict:
        assert (whole.observations["y"][..., 0] == told).all() and whole.observations["y"].dtype == np.uint8
        assert whole.following["y"][..., 0].tolist() == [[100, 101], [50, 51]]
    assert (whole.following["x"] if is_dict else whole.following)[..., 0].tolist() == [[100, 101], [50, 51]]
    assert (whole.actions[..., 0] == told).all()
    assert (
        np.allclose(whole.values, told + 0.1)
        and (whole.log_probs == -told).all()
        and (whole.rewards == told + 0.5).all()
    )
    assert whole.bootstraps.T.tolist() == [[0] * 6, [0, 0, 7.25, 0, 0, 2.25]]
    assert (~whole.loss_mask).T.tolist() == whole.over.T.tolist() == [[False, False, True] * 2, [False] * 6]
    assert whole.following_starts.tolist() == [[False, True]] * 2
    assert whole.following_over.tolist() == [[True, False], [False, False]]
    assert [whole.snapshots[start].core.count.tolist() for start in (0, 3)] == [[7, 7], [2, 2]]
    assert whole.ends.T.tolist() == [[False] * 6, [False, False, True] * 2]


def test_what_is_loaded_is_a_copy() -> None:
    """The slot goes back to its actor, which writes the next window into it."""
    whole = WindowBuffer(3, BOX, spaces.Discrete(100), "cpu", n_envs=2, window=3)
    part, state = window_of(2, BOX)
    whole.load(part.arrays(), state, 0)
    for array in part.arrays().values():
        array[...] = 0
    assert whole.observations[..., 0].tolist() == [[20, 21], [30, 31], [40, 41]]
    assert whole.following[..., 0].tolist() == [[50, 51]]
