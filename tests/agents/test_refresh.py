"""Refresh of the states before windows, which become stale as the weights change, and the measure of staleness.

Episodes are staggered. The expected state of a window comes from an env that shows its position and a core that keeps
books, or from single steps, starting at states that the test recorded while the agent acted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from agent_toys import (
    CORES,
    MODES,
    STAGGERED,
    TRANSPARENT,
    AtRolloutEnd,
    BookkeepingCore,
    StopAfter,
    ToldEpisodes,
    fill_once,
    make_model,
    makers,
    set_units,
    staggered_env,
    vectorized,
    weights_of,
)
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

import ctrl
from ctrl.agents import MemoryPPO
from ctrl.agents.buffers import WindowBatch
from ctrl.agents.policy.policy_data import PolicyState
from ctrl.agents.utils.statistics import drift
from ctrl.agents.utils.validation import burn_in_steps

N_STEPS, WINDOW, ENVS = 24, 8, 3
STEPS = N_STEPS * ENVS
REFRESH = [1, 5, 8, 13, 16, "recompute"]
"""Burn-in steps: less than a window, one window, more than one, two windows, and the whole rollout."""


def spoiled(batch: WindowBatch) -> WindowBatch:
    """Return the batch with spoiled states before the windows, to show that they are not needed."""
    state = batch.windows.core_state
    core_state = type(state)(*(torch.full_like(leaf, 77) for leaf in state))
    return batch._replace(windows=batch.windows._replace(core_state=core_state))


def known(batch: WindowBatch) -> Tensor:
    assert batch.burn_in is not None
    return batch.burn_in.known


def assert_alike(found: Any, expected: Any, rows: Tensor, atol: float = 1e-5) -> None:
    """Compare states, leaf by leaf, in the windows `rows`."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[rows], other[rows], atol=atol, rtol=0)


def apart(one: Any, other: Any) -> float:
    """Return the largest difference between two states."""
    return max(float((a - b).abs().amax()) for a, b in zip(one, other, strict=True) if a.numel())


# The steps that are replayed: books compared with an env that shows its position


def bookkeeper(env: Any, refresh: Any) -> MemoryPPO:
    policy_kwargs = {**TRANSPARENT, "previous_reward": True}
    return make_model(env, "bookkeeping", policy_kwargs=policy_kwargs, refresh=refresh)


def books_are_right(model: MemoryPPO, batch: WindowBatch) -> Tensor:
    """Compare refreshed books with those of acting, and return a mask of the refreshed windows.

    Books do not depend on weights, so both must be equal.
    """
    rows = known(batch)
    assert_alike(model._refreshed(spoiled(batch)).windows.core_state, batch.windows.core_state, rows, atol=0)
    assert_alike(model._refreshed(batch).windows.core_state, batch.windows.core_state, ~rows, atol=0)
    return rows


def first_known(batch: WindowBatch, refresh: Any) -> Tensor:
    """Return a mask of the windows that are known if nothing before the rollout is.

    Such a window has its whole burn-in in the rollout, or a reset in its burn-in.
    """
    burn_in = burn_in_steps(refresh, N_STEPS)
    resets = batch.windows.reset.unflatten(0, (-1, ENVS)).transpose(1, 2).flatten(0, 1)  # [steps, envs]
    places = itertools.product(range(0, N_STEPS, WINDOW), range(ENVS))
    rows = [start >= burn_in or bool(resets[max(0, start - burn_in) : start, env].any()) for start, env in places]
    return torch.tensor(rows)


def watched_books(refresh: Any) -> tuple[list[Tensor], AtRolloutEnd]:
    """Return a callback that compares the books of each rollout, and its list of the refreshed windows."""
    rows: list[Tensor] = []

    def check(model: MemoryPPO) -> None:
        batch = model.rollout_buffer.all_windows(model.policy)
        rows.append(books_are_right(model, batch))
        if len(rows) == 1:
            assert torch.equal(rows[0], first_known(batch, refresh))

    return rows, AtRolloutEnd(check)


@pytest.mark.usefixtures("bookkeeping")
@MODES
@pytest.mark.parametrize("refresh", REFRESH)
def test_burn_in_is_the_steps_before_the_window(mode: AutoresetMode | None, refresh: Any) -> None:
    model = bookkeeper(vectorized(makers(), mode), refresh)
    rows, check = watched_books(refresh)
    model.learn(4 * STEPS, check)
    assert len(rows) == 4 and not rows[0].all() and all(found.all() for found in rows[1:])


