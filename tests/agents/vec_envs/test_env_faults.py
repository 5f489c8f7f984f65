"""Envs that return what they may not are found at once, by env and step; odd but sound ones train."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import BOTH, make_impala
from agent_toys import MODES, STAGGERED, ToldEpisodes, make_model, makers, same_weights, vectorized, weights_of
from fault_toys import STEP, BareVecEnv, OneArray, faulty
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from ctrl.agents import EnvContractError, GymnasiumVecEnv, NonFiniteError

UPDATE = 72
FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "reward (1, 1)": (lambda o, r, e, c, i: (o, np.ones((1, 1)), e, c, i), "reward of env 1 must be a number"),
    "reward of text": (lambda o, r, e, c, i: (o, "1.0", e, c, i), "reward of env 1 must be a number"),
    "reward of None": (lambda o, r, e, c, i: (o, None, e, c, i), "reward of env 1 must be a number"),
    "terminated": (lambda o, r, e, c, i: (o, r, "False", c, i), "terminated of env 1 must be True or False"),
    "truncated": (lambda o, r, e, c, i: (o, r, e, None, i), "truncated of env 1 must be True or False"),
    "flag of 2": (lambda o, r, e, c, i: (o, r, 2, c, i), "terminated of env 1 must be True or False"),
    "no info": (lambda o, r, e, c, i: (o, r, e, c, None), "info of env 1 must be a dict"),
    "info of a list": (lambda o, r, e, c, i: (o, r, e, c, [("a", 1)]), "info of env 1 must be a dict"),
    "one number": (lambda o, r, e, c, i: (0.5, r, e, c, i), r"observation of env 1 must be of shape \(3,\)"),
    "one axis more": (lambda o, r, e, c, i: (o[None], r, e, c, i), r"observation of env 1 must be of shape \(3,\)"),
    "wider": (lambda o, r, e, c, i: (np.ones(4), r, e, c, i), r"observation of env 1 must be of shape \(3,\)"),
    "ragged": (lambda o, r, e, c, i: ([[1], [1, 2]], r, e, c, i), "observation of env 1 must be an array"),
    "text": (lambda o, r, e, c, i: (np.array(["a", "b", "c"]), r, e, c, i), "observation of env 1 must be numbers"),
    "four values": (lambda o, r, e, c, i: (o, r, e, i), "step of env 1 must return .*, got tuple of 4"),
}
BY_ENV = pytest.mark.parametrize("name", FAULTS)


def told(name: str) -> str:
    """Return the message that a fault must give, with the training step in it."""
    return f"{FAULTS[name][1]}.* at step {STEP}" if name != "four values" else "step of env 1 must return .*at step 15"


def assert_found(model: Any, message: str, error: type[Exception] = EnvContractError) -> None:
    before = weights_of(model)
    with pytest.raises(error, match=message):
        model.learn(UPDATE)
    assert same_weights(weights_of(model), before)


@BY_ENV
@MODES
def test_a_wrong_result_of_one_env_is_found(mode: AutoresetMode | None, name: str) -> None:
    assert_found(make_model(vectorized(faulty(FAULTS[name][0]), mode), "feedforward"), told(name))


@BY_ENV
def test_a_wrong_result_is_found_by_impala_and_above_a_monitor(name: str) -> None:
    """`Monitor` reads rewards first, and cannot say which env it was."""
    model = make_impala(DummyVecEnv(faulty(FAULTS[name][0], Monitor)), "feedforward")
    assert_found(model, f"what env 1 returned cannot be read at step {STEP}: |{told(name)}")


@pytest.mark.parametrize("name", ["reward (1, 1)", "terminated", "no info"])
@pytest.mark.parametrize("kind", ["SubprocVecEnv", "AsyncVectorEnv"])
def test_a_wrong_result_of_another_process_is_found(kind: str, name: str) -> None:
    makes = faulty(FAULTS[name][0])
    env = SubprocVecEnv(makes, "fork") if kind == "SubprocVecEnv" else GymnasiumVecEnv(AsyncVectorEnv(makes))
    try:
        if name == "no info" and kind == "SubprocVecEnv":  # it fails in the worker, which writes into the info
            assert_found(make_model(env, "feedforward"), "the process of env 1 has ended", EOFError)
        else:
            assert_found(make_model(env, "feedforward"), told(name))
    finally:
        for process in env.processes if kind == "SubprocVecEnv" else ():
            process.kill()
        if kind == "AsyncVectorEnv":
            env.close()


def test_an_error_of_the_env_stays_as_it_is_and_names_the_env() -> None:
    class OutOfCableError(Exception):
        pass

    def fail(*_: Any) -> Any:
        raise OutOfCableError("the cable is out")

    with pytest.raises(OutOfCableError, match="the cable is out") as caught:
        make_model(DummyVecEnv(faulty(fail)), "feedforward").learn(UPDATE)
    assert getattr(caught.value, "__notes__", None) in (None, ["raised by env 1", "at training step 15"])


class Shown(gym.Env[Any, Any]):
    """Env that shows given things, one after the other.

    :param space: of the observations
    :param shown: what `reset` and the steps show
    """

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any], *shown: Any) -> None:
        self.observation_space, self.shown, self.place = space, shown, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.shown[0], {}

    def step(self, action: Any) -> Any:
        self.place += 1
        return self.shown[min(self.place, len(self.shown) - 1)], 1.0, False, False, {}


DICT = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float32)})
RIGHT = {"a": 1, "b": np.zeros(2, np.float32)}
PIXELS = spaces.Box(0, 255, (4, 5), np.uint8)


@pytest.mark.parametrize(
    ("space", "right", "wrong", "message"),
    [
        (DICT, RIGHT, {"a": 1}, r"missing are \['b'\]"),
        (DICT, RIGHT, {**RIGHT, "c": 0}, r"not declared are \['c'\]"),
        (DICT, RIGHT, (1, np.zeros(2)), r"must be a dict of \['a', 'b'\]"),
        (DICT, RIGHT, {**RIGHT, "a": 3}, r"observation.*\['a'\].* must lie in Discrete\(3\)"),
        (DICT, RIGHT, {**RIGHT, "b": np.zeros(3)}, r"observation.*\['b'\].* must be of shape \(2,\)"),
        (PIXELS, np.zeros((4, 5), np.uint8), np.full((4, 5), 0.5), "must be of uint8 .*which cannot hold 0.5"),
        (PIXELS, np.zeros((4, 5), np.uint8), np.full((4, 5), 256), "must be of uint8 .*which cannot hold 256"),
        (spaces.Discrete(4), 0, -1, "must lie in Discrete"),
        (spaces.MultiDiscrete([2, 3]), np.array([0, 2]), np.array([2, 0]), "must lie in MultiDiscrete"),
        (spaces.MultiBinary(2), np.array([0, 1], np.int8), np.array([0, 2], np.int8), "must lie in MultiBinary"),
    ],
)
@pytest.mark.parametrize("mode", [None, AutoresetMode.NEXT_STEP], ids=["dummy", "sync"])
def test_an_observation_outside_of_its_space_is_found(
    mode: AutoresetMode | None, space: Any, right: Any, wrong: Any, message: str
) -> None:
    makes = [partial(Shown, space, right), partial(Shown, space, right, right, wrong)]
    policy = "MultiInputMemoryPolicy" if isinstance(space, spaces.Dict) else "MlpMemoryPolicy"
    model = make_model(vectorized(makes, mode), "feedforward", policy=policy)
    assert_found(model, f"observation.* of env 1.*{message}|{message}")


@pytest.mark.parametrize("right", [np.zeros((4, 5)), np.full((4, 5), 7), [[3.0] * 5] * 4])
def test_an_observation_that_its_space_can_hold_is_taken(right: Any) -> None:
    """A float or list of whole numbers is the same picture."""
    env = partial(Shown, PIXELS)
    one, other = (
        weights_of(make_model(DummyVecEnv([partial(env, shown)])).learn(24))
        for shown in (right, np.array(right, np.uint8))
    )
    assert same_weights(one, other)


@pytest.mark.parametrize("returned", ["only the observation", "a list", "no dict"])
@pytest.mark.parametrize("mode", [None, AutoresetMode.SAME_STEP], ids=["dummy", "sync"])
def test_a_wrong_reset_is_found(mode: AutoresetMode | None, returned: str) -> None:
    class Old(ToldEpisodes):
        def reset(self, **options: Any) -> Any:
            observation, info = super().reset(**options)
            return {"a list": [observation, info], "no dict": (observation, None)}.get(returned, observation)

    model = make_model(vectorized([*makers(STAGGERED[:1]), Old], mode), "feedforward")
    assert_found(model, r"reset of env 1 must return \(observation, info\)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, r, d, i: (o, r[:, None], d, i), r"rewards must be of shape \(3,\) at step 3, got \(3, 1\)"),
        (lambda o, r, d, i: (o, r.astype(str), d, i), "rewards must be numbers at step 3"),
        (lambda o, r, d, i: (o, r, d.astype(bool).astype(str), i), "dones must be True or False at step 3"),
        (lambda o, r, d, i: (o, r, d + 2, i), "dones must be True or False at step 3"),
        (lambda o, r, d, i: (o, r, d[:, None], i), r"dones must be of shape \(3,\) at step 3"),
        (lambda o, r, d, i: (o, r, d, i[1:]), "infos must be 3 dicts"),
        (lambda o, r, d, i: (o, r, d, {}), "infos must be 3 dicts"),
        (lambda o, r, d, i: (o, r, d, (*i[:1], None, *i[2:])), "info of env 1 must be a dict at step 3"),
        (lambda o, r, d, i: (o[:, :2], r, d, i), r"observation must be of shape \(3, 3\) at step 3, got \(3, 2\)"),
        (lambda o, r, d, i: (o, r, d, d, i), "must return .observations, rewards, dones, infos., got 5 values"),
        (
            lambda o, r, d, i: (o, r, d | True, [{"TimeLimit.truncated": True}] * 3),
            "info must have the terminal_observation of env 0, whose episode was truncated at step 3",
        ),
        (
            lambda o, r, d, i: (o, r, d | True, [{"TimeLimit.truncated": "no"}] * 3),
            "TimeLimit.truncated of env 0 must be True or False at step 3",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:the env takes no seed")
def test_a_wrong_result_of_a_vec_env_is_found(change: Callable[..., Any], message: str) -> None:
    assert_found(make_model(BareVecEnv(change=change), "feedforward"), message)


@BOTH
@pytest.mark.filterwarnings("ignore:the env takes no seed")
def test_a_vec_env_without_what_is_optional_trains(make: Any) -> None:
    """Its arrays are the same in each step, dones are uint8, observations and rewards float64, infos a tuple."""
    bare = make(BareVecEnv(), "gru").learn(2 * UPDATE)
    usual = make(DummyVecEnv(makers(ends=("terminated",))), "gru").learn(2 * UPDATE)
    assert same_weights(weights_of(bare), weights_of(usual))


def test_an_env_that_takes_no_seed_is_named() -> None:
    with pytest.warns(UserWarning, match="the env takes no seed"):
        make_model(BareVecEnv(), "feedforward")


@BOTH
@MODES
def test_an_env_that_fills_the_same_array_trains_as_another(mode: AutoresetMode | None, make: Any) -> None:
    """Also the last observation of a cut episode, which the env's reset would overwrite."""
    results = []
    for kind in (OneArray, ToldEpisodes):
        makes = [partial(Monitor, kind(told, copy=copy)) for copy, told in enumerate(STAGGERED)]
        with warnings.catch_warnings():
            model = make(vectorized([lambda make=make: make() for make in makes], mode), "gru").learn(2 * UPDATE)
        results.append((weights_of(model), [(each["r"], each["l"]) for each in model.ep_info_buffer]))
    assert same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1], "an info that is used again counts each episode once"


