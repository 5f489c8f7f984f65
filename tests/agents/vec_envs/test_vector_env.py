"""`GymnasiumVecEnv` compared with SB3's own `DummyVecEnv` of the same single envs, and with tables written by hand."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from vector_env_toys import (
    ACTION_SPACES,
    COPIES,
    DISABLED,
    NEXT_STEP,
    OBSERVATION_SPACES,
    SAME_STEP,
    Constant,
    Ends,
    Pulse,
    Walk,
    sync,
)

import ctrl.envs
from ctrl.agents.vec_envs.vector_env import GymnasiumVecEnv

STEPS = 40
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)


def dummy(make: Callable[[], gym.Env[Any, Any]] = Walk) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(make())] * COPIES)


def action_table(space: spaces.Space[Any], steps: int = STEPS) -> npt.NDArray[Any]:
    """Return actions [steps, COPIES, …]."""
    space.seed(1)
    return np.array([[space.sample() for _ in range(COPIES)] for _ in range(steps)])


def run(env: VecEnv, actions: npt.NDArray[Any], seed: int = 5) -> Iterator[tuple[Any, ...]]:
    """Yield the first observations with the reset infos, then each step with the current reset infos."""
    env.seed(seed)
    yield env.reset(), [dict(info) for info in env.reset_infos]
    for action in actions:
        yield (*env.step(action), [dict(info) for info in env.reset_infos])


def assert_same(ours: Any, reference: Any, where: str = "") -> None:
    """Compare nested data: values, shapes, and dtypes of arrays. The time of an episode may differ."""
    if isinstance(reference, dict):
        assert ours.keys() == reference.keys(), where
        for key in reference:
            if key != "t":
                assert_same(ours[key], reference[key], f"{where}.{key}")
    elif isinstance(reference, list | tuple):
        assert len(ours) == len(reference), where
        for index, (one, other) in enumerate(zip(ours, reference, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        one, other = np.asarray(ours), np.asarray(reference)
        assert one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, err_msg=where)


def assert_same_runs(ours: VecEnv, reference: VecEnv) -> None:
    """Compare all that two envs return for the same seed and actions, over several episodes."""
    actions, ends = action_table(reference.action_space), 0
    for step, expected in zip(run(ours, actions), run(reference, actions), strict=True):
        assert_same(step, expected)
        ends += len(expected) > 2 and expected[2].sum()
    assert ends > 3 * COPIES


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED], ids=lambda mode: mode.name)
def test_same_as_dummy_vec_env(mode: AutoresetMode, observation: str) -> None:
    assert_same_runs(sync(mode, partial(Walk, observation)), dummy(partial(Walk, observation)))


@pytest.mark.parametrize("keys", [None, ["position"]], ids=["box", "dict"])
def test_vec_normalize_over_it(keys: list[str] | None) -> None:
    make = partial(Walk, "dict" if keys else "box")
    assert_same_runs(*(VecNormalize(env, norm_obs_keys=keys) for env in (sync(SAME_STEP, make), dummy(make))))


def test_native_recall_is_dummy_recall() -> None:
    ours = GymnasiumVecEnv(ctrl.envs.RecallVectorEnv(COPIES, length=4, num_cues=3))
    assert_same_runs(ours, dummy(partial(ctrl.envs.RecallEnv, length=4, num_cues=3)))


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_async_is_the_same_too(observation: str) -> None:
    make = partial(Walk, observation)
    ours = GymnasiumVecEnv(AsyncVectorEnv([make] * COPIES, autoreset_mode=SAME_STEP))
    try:
        assert_same_runs(ours, dummy(make))
    finally:
        ours.close()


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_next_step_is_the_same_without_its_reset_steps(observation: str) -> None:
    """Actions depend on each env's own step number, so that both forms get the same action at the same step."""
    make = partial(Walk, observation)
    ours, actions = sync(NEXT_STEP, make), action_table(ACTION_SPACES["discrete"], 2 * STEPS)
    expected = _by_env(run(dummy(make), actions))
    ours.seed(5)
    before, number = ours.reset(), np.zeros(COPIES, dtype=np.int64)
    ended = np.zeros(COPIES, dtype=bool)
    for _ in range(STEPS):
        step = ours.step(actions[number, np.arange(COPIES)])
        for i, (observation_, reward, done, info, reset_info) in enumerate(_rows(*step, ours.reset_infos)):
            if ended[i]:
                assert info.pop("reset_step") is True
                assert_same((done, reward), (True, np.float32(0)))
                _, _, _, info_then, next_reset_info = expected[i][number[i]]
                assert_same(info, info_then)
                assert_same(info["terminal_observation"], _row(before, i))
                assert_same(observation_, expected[i][number[i]][0])
                assert_same(reset_info, next_reset_info)
                ended[i] = False
            else:
                next_observation, reward_then, ended[i], info_then, _ = expected[i][number[i] + 1]
                assert_same((done, reward), (False, reward_then))
                assert_same(observation_, info_then["terminal_observation"] if ended[i] else next_observation)
                assert_same(_without_end(info), _without_end(info_then))
                assert "episode" not in info
                assert not info["TimeLimit.truncated"]
                number[i] += 1
        before = step[0]
    assert number.min() > STEPS / 2
    assert (number < STEPS).all()


