"""Snapshots of the core's state before each window, checked with a core that keeps books.

The env shows (copy, episode, step). The core's state holds the number of steps since the reset, and the last input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import (
    MODES,
    TRANSPARENT,
    AtRolloutEnd,
    BookkeepingCore,
    make_model,
    makers,
    staggered_env,
    states_of_the_next_env,
    vectorized,
)
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from ctrl.agents import MemoryPPO
from ctrl.agents.buffers import WindowBuffer, window_batches
from ctrl.agents.policy.policy_data import Acted, PolicyState

COPY, EPISODE, STEP = range(3)
ROLLOUTS = 5


pytestmark = pytest.mark.usefixtures("bookkeeping")


def bookkeeper(env: Any, **options: Any) -> MemoryPPO:
    return make_model(env, "bookkeeping", policy_kwargs={**TRANSPARENT, "previous_action": False}, **options)


def check_snapshots(model: MemoryPPO) -> None:
    """Compare each window's state before its first step with the observations in the window."""
    buffer = model.rollout_buffer
    windows = buffer.all_windows(model.policy).windows
    books, first, reset = windows.core_state, windows.observations[:, 0], windows.reset[:, 0]  # type: ignore[index]
    n_windows = buffer.buffer_size // buffer.window
    assert first[:, COPY].tolist() == list(range(buffer.n_envs)) * n_windows
    going_on = ~reset
    assert torch.equal(books.count[going_on].float(), first[going_on, STEP])
    assert torch.equal(books.last[going_on, COPY], first[going_on, COPY])
    assert torch.equal(books.last[going_on, EPISODE], first[going_on, EPISODE])
    assert torch.equal(books.last[going_on, STEP], first[going_on, STEP] - 1)
    assert torch.equal(first[reset, STEP], torch.zeros(int(reset.sum())))
    unrolled = model.policy.core.unroll(windows.observations, books, windows.reset)
    assert torch.equal(unrolled.outputs[:, :, 0], windows.observations[:, :, STEP] + 1)  # type: ignore[call-overload]


@MODES
def test_snapshots_belong_to_their_windows(mode: AutoresetMode | None) -> None:
    model = bookkeeper(vectorized(makers(), mode))
    resets: list[float] = []

    def check(model: MemoryPPO) -> None:
        check_snapshots(model)
        resets.extend(model.rollout_buffer.episode_starts[:: model.rollout_buffer.window].flatten())

    callback = AtRolloutEnd(check)
    model.learn(ROLLOUTS * 24 * 3, callback)
    assert callback.rollouts == ROLLOUTS
    assert 0 < sum(resets) < len(resets) / 2, "windows must start both at resets and in mid-episode"


@pytest.mark.parametrize("shift", ["to the next env", "to the next window", "by one step"])
def test_a_shifted_snapshot_is_noticed(shift: str) -> None:
    model = bookkeeper(staggered_env())

    def spoil(model: MemoryPPO) -> None:
        check_snapshots(model)
        snapshots = model.rollout_buffer.snapshots
        if shift == "to the next window":
            snapshots[0], snapshots[8] = snapshots[8], snapshots[0]
        elif shift == "to the next env":
            states_of_the_next_env(model.rollout_buffer)
        else:
            for number, snapshot in list(snapshots.items()):
                snapshots[number] = snapshot._replace(core=snapshot.core._replace(count=snapshot.core.count + 1))
        with pytest.raises(AssertionError):
            check_snapshots(model)

    callback = AtRolloutEnd(spoil)
    model.learn(2 * 24 * 3, callback)
    assert callback.rollouts == 2


def test_one_snapshot_per_window() -> None:
    model = bookkeeper(staggered_env())
    model.learn(24 * 3)
    buffer = model.rollout_buffer
    assert list(buffer.snapshots) == [0, 8, 16]
    assert [len(leaf) for snapshot in buffer.snapshots.values() for leaf in snapshot.core] == [3] * 3 * 3