def test_a_process_that_fills_the_same_array_is_named() -> None:
    """Its last observation is lost before it is sent."""
    env = SubprocVecEnv([partial(OneArray, (4,), ("truncated",))], "fork")
    try:
        assert_found(make_model(env, "feedforward"), "env 0 fills one array with all observations.*at step 4; return")
    finally:
        env.close()


NONSENSE: dict[str, Any] = {
    "reset_step": True,
    "NextStep.terminated": True,
    "TimeLimit.truncated": "perhaps",
    "terminal_observation": "none of yours",
    "final_obs": "mine",
    "final_info": "mine",
    "episode": 7,
    "is_success": "who knows",
    "group": [1, 2],
}
"""All keys of an info that the agents, or what they are built on, know, with values that make no sense."""


class Talkative(gym.Wrapper[Any, Any, Any, Any]):
    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return observation, {**info, **NONSENSE}

    def step(self, action: Any) -> Any:
        *result, info = super().step(action)
        return (*result, {**info, **NONSENSE})


@BOTH
@MODES
def test_what_an_env_puts_into_its_info_for_itself_changes_nothing(mode: AutoresetMode | None, make: Any) -> None:
    results = []
    for wrap in (Talkative, lambda env: env):
        makes: list[Any] = [lambda make=make, wrap=wrap: Monitor(wrap(make())) for make in makers()]
        model = make(vectorized(makes, mode), "gru").learn(2 * UPDATE)
        results.append((weights_of(model), [(each["r"], each["l"]) for each in model.ep_info_buffer]))
    assert same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("value", [1e20, 1e30, 3e38])