def _row(batch: Any, i: int) -> Any:
    return {key: part[i] for key, part in batch.items()} if isinstance(batch, dict) else batch[i]


def _rows(observations: Any, *others: Any) -> list[tuple[Any, ...]]:
    return [(_row(observations, i), *(other[i] for other in others)) for i in range(COPIES)]


def _by_env(steps: Iterator[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Return a list of (observation, reward, done, info, reset_info) for each env, the reset first."""
    observations, reset_infos = next(steps)
    nothing = [None] * COPIES
    table = [_rows(observations, nothing, nothing, nothing, reset_infos)] + [_rows(*step) for step in steps]
    return [[row[i] for row in table] for i in range(COPIES)]


def _without_end(info: dict[str, Any]) -> dict[str, Any]:
    of_end = ("terminal_observation", "TimeLimit.truncated", "episode", "NextStep.terminated")
    return {key: value for key, value in info.items() if key not in of_end}


@MODES
def test_only_a_mere_truncation_is_a_time_limit(mode: AutoresetMode) -> None:
    makes = [lambda end=end: Ends(end) for end in range(3)]
    ours = GymnasiumVecEnv(SyncVectorEnv(makes, autoreset_mode=mode))
    ours.reset()
    zeros = np.zeros(COPIES, dtype=np.int64)
    for _ in range(2):  # episodes
        for _ in range(1 if mode != NEXT_STEP else 2):
            _, _, dones, infos = ours.step(zeros)
            assert not dones.any()
            assert [info["TimeLimit.truncated"] for info in infos] == [False] * 3
        _, _, dones, infos = ours.step(zeros)
        assert dones.all()
        assert [info["TimeLimit.truncated"] for info in infos] == [False, True, False]
        assert [info["is_success"] for info in infos] == [True, False, False]
        assert type(infos[0]["is_success"]) is bool
        assert [info["episode"]["l"] for info in infos] == [2, 2, 2]
        assert [info.get("reset_step", False) for info in infos] == [mode == NEXT_STEP] * 3


@pytest.mark.parametrize("as_dict", [False, True])
@MODES
def test_native_env_by_hand(mode: AutoresetMode, as_dict: bool) -> None:
    """The test keeps all returned values until the end, so a buffer that is used twice would be noticed."""
    ours = GymnasiumVecEnv(Pulse(mode, as_dict))
    first: Any = ours.reset()
    kept: list[Any] = [ours.step(np.array([1, 2, 3])) for _ in range(12)]

    def plain(observation: Any) -> Any:
        return observation["seen"] if as_dict else observation

    assert not plain(first).any()
    for i in range(COPIES):
        length = i + 2
        period = length + (mode == NEXT_STEP)
        returns = sum(i + 1 + step for step in range(1, length + 1))
        for number, (observations, rewards, dones, infos) in enumerate(kept, start=1):
            episode, step = divmod(number, period)
            assert plain(observations)[i].tolist() == [episode, step]
            assert dones[i] == (step == 0)
            info = infos[i]
            assert info.pop("seen").tolist() == ([episode, step] if step else [episode - 1, length])
            if step == 0:
                assert rewards[i] == (0 if mode == NEXT_STEP else i + 1 + length)
                assert plain(info["terminal_observation"]).tolist() == [episode - 1, length]
                assert info["episode"].items() >= {"r": returns, "l": length}.items()
                assert info["steps"] == length
            else:
                assert rewards[i] == i + 1 + step
                late_end = {"NextStep.terminated": True} if mode == NEXT_STEP and step == length else {}
                assert info == {"TimeLimit.truncated": False, "level": 3, "steps": step, **late_end}
            assert info["level"] == 3


def test_reset_forgets_the_running_and_the_ended_episodes() -> None:
    ours = GymnasiumVecEnv(Pulse(NEXT_STEP))
    for steps in (2, 3):  # env 0 ends at step 2
        ours.reset()
        dones = [ours.step(np.zeros(COPIES))[2].tolist() for _ in range(steps)]
        assert dones[2:] == [[True, False, False]] * (steps - 2)
    ours.reset()
    _, rewards, reported, _ = ours.step(np.zeros(COPIES))
    assert not reported.any()
    assert rewards.tolist() == [1, 1, 1]
    assert _row(ours.step(np.zeros(COPIES))[0], 0).tolist() == [0, 2]
    assert ours.step(np.zeros(COPIES))[3][0]["episode"].items() >= {"r": 3.0, "l": 2}.items()
    assert ours.step(np.zeros(COPIES))[3][1]["episode"].items() >= {"r": 6.0, "l": 3}.items()
    assert ours.step(np.zeros(COPIES))[3][2]["episode"].items() >= {"r": 10.0, "l": 4}.items()


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_actions_arrive_in_the_dtype_of_their_space(action: str) -> None:
    received: list[Any] = []

    class Ear(Walk):
        def step(self, action: Any) -> Any:
            received.append(action)
            assert self.action_space.contains(action)
            return super().step(action)

    ours = sync(SAME_STEP, lambda: Ear(action=action))
    actions = action_table(ours.action_space, steps=1)[0]
    ours.reset()
    for dtype in (np.float64, actions.dtype):
        received.clear()
        ours.step(actions.astype(dtype))
        np.testing.assert_array_equal(np.array(received), actions)
    with pytest.raises(ValueError, match=r"actions must be of shape \(3,.* got \(2,"):
        ours.step(actions[:2])


@MODES
def test_evaluate_policy_counts_true_returns_and_lengths(mode: AutoresetMode) -> None:
    """There is no warning about a missing Monitor, and reset steps don't count."""
    reference, ours = dummy(), sync(mode)
    results = []
    for env in (reference, ours):
        env.seed(9)
        results.append(evaluate_policy(Constant(), env, n_eval_episodes=12, return_episode_rewards=True))  # type: ignore[arg-type]
    if mode == NEXT_STEP:  # the same episodes end in another order
        results = [(sorted(returns), sorted(lengths)) for returns, lengths in results]  # type: ignore[arg-type]
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)


def test_vec_normalize_over_next_step_normalises_the_late_observation() -> None:
    ours = VecNormalize(sync(NEXT_STEP))
    actions = action_table(ours.action_space)
    raw_before, found = None, 0
    ours.seed(5)
    ours.reset()
    for action in actions:
        _, _, dones, infos = ours.step(action)
        for i in np.flatnonzero(dones):
            assert raw_before is not None
            assert_same(infos[i]["terminal_observation"], _row(ours.normalize_obs(raw_before), int(i)))
            found += 1
        raw_before = ours.get_original_obs()
    assert found > COPIES


@MODES
@pytest.mark.parametrize("counted", ["by a Monitor below", "by the vector env"])
def test_episodes_that_are_counted_below_are_counted_once(counted: str, mode: AutoresetMode) -> None:
    """A reward wrapper above the Monitor must not change the reported return."""

    def make() -> gym.Env[Any, Any]:
        return gym.wrappers.TransformReward(Monitor(Ends(0)), lambda reward: 100.0)

    if counted == "by a Monitor below":
        ours = sync(mode, make)
    elif mode == DISABLED:
        pytest.skip("RecordEpisodeStatistics does not take it")
    else:
        ours = GymnasiumVecEnv(RecordEpisodeStatistics(SyncVectorEnv([lambda: Ends(0)] * COPIES, autoreset_mode=mode)))
    ours.reset()
    ended = 0
    for action in action_table(ours.action_space, 6):
        for done, info in zip(*ours.step(action)[2:], strict=True):
            assert ("episode" in info) == done
            assert not done or (info["episode"]["l"] == 2 and abs(info["episode"]["r"]) < 50)
            ended += done
    assert ended == COPIES * (2 if mode == NEXT_STEP else 3)


def test_ppo_learns_on_a_next_step_env() -> None:
    """SB3 gets the true episodes of CartPole's native vector env, whose mode is NEXT_STEP."""
    ours = GymnasiumVecEnv(gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point"))
    assert ours.autoreset_mode == NEXT_STEP
    model = PPO("MlpPolicy", ours, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(256)
    assert model.ep_info_buffer
    assert all(episode["r"] == episode["l"] > 5 for episode in model.ep_info_buffer)


def test_seeds_and_options_serve_once() -> None:
    ours = sync(SAME_STEP)
    assert ours.seed(5) == [5, 6, 7]
    ours.set_options({"hard": True})
    first: Any = ours.reset()
    assert ours.get_attr("np_random_seed") == [5, 6, 7]
    assert ours.get_attr("options") == [{"hard": True}] * COPIES
    second: Any = ours.reset()
    assert not np.array_equal(second, first)
    assert ours.get_attr("options") == [None] * COPIES
    ours.set_options([{}, {"hard": True}, {}])
    with pytest.raises(ValueError, match="the same options for all envs"):
        ours.reset()


def test_close_closes_the_vector_env() -> None:
    ours = sync(SAME_STEP)
    ours.close()
    assert ours.env.closed


@pytest.mark.parametrize("found", ["no entry", "later", None, True])
def test_unknown_autoreset_mode_is_named(found: Any) -> None:
    env = Pulse(found)
    if found == "no entry":
        env.metadata = {}
    with pytest.raises(ValueError, match=rf"must be one of .*NEXT_STEP.*, got {found!r}"):
        GymnasiumVecEnv(env)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a gymnasium VectorEnv, got Walk"):
        GymnasiumVecEnv(Walk())  # type: ignore[arg-type]
    box = OBSERVATION_SPACES["box"]
    for space, what in (
        (spaces.Tuple([box, spaces.Text(3)]), r"observation_space\['1'\] must be Box.*got Text"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Text(3)})}), r"observation_space\['a/b'\] must be Box"),
    ):
        env = Pulse(SAME_STEP)
        env.single_observation_space = space
        with pytest.raises(ValueError, match=what):
            GymnasiumVecEnv(env)
    env = Pulse(SAME_STEP)
    env.single_action_space = spaces.Tuple([box])
    with pytest.raises(ValueError, match="action_space must be Box, Discrete"):
        GymnasiumVecEnv(env)