@pytest.mark.usefixtures("bookkeeping")
@pytest.mark.parametrize("stop", [1, 7, 23, 24, 25, 30, 48])
@pytest.mark.parametrize("refresh", [5, 13, "recompute"])
def test_a_rollout_that_a_callback_stopped_goes_on(refresh: Any, stop: int) -> None:
    """Neither the steps before the stop nor the burn-in is lost, also where the stop is a rollout's last step."""
    model = bookkeeper(staggered_env(), refresh)
    rows: list[Tensor] = []
    check = AtRolloutEnd(
        lambda model: rows.append(books_are_right(model, model.rollout_buffer.all_windows(model.policy)))
    )
    model.learn(9 * STEPS, [check, StopAfter(stop)])
    model.learn(4 * STEPS - model.num_timesteps, check, reset_num_timesteps=False)
    assert model.num_timesteps == 4 * STEPS
    assert len(rows) == 4 and not rows[0].all() and all(found.all() for found in rows[1:])


class Failing(AtRolloutEnd):
    """Callback that raises an error after some steps."""

    def _on_step(self) -> bool:
        if self.n_calls == 30:
            raise RuntimeError("broken")
        return True


@pytest.mark.usefixtures("bookkeeping")
def test_after_an_error_episodes_and_the_rollout_begin_anew() -> None:
    model = bookkeeper(staggered_env(), 5)
    with pytest.raises(RuntimeError, match="broken"):
        model.learn(9 * STEPS, Failing(lambda model: None))
    rows, check = watched_books(5)
    model.learn(2 * STEPS, check, reset_num_timesteps=False)
    assert model.rollout_buffer.full and rows[1].all()


@pytest.mark.usefixtures("bookkeeping")
@pytest.mark.parametrize("refresh", [13, "recompute"])
def test_a_new_env_begins_with_episodes_of_its_own(refresh: Any) -> None:
    model = bookkeeper(staggered_env(), refresh).learn(STEPS)
    model.set_env(DummyVecEnv(makers(STAGGERED[::-1])))  # type: ignore[arg-type]
    found: list[Tensor] = []
    check = AtRolloutEnd(
        lambda model: found.append(books_are_right(model, model.rollout_buffer.all_windows(model.policy)))
    )
    model.learn(2 * STEPS, check, reset_num_timesteps=False)
    assert len(found) == 2


@pytest.mark.usefixtures("bookkeeping")
@pytest.mark.parametrize("refresh", [5, 13, "recompute"])
def test_as_little_as_needed_is_kept_of_the_rollout_before(refresh: Any) -> None:
    model = bookkeeper(staggered_env(), refresh).learn(4 * STEPS)
    buffer = model.rollout_buffer
    starts = range(0, N_STEPS, WINDOW)
    ahead = {start + N_STEPS - buffer.burn_in for start in starts if start < buffer.burn_in}
    needed = {*starts, *(start - buffer.burn_in for start in starts), *ahead}
    assert set(buffer.snapshots) == needed
    before = buffer._before
    assert before is not None and {len(part) for part in before} == {buffer.burn_in}
    observations = buffer.observations
    buffer.reset()
    assert buffer._before is not None and set(buffer.snapshots) == {step for step in needed if step < 0}
    assert buffer._before.observations.base is None, "a view would keep the whole rollout"
    np.testing.assert_array_equal(buffer._before.observations, observations[-buffer.burn_in :])


# Which memory: steps one by one


class Moment(NamedTuple):
    """Record of one step of all envs."""

    before: PolicyState
    obs: Any
    reset: Tensor


class Recorder(BaseCallback):
    """Callback that records every step, also one at which another callback stops training."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Moment] = []

    def _on_training_start(self) -> None:
        model: Any = self.model
        self._state = model.policy.initial_state(model.n_envs) if model._actor is None else model._actor.state()

    def _on_step(self) -> bool:
        model: Any = self.model
        obs, _ = model.policy.obs_to_tensor(self.locals["obs"])
        self.moments.append(Moment(self._state, obs, torch.tensor(model._last_episode_starts.astype(bool))))
        reward = model.policy.encode_reward(self.locals["rewards"])
        self._state = model._actor.state()._replace(previous_reward=reward)
        return True


def walked(model: MemoryPPO, moments: list[Moment]) -> Any:
    """Return the core's state after some steps, taken one by one with the current weights."""
    state = moments[0].before
    with torch.no_grad():
        for moment, following in zip(moments, [*moments[1:], None], strict=True):
            _, state = model.policy.step(moment.obs, state, moment.reset)
            if following is not None:  # actions and rewards are the recorded ones
                state = state._replace(
                    previous_action=following.before.previous_action, previous_reward=following.before.previous_reward
                )
    return state.core


