"""`MemoryImpala` in all uses of `MemoryPPO`: forms of envs, wrappers, spaces, callbacks, `save` and `load`."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from actor_toys import UPDATE, WINDOW, WINDOWS, Everything, Locked, StopOnce, make_impala
from agent_toys import (
    CORES,
    STAGGERED,
    AtRolloutEnd,
    Scalars,
    ToldEpisodes,
    makers,
    same_weights,
    staggered_env,
    vectorized,
    weights_of,
)
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

import ctrl.envs  # noqa: F401 - registers the tasks
from ctrl.agents import MemoryImpala, check_memory
from ctrl.agents.actors.pickling import packed

SIZES: dict[str, Any] = {"n_steps": WINDOW, "windows_per_update": WINDOWS}
SMALL: dict[str, Any] = {**SIZES, "learning_rate": 3e-4, "device": "cpu", "seed": 0}


def policy_kwargs(core: str = "gru") -> dict[str, Any]:
    return {"core": core, "core_kwargs": CORES[core], "encoder_arch": [8], "net_arch": [8]}


# Callbacks, in a run with an actor


class Told(BaseCallback):
    """Callback that keeps its `locals` at each step, and the logged values."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, np.ndarray, np.ndarray, list[dict[str, Any]]]] = []
        self.logged = Scalars()

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self.logged)

    def _on_step(self) -> bool:
        told = self.locals
        self.steps.append((self.num_timesteps, told["rewards"].copy(), told["dones"].copy(), told["infos"]))
        return True


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryImpala, Told, Path]:
    """Return an agent trained with one actor, its callback's records, and the folder with its checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    told = Told()
    callbacks = [
        told,
        CheckpointCallback(WINDOW * WINDOWS, str(folder), name_prefix="then"),
        EvalCallback(
            Monitor(ToldEpisodes()), eval_freq=2 * WINDOW * WINDOWS, n_eval_episodes=3, log_path=str(folder), verbose=0
        ),
        AtRolloutEnd(lambda model: check_memory(model) if model.num_timesteps == UPDATE else None),
    ]
    env = DummyVecEnv([lambda make=make: Monitor(make()) for make in makers()])  # type: ignore[misc]
    model = make_impala(env, "gru", num_actors=1, tensorboard_log=str(folder / "logs"))
    return model.learn(4 * UPDATE, CallbackList(callbacks)), told, folder


def test_callbacks_see_each_step(watched: tuple[MemoryImpala, Told, Path]) -> None:
    model, told, _ = watched
    assert [step[0] for step in told.steps] == list(range(3, 4 * UPDATE + 1, 3))
    assert told.n_calls == 4 * WINDOWS * WINDOW and model.num_timesteps == 4 * UPDATE
    rewards, dones = (np.array([step[part] for step in told.steps]) for part in (1, 2))
    for env, lengths in enumerate(STAGGERED):  # one actor, so one long stream of episodes; rewards count their steps
        ends = np.flatnonzero(dones[:, env]) + 1
        expected = [lengths[episode % len(lengths)] for episode in range(len(ends))]
        assert np.diff([0, *ends]).tolist() == expected
        np.testing.assert_array_equal(rewards[: ends[-1], env], np.concatenate([np.arange(n) + 1.0 for n in expected]))


def test_infos_tell_of_the_ends_of_episodes(watched: tuple[MemoryImpala, Told, Path]) -> None:
    for _, _, dones, infos in watched[1].steps:
        for done, info in zip(dones, infos, strict=True):
            assert bool(info) == bool(done)
            if done:
                assert {"TimeLimit.truncated", "is_success"} <= info.keys() and "terminal_observation" not in info


def ended_episodes(steps: int) -> list[tuple[int, bool]]:
    """Return length and success of all episodes that end within `steps` steps of each of the staggered envs."""
    found = []
    for lengths in STAGGERED:
        ends = np.cumsum(np.resize(lengths, steps))
        found += [(lengths[n % len(lengths)], n % 2 == 0) for n in range(int((ends <= steps).sum()))]
    return found


def test_what_an_actor_adds_to_the_log(watched: tuple[MemoryImpala, Told, Path]) -> None:
    model, told, folder = watched
    lengths, successes = zip(*ended_episodes(4 * WINDOWS * WINDOW), strict=True)
    last = {key: values[-1] for key, values in told.logged.values.items() if key.startswith("rollout/")}
    assert last == pytest.approx(
        {
            "rollout/ep_len_mean": np.mean(lengths),
            "rollout/ep_rew_mean": np.mean([length * (length + 1) / 2 for length in lengths]),
            "rollout/success_rate": np.mean(successes),
        }
    )
    logged = model.logger.name_to_value
    assert 0 <= logged["train/policy_lag"] <= 4 and 0 < logged["train/rho_mean"] < 10
    assert logged["time/actor_restarts"] == 0 and logged["train/n_updates"] == 4
    assert "memory/state_bytes" in logged and "memory/staleness" not in logged
    assert list((folder / "logs").glob("MemoryImpala_1/events*"))


def test_checkpoints_and_evaluations(watched: tuple[MemoryImpala, Told, Path]) -> None:
    """A checkpoint is saved while actors run, and contains no actors."""
    model, _, folder = watched
    loaded = MemoryImpala.load(folder / f"then_{4 * UPDATE}_steps", device="cpu")
    assert loaded.num_timesteps == 4 * UPDATE and loaded._actors is None
    assert not same_weights(weights_of(loaded), weights_of(model)), "an update came after it"
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [2 * UPDATE, 4 * UPDATE]


@pytest.mark.parametrize("num_actors", [0, 1])
def test_a_callback_stops_training(num_actors: int) -> None:
    """Learning can continue afterwards."""
    model = make_impala(staggered_env(), "gru", num_actors=num_actors)
    calls: list[int] = []
    model.learn(4 * UPDATE, StopOnce(lambda: calls.append(1) or len(calls) == 10))  # type: ignore[func-returns-value]
    assert model.num_timesteps == 30 and model._n_updates == 0 and model._actors is None
    if not num_actors:  # the rollout in progress goes on, and the number of steps is reached in the one after it
        model.learn(UPDATE, reset_num_timesteps=False)
        assert model.num_timesteps == 2 * UPDATE and model._n_updates == 2
        assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


# Forms of envs


def test_dicts_images_and_boxes_go_through_the_queue() -> None:
    """The env is given as a function. Entries of infos that are neither number nor text are not sent to the learner."""
    kwargs: dict[str, Any] = {**policy_kwargs(), "features_extractor_kwargs": {"cnn_output_dim": 8}}
    told = Told()
    model = MemoryImpala(
        "MultiInputMemoryPolicy", lambda: Everything(), num_actors=1, policy_kwargs=kwargs, **{**SMALL, "n_steps": 5}
    )
    model.learn(3 * 5 * WINDOWS, told)
    stored = model.rollout_buffer.observations
    assert (
        stored["image"].dtype == np.uint8 and stored["image"].std() > 50 and set(stored["number"].flat) <= set(range(5))
    )
    assert np.abs(stored["vector"]).max() <= 1 and stored["vector"].std() > 0.1
    ends = [info for *_, infos in told.steps for info in infos if info]
    assert ends and all({"text", "episode", "TimeLimit.truncated"} == info.keys() for info in ends)
    assert set(ends[0]["episode"]) == {"r", "l", "t"}
    assert np.isfinite(model.logger.name_to_value["train/loss"])


def test_images_alone() -> None:
    env = gym.make("ctrl/SelectNonmatchingObject-v0", observation="pixels")
    model = MemoryImpala("CnnMemoryPolicy", env, num_actors=0, policy_kwargs=policy_kwargs(), **SMALL)
    model.learn(2 * WINDOW * WINDOWS)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


FORMS: dict[str, Callable[[], Any]] = {
    "id": lambda: "CartPole-v1",
    "env": lambda: gym.make("CartPole-v1"),
    "DummyVecEnv": staggered_env,
    "native": lambda: gym.make_vec("ctrl/Recall-v0", num_envs=3),
    "sync": lambda: vectorized(makers(), AutoresetMode.NEXT_STEP).env,  # type: ignore[union-attr]
    "monitored": lambda: VecMonitor(staggered_env()),
    "stacked": lambda: VecFrameStack(staggered_env(), 2),
    "normalised": lambda: VecNormalize(VecFrameStack(VecNormalize(staggered_env()), 2)),
    "function": lambda: lambda: gym.make_vec("ctrl/Recall-v0", num_envs=3),
    "function of an id": lambda: lambda: "CartPole-v1",
    "class": lambda: ToldEpisodes,
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_env_can_be_sent_and_learned_from(form: str) -> None:
    """The copy that an actor unpacks acts like the original, from the same seed on."""
    model = MemoryImpala("MlpMemoryPolicy", FORMS[form](), num_actors=2, policy_kwargs=policy_kwargs(), **SMALL)
    copied = cloudpickle.loads(packed(model._env_for_actors()))()
    shown = []
    for env in (copied, model.env):
        env.seed(7)
        shown.append([env.reset(), *(env.step(np.zeros(env.num_envs, dtype=int))[0] for _ in range(20))])
    np.testing.assert_array_equal(*shown)
    model.num_actors = 0
    model.learn(1)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


def test_an_env_that_cannot_be_sent_is_refused_when_the_model_is_built(tmp_path: Path) -> None:
    message = r"env, or policy, cannot be sent to actor .*lock.*; give a function that returns the env, or num_actors=0"
    with pytest.raises(ValueError, match=message):
        make_impala(Locked(), "gru", num_actors=1)
    model = make_impala(Locked(), "gru", num_actors=0).learn(1)
    model.save(tmp_path / "agent")
    model = make_impala(lambda: Locked(), "gru", num_actors=1)
    with pytest.raises(ValueError, match=message):
        model.set_env(Locked())
    model.set_env(lambda: Locked())
    model.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=message):
        MemoryImpala.load(tmp_path / "agent", Locked(), device="cpu")
    assert MemoryImpala.load(tmp_path / "agent", lambda: Locked(), device="cpu").n_envs == 1


def test_processes_of_the_learners_env_cannot_be_sent() -> None:
    env = SubprocVecEnv([ToldEpisodes], start_method="fork")
    try:
        with pytest.raises(ValueError, match="cannot be sent to actor processes"):
            make_impala(env, "gru", num_actors=1)
    finally:
        env.close()


SCRIPT = """
    import gymnasium as gym
    from ctrl.agents import MemoryImpala

    class Mine(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, bool(self.np_random.random() < 0.1), False, {}

    model = MemoryImpala("MlpMemoryPolicy", Mine(), num_actors=1, n_steps=5, policy_kwargs={"core": "gru"})
    print(model.learn(40).num_timesteps)
"""


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """The script defines its env's class. Files in its working folder have the names of modules that actors need."""
    (tmp_path / "script").mkdir()
    script = tmp_path / "script" / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    for name in ("ctrl", "torch", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.strip(), done.returncode) == ("40", 0), done.stderr