@BOTH
def test_an_observation_that_overflows_says_which_env_and_how_large(make: Any, value: float) -> None:
    makes = faulty(lambda o, r, e, c, i: (np.array([0, value, 0], np.float32), r, e, c, i))
    message = rf"observation is too large at step {STEP}: env 1, index \[1\], {value:g}".replace("+", r"\+")
    assert_found(make(DummyVecEnv(makes)), message, NonFiniteError)


class Exponential(FlattenExtractor):
    """Extractor that overflows for an observation of 100."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations).exp()


@BOTH
def test_an_observation_that_overflows_inside_says_which_env_and_how_large(make: Any) -> None:
    makes = faulty(lambda o, r, e, c, i: (np.array([0, 100, 0], np.float32), r, e, c, i))
    model = make(DummyVecEnv(makes), policy_kwargs={"features_extractor_class": Exponential})
    message = f"log-probability of the action is not finite at step {STEP}: env 1, whose .* of up to 100"
    assert_found(model, message, NonFiniteError)
    with pytest.raises(ValueError, match="env 0, whose observation has entries of up to 100"):
        model.predict(np.array([0, 100, 0], np.float32))


@pytest.mark.parametrize("what", ["observation", "reward"])
@MODES
def test_running_statistics_never_see_what_is_not_finite(mode: AutoresetMode | None, what: str) -> None:
    """After one NaN all of them would be NaN, and so would the observations of all envs."""
    bad = np.array([0, np.nan, 0], np.float32)
    change = {
        "observation": lambda o, r, e, c, i: (bad, r, e, c, i),
        "reward": lambda o, r, e, c, i: (o, float("nan"), e, c, i),
    }[what]
    env = VecNormalize(vectorized(faulty(change), mode))
    assert_found(make_model(env, "feedforward"), f"{what} is not finite at step {STEP}: env 1", NonFiniteError)
    assert np.isfinite(env.obs_rms.mean).all() and np.isfinite(env.ret_rms.var)


def test_a_broken_contract_ends_training_with_actors_at_once() -> None:
    """A restart would not help."""
    env = DummyVecEnv(faulty(FAULTS["terminated"][0]))
    with pytest.raises(EnvContractError, match="terminated of env 1 must be True or False at step 15"):
        make_impala(env, "feedforward", num_actors=1).learn(UPDATE)