class ToldDict(ToldEpisodes):
    """`ToldEpisodes` with a dict of two parts as observation."""

    observation_space = spaces.Dict(  # type: ignore[assignment]
        {"where": spaces.Box(-100.0, 100.0, (2,), np.float32), "step": spaces.Box(-100.0, 100.0, (1,), np.float32)}
    )

    def observe(self) -> Any:
        seen = super().observe()
        return {"where": seen[:2], "step": seen[2:]}


def refreshing(core: str, refresh: Any, *, dict_env: bool = False, **options: Any) -> MemoryPPO:
    dicts: list[Any] = [lambda copy=copy, told=told: ToldDict(told, copy=copy) for copy, told in enumerate(STAGGERED)]
    options.setdefault("learning_rate", 1e-2)
    return make_model(
        DummyVecEnv(dicts) if dict_env else staggered_env(),
        core,
        policy="MultiInputMemoryPolicy" if dict_env else "MlpMemoryPolicy",
        refresh=refresh,
        policy_kwargs={"previous_reward": True},
        **options,
    )


@pytest.mark.parametrize("dict_env", [False, True], ids=["box", "dict"])
@pytest.mark.parametrize("refresh", [13, "recompute"])
@pytest.mark.parametrize("core", [core for core in CORES if core != "feedforward"])
def test_states_are_what_the_weights_of_now_make_of_the_steps_before(core: str, refresh: Any, dict_env: bool) -> None:
    model = refreshing(core, refresh, dict_env=dict_env)
    burn_in, recorder, moved = burn_in_steps(refresh, N_STEPS), Recorder(), []

    def check(model: MemoryPPO) -> None:
        batch = model.rollout_buffer.all_windows(model.policy)
        model.policy.set_training_mode(True)
        state = model._refreshed(spoiled(batch)).windows.core_state
        first = len(recorder.moments) - N_STEPS
        for number, start in enumerate(range(0, N_STEPS, WINDOW)):
            rows = torch.arange(number * ENVS, (number + 1) * ENVS)
            if first + start < burn_in:
                continue
            moments = recorder.moments[first + start - burn_in : first + start]
            expected = walked(model, moments)
            assert known(batch)[rows].all()
            assert_alike(type(state)(*(leaf[rows] for leaf in state)), expected, torch.arange(ENVS))
            stored = type(state)(*(leaf[rows] for leaf in batch.windows.core_state))
            moved.append((start < burn_in and first > 0, apart(stored, expected)))

    model.learn(4 * STEPS, CallbackList([recorder, AtRolloutEnd(check)]))
    old = [by for reaches_back, by in moved if reaches_back]
    new = [by for reaches_back, by in moved if not reaches_back]
    assert len(old) >= 3 and max(old) > 1e-3, "the weights must have changed since the stored states were made"
    assert not new or max(new) < 1e-5, "in one rollout they have not"


@pytest.mark.parametrize("refresh", [13, "recompute"])
@pytest.mark.parametrize("core", CORES)
def test_unchanged_weights_remember_what_acting_remembered(core: str, refresh: Any) -> None:
    """The ratio is then 1, in the first rollout, in later ones, and after a stop."""
    model = refreshing(core, refresh)
    model.learn(0)
    set_units(model.policy)
    for _ in range(3):
        fill_once(model)
        batch = model.rollout_buffer.all_windows(model.policy)
        model.policy.set_training_mode(True)
        assert_alike(model._refreshed(spoiled(batch)).windows.core_state, batch.windows.core_state, known(batch))
        with torch.no_grad():
            evaluated = model.policy.evaluate_windows(model._refreshed(batch).windows)
        assert float((evaluated.log_prob - batch.old_log_prob).abs().max()) < 1e-5
        assert float((evaluated.values - batch.old_values).abs().max()) < 1e-5
    assert known(batch).all()