def test_breaches_of_the_vector_contract_are_named() -> None:
    listed = GymnasiumVecEnv(DictInfoToList(SyncVectorEnv([Walk] * COPIES, autoreset_mode=DISABLED)))
    listed._set_reset_infos = lambda *_: None  # type: ignore[method-assign]
    listed.reset()
    with pytest.raises(ValueError, match="infos must be a dict of arrays, got list"):
        listed.step(np.zeros(COPIES))

    class Silent(Pulse):
        def step(self, actions: Any) -> Any:
            *rest, infos = super().step(actions)
            infos.pop("final_obs", None)
            return (*rest, infos)

    ours = GymnasiumVecEnv(Silent(SAME_STEP))
    ours.reset()
    ours.step(np.zeros(COPIES))
    with pytest.raises(ValueError, match=r"last observation of env 0 in infos\['final_obs'\]"):
        ours.step(np.zeros(COPIES))
    with pytest.raises(RuntimeError, match="call step_async"):
        ours.step_wait()


def test_usual_step_has_no_loop_over_envs() -> None:
    """A step of 64 times as many envs must not cost 64 times as much, as a loop over envs would."""

    def cost(num_envs: int) -> float:
        ours = GymnasiumVecEnv(ctrl.envs.RecallVectorEnv(num_envs, length=1000))
        ours.reset()
        return min(timeit.repeat(lambda: ours.step(np.zeros(num_envs)), number=1, repeat=200))

    assert cost(256) < 10 * cost(4)