# The buffer alone, filled by hand


def filled(steps: int = 6, envs: int = 2, window: int = 3, **arguments: Any) -> WindowBuffer:
    """Return a buffer whose entries encode their step and env as 10 * step + env."""
    space = arguments.pop("observation_space", spaces.Box(-1e3, 1e3, (1,), np.float32))
    buffer = WindowBuffer(steps, space, spaces.Discrete(100), "cpu", n_envs=envs, window=window, **arguments)
    fill(buffer, steps=steps)
    return buffer


def fill(buffer: WindowBuffer, *, first: int = 0, steps: int = 6) -> None:
    """Add steps with numbers from `first` on."""
    envs = buffer.n_envs
    for step in range(first, first + steps):
        told = torch.tensor([10.0 * step + env for env in range(envs)])
        column = told[:, None]
        state = PolicyState(BookkeepingCore(1).initial_state(envs)._replace(last=column), column, column)
        obs: Any = {"x": column.numpy()} if isinstance(buffer.observation_space, spaces.Dict) else column.numpy()
        if buffer.needs_snapshot():
            buffer.add_snapshot(state)
        buffer.add_step(obs, Acted(told.long(), told + 0.1, -told), told.numpy() + 0.5, np.zeros(envs, dtype=bool))


class Encoder:
    """Part of a policy that the buffer needs; actions and rewards are encoded as themselves."""

    core = BookkeepingCore(1)

    def encode_action(self, actions: torch.Tensor) -> torch.Tensor:
        return actions.float()[:, None]

    def encode_reward(self, rewards: torch.Tensor) -> torch.Tensor:
        return rewards[:, None]


WINDOWS = [[0, 10, 20], [1, 11, 21], [30, 40, 50], [31, 41, 51]]
"""Entries of each window in the buffer of `filled`: window by window, env by env."""


def test_all_windows_are_sequences_of_one_env() -> None:
    buffer = filled()
    batch = buffer.all_windows(Encoder())  # type: ignore[arg-type]
    told = torch.tensor(WINDOWS, dtype=torch.float32)
    assert torch.equal(batch.windows.observations[..., 0], told)  # type: ignore[call-overload]
    assert torch.equal(batch.windows.actions, told.long())
    assert torch.equal(batch.old_values, told + 0.1)
    assert torch.equal(batch.old_log_prob, -told)
    assert batch.windows.core_state.last[:, 0].tolist() == [0, 1, 30, 31]


def test_previous_action_and_reward_are_those_of_the_step_before() -> None:
    buffer = filled()
    buffer.episode_starts[1, 0] = True
    buffer.episode_starts[3, 1] = True
    windows = buffer.all_windows(Encoder()).windows  # type: ignore[arg-type]
    # The first of a window is what the snapshot has; 0 at the first step of an episode.
    assert windows.previous_action[..., 0].tolist() == [[0, 0, 10], [1, 1, 11], [30, 30, 40], [0, 31, 41]]
    assert windows.previous_reward[..., 0].tolist() == [[0, 0, 10.5], [1, 1.5, 11.5], [30, 30.5, 40.5], [0, 31.5, 41.5]]
    assert windows.reset.nonzero().tolist() == [[0, 1], [3, 0]]


@pytest.mark.parametrize("batch_windows", [1, 3, 4, 9])
def test_minibatches_hold_each_window_once(batch_windows: int) -> None:
    torch.manual_seed(0)
    batches = list(window_batches(filled().all_windows(Encoder()), batch_windows))  # type: ignore[arg-type]
    sizes = {1: [1] * 4, 3: [3, 1], 4: [4], 9: [4]}
    assert [len(batch.returns) for batch in batches] == sizes[batch_windows]
    assert sorted(row.tolist() for batch in batches for row in batch.windows.actions) == sorted(WINDOWS)
    for batch in batches:  # all parts are in the same order
        told = batch.windows.actions.float()
        assert torch.equal(batch.old_values, told + 0.1)
        assert torch.equal(batch.windows.core_state.last[:, 0], told[:, 0])