@pytest.mark.parametrize("core", CORES)
def test_ratios_are_one_in_the_first_update(core: str) -> None:
    """In the second update they stay 1 only for a core without memory; older weights wrote the memory of the others."""
    model = refreshing(core, "recompute", batch_size=STEPS).learn(STEPS)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    model.learn(STEPS, reset_num_timesteps=False)
    assert (model.logger.name_to_value["train/first_ratio_deviation"] > 3e-5) == (core != "feedforward")


@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_every_minibatch_remembers_with_the_weights_of_its_time(core: str) -> None:
    model = refreshing(core, 13).learn(STEPS)
    compute, drifts = model._loss_and_gradients, []

    def spy(batch: WindowBatch, *args: Any, **kwargs: Any) -> float:
        assert batch.burn_in is not None and batch.burn_in.known.all()
        state = batch.windows.core_state
        assert not any(leaf.requires_grad for leaf in state), "no gradient goes into the burn-in"
        now = model.policy.remember(batch.burn_in.steps)
        drifts.append(apart(state, now))
        return compute(batch, *args, **kwargs)

    model._loss_and_gradients = spy  # type: ignore[method-assign]
    before = weights_of(model)
    model.learn(STEPS, reset_num_timesteps=False)
    assert len(drifts) == 2 * 3 and max(drifts) == 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


def test_remembering_builds_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state has no graph in any case, but building one takes time and memory."""
    graphs: list[bool] = []

    class Watching(BookkeepingCore):
        def _unroll(self, inputs: Tensor, *args: Any) -> ctrl.Unrolled:
            graphs.append(inputs.requires_grad)
            return super()._unroll(inputs, *args)

    monkeypatch.setitem(ctrl._CORES, "watching", Watching)
    model = make_model(staggered_env(), "watching", refresh=13, n_epochs=1, batch_size=STEPS).learn(2 * STEPS)
    assert graphs == [False, True, False] * 2, "burn-in, windows, staleness"
    assert model.policy.training


def test_without_refresh_nothing_more_is_kept_or_computed() -> None:
    model = make_model(staggered_env(), "gru").learn(2 * STEPS)
    batch = model.rollout_buffer.all_windows(model.policy)
    assert batch.burn_in is None and model._refreshed(batch) is batch
    assert list(model.rollout_buffer.snapshots) == [0, 8, 16]


# Staleness


def staleness(model: MemoryPPO) -> float:
    value: float = model.logger.name_to_value["memory/staleness"]
    return value


@pytest.mark.parametrize("refresh", ["none", 13])
@pytest.mark.parametrize("core", [core for core in CORES if core != "feedforward"])
def test_staleness_is_what_new_weights_would_have_written(core: str, refresh: Any) -> None:
    """Of the 17 envs the first three are measured: an eighth, rounded up."""
    copies = (STAGGERED * 6)[:17]
    recorder = Recorder()
    model = make_model(
        DummyVecEnv(makers(copies)),  # type: ignore[arg-type]
        core,
        learning_rate=1e-2,
        refresh=refresh,
        policy_kwargs={"previous_reward": True},
    ).learn(2 * N_STEPS * 17, recorder)
    assert model._actor is not None
    last = recorder.moments[-WINDOW:]
    before, then, now = last[0].before.core, model._actor.state().core, walked(model, last)
    remembered = (model.policy.core.remembered(state) for state in (before, then, now))
    expected = drift(*(tuple(leaf[:3] for leaf in leaves) for leaves in remembered))
    assert expected is not None and expected > 3e-4, "far more than rounding"
    assert staleness(model) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("core", [core for core in CORES if core != "feedforward"])
def test_staleness_grows_with_the_learning_rate(core: str) -> None:
    """If the weights hardly change, staleness is only rounding. Compressors have their own learning rate."""
    found = [
        staleness(make_model(staggered_env(), core, learning_rate=rate, memory_learning_rate=rate).learn(2 * STEPS))
        for rate in (1e-12, 1e-4, 1e-2)
    ]
    assert found[0] < 1e-5 < found[1] < found[2]


@pytest.mark.usefixtures("bookkeeping")
def test_what_no_weight_writes_is_never_stale() -> None:
    model = bookkeeper(staggered_env(), "none").learn(2 * STEPS)
    assert staleness(model) == 0


def test_measuring_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(change: Callable[[], None]) -> dict[str, Tensor]:
        change()
        return weights_of(make_model(staggered_env()).learn(2 * STEPS))

    with_it = run(lambda: None)
    without = run(lambda: monkeypatch.setattr(MemoryPPO, "_log_staleness", lambda self, windows: None))
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_it.items())