def test_the_order_of_minibatches_is_random_and_seeded() -> None:
    buffer = filled(steps=60)

    def order(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [float(batch.old_values[0, 0]) for batch in window_batches(buffer.all_windows(Encoder()), 1)]  # type: ignore[arg-type]

    assert order(1) == order(1) != order(2)


def test_dict_observations_are_cut_alike() -> None:
    space = spaces.Dict({"x": spaces.Box(-1e3, 1e3, (1,), np.float32)})
    observations = filled(observation_space=space).all_windows(Encoder()).windows.observations  # type: ignore[arg-type]
    assert isinstance(observations, dict)
    assert observations["x"][..., 0].tolist() == WINDOWS


def test_an_ignored_step_has_no_advantage_and_the_step_before_bootstraps_from_it() -> None:
    """Rewards are 10 * step + 0.5, values 10 * step + 0.1; env 0 is cut at step 2, env 1 not at all."""
    for terminated, value in ((False, 30.1), (True, 0.0)):
        buffer = filled(steps=3, window=3)
        buffer.values[2, 0] = 30.1
        buffer.ignore_step(0, terminated=terminated)
        buffer.add_following(np.zeros((2, 1)), np.array([True, False]), np.zeros(2, dtype=bool))
        buffer.compute_returns_and_advantage(np.array([1e6, 0.0]), gamma=0.5, gae_lambda=0.5)
        assert buffer.loss_mask.tolist() == [[True, True], [True, True], [False, True]]
        assert buffer.advantages[2, 0] == 0
        assert buffer.advantages[1, 0] == pytest.approx(10.5 + 0.5 * value - 10.1)


def test_steps_before_the_windows_are_cut_where_they_are() -> None:
    """Steps of the previous rollout are 10 * step + env, too, and take the place of steps -4 to -1."""
    buffer = filled(burn_in=4)
    buffer.reset()
    fill(buffer, first=6)
    burn_in = buffer.all_windows(Encoder()).burn_in  # type: ignore[arg-type]
    assert burn_in is not None and burn_in.known.all()
    steps = [[20, 30, 40, 50], [21, 31, 41, 51], [50, 60, 70, 80], [51, 61, 71, 81]]
    assert burn_in.steps.observations[..., 0].tolist() == steps  # type: ignore[call-overload]
    assert burn_in.steps.actions.tolist() == steps
    assert burn_in.steps.core_state.last[:, 0].tolist() == [20, 21, 50, 51]
    assert burn_in.steps.previous_action[..., 0].tolist() == [[row[0], *row[:-1]] for row in steps]


def test_what_precedes_a_rollout_that_was_not_filled_is_not_known() -> None:
    buffer = filled(burn_in=4)
    buffer.reset()
    fill(buffer, first=6, steps=5)
    buffer.reset()
    fill(buffer, first=20)
    buffer.episode_starts[1, 1] = True
    burn_in = buffer.all_windows(Encoder()).burn_in  # type: ignore[arg-type]
    assert burn_in is not None
    assert burn_in.known.tolist() == [False, False, False, True], "with an episode of its own the last one is"
    assert burn_in.steps.observations[3, :, 0].tolist() == [201, 201, 211, 221]  # type: ignore[call-overload]
    assert burn_in.steps.reset.nonzero().tolist() == [[3, 2]]


@pytest.mark.parametrize("burn_in", [-1, 7])
def test_burn_in_must_fit(burn_in: int) -> None:
    with pytest.raises(ValueError, match=f"burn_in must be from 0 to n_steps, got burn_in = {burn_in}, n_steps = 6"):
        filled(burn_in=burn_in)


def test_windows_must_fit() -> None:
    with pytest.raises(ValueError, match=r"window must divide.*window = 4, n_steps = 6"):
        filled(window=4)
