"""Observation and action spaces of agents, and the encoding of an action for the next step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import BOTH, make_impala
from agent_toys import PairedEpisodes, make_model
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl.agents import MemoryPPO, evaluate_policy
from ctrl.agents.utils.spaces import action_features, check_spaces, encode_action, first_values

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATIONS: dict[str, tuple[str, spaces.Space[Any]]] = {
    "box": ("MlpMemoryPolicy", spaces.Box(-1.0, 1.0, (3, 2), np.float64)),
    "discrete": ("MlpMemoryPolicy", spaces.Discrete(5)),
    "multi-discrete": ("MlpMemoryPolicy", spaces.MultiDiscrete([3, 4])),
    "multi-binary": ("MlpMemoryPolicy", spaces.MultiBinary(6)),
    "multi-binary 2-D": ("MlpMemoryPolicy", spaces.MultiBinary([2, 3])),
    "flat image": ("MlpMemoryPolicy", spaces.Box(0, 255, (4, 5, 1), np.uint8)),
    "scalar": ("MlpMemoryPolicy", spaces.Box(-1.0, 1.0, (), np.float32)),
    "discrete with a start": ("MlpMemoryPolicy", spaces.Discrete(3, start=-1)),
    "multi-discrete with starts": ("MlpMemoryPolicy", spaces.MultiDiscrete([2, 3], start=[5, -2])),
    "without bounds": ("MlpMemoryPolicy", spaces.Box(-np.inf, np.inf, (2,), np.float64)),
    "image": ("CnnMemoryPolicy", IMAGE),
    "image, channels first": ("CnnMemoryPolicy", spaces.Box(0, 255, (3, 37, 36), np.uint8)),
    "dict": ("MultiInputMemoryPolicy", spaces.Dict({"place": BOX, "room": spaces.Discrete(5)})),
    "dict of all": (
        "MultiInputMemoryPolicy",
        spaces.Dict({"a": IMAGE, "b": spaces.MultiDiscrete([2, 3]), "c": spaces.MultiBinary(2), "d": BOX}),
    ),
    "dict of odd parts": (
        "MultiInputMemoryPolicy",
        spaces.Dict(
            {
                "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
                "small image": spaces.Box(0, 255, (9, 7, 3), np.uint8),
                "start": spaces.Discrete(3, start=4),
                "starts": spaces.MultiDiscrete([2, 3], start=[1, -2]),
            }
        ),
    ),
    "dict of odd keys": (
        "MultiInputMemoryPolicy",
        spaces.Dict({"a.b": BOX, "a/b": BOX, "": BOX, "keys": BOX, "part 0": BOX, "with space": spaces.Discrete(2)}),
    ),
}
NESTED: dict[str, spaces.Space[Any]] = {
    "tuple": spaces.Tuple((BOX, spaces.Discrete(4), IMAGE)),
    "tuple of one": spaces.Tuple((BOX,)),
    "nested dict": spaces.Dict({"deep": spaces.Dict({"a": BOX, "b": spaces.Discrete(3, start=1)}), "c": BOX}),
    "tuple in a dict": spaces.Dict({"pair": spaces.Tuple((BOX, BOX)), "c": spaces.MultiBinary(2)}),
    "dict in a tuple": spaces.Tuple((spaces.Dict({"x": BOX, "y.z": spaces.Box(-1, 1, ())}), spaces.Discrete(2))),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "discrete of one": spaces.Discrete(1),
    "multi-discrete": spaces.MultiDiscrete([2, 5]),
    "discrete with a start": spaces.Discrete(3, start=-1),
    "multi-discrete with starts": spaces.MultiDiscrete([2, 2], start=[1, -5]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.float32([-1, 0]), np.float32([1, 5])),
    "box 2-D": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "box of whole numbers": spaces.Box(-3, 3, (2,), np.int8),
}


class Sampler(gym.Env[Any, Any]):
    """Env that shows samples of its observation space, and accepts only members of its action space."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], length: int = 5) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.step_count = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.step_count += 1
        ended = self.step_count == self.length
        return self.observation_space.sample(), 1.0, False, ended, {}


def samplers(observation: spaces.Space[Any], action: spaces.Space[Any]) -> list[Callable[[], Any]]:
    return [lambda: Sampler(observation, action), lambda: Sampler(observation, action, length=7)]


def assert_works(env: Any, policy: str, folder: Path) -> None:
    """Check that an agent can learn a little, be saved and loaded, and predict."""
    model = make_model(env, policy=policy, n_epochs=1).learn(2 * 24 * 2)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    model.save(folder / "agent")
    loaded = MemoryPPO.load(folder / "agent", device="cpu")
    obs, state, again = env.reset(), None, None
    for _ in range(3):
        actions, state = model.predict(obs, state, deterministic=True)
        others, again = loaded.predict(obs, again, deterministic=True)
        assert all(env.action_space.contains(action) for action in actions)
        np.testing.assert_array_equal(actions, others)
        obs = env.step(actions)[0]


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_observations(observation: str, tmp_path: Path) -> None:
    policy, space = OBSERVATIONS[observation]
    assert_works(DummyVecEnv(samplers(space, ACTIONS["discrete"])), policy, tmp_path)


@pytest.mark.parametrize("nested", NESTED)
@BOTH
def test_nested_observations(nested: str, make: Any, tmp_path: Path) -> None:
    """A single env is asked for its own observations; what it gave can be predicted from as it is."""
    env = Sampler(NESTED[nested], ACTIONS["discrete"])
    model = make(env, policy="MultiInputMemoryPolicy").learn(48)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    model.save(tmp_path / "agent")
    loaded = type(model).load(tmp_path / "agent", env=Sampler(NESTED[nested], ACTIONS["discrete"]), device="cpu")
    observation, _ = env.reset(seed=2)
    action, state = model.predict(observation, deterministic=True)
    again, _ = loaded.predict(observation, deterministic=True)
    assert action == again and action.shape == ()
    assert model.predict(env.step(action)[0], state)[0].shape == ()
    evaluate_policy(loaded, Sampler(NESTED[nested], ACTIONS["discrete"]), 2)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("nested", ["tuple", "nested dict", "dict in a tuple"])
def test_nested_observations_of_vector_envs(nested: str, mode: AutoresetMode) -> None:
    envs = SyncVectorEnv(samplers(NESTED[nested], ACTIONS["discrete"]), autoreset_mode=mode)
    model = make_model(envs, policy="MultiInputMemoryPolicy", n_epochs=1).learn(24 * 2)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    seen, _ = envs.reset(seed=1)
    assert model.predict(seen)[0].shape == (2,)
    evaluate_policy(model, envs, 4)


def test_tuples_of_a_vec_env_and_of_actors() -> None:
    env = DummyVecEnv([lambda: PairedEpisodes((5,)), lambda: PairedEpisodes((7,), ends=("truncated",))])
    model = make_impala(env, policy="MultiInputMemoryPolicy", num_actors=1, max_restarts=0).learn(96)
    assert {key: part.shape for key, part in model.rollout_buffer.observations.items()} == {
        "0": (24, 2, 3),
        "1": (24, 2, 1),
    }
    assert model.predict(env.reset())[0].shape == (2,)


def test_other_parts_than_those_of_the_space_are_refused() -> None:
    model = make_model(Sampler(NESTED["tuple"], ACTIONS["discrete"]), policy="MultiInputMemoryPolicy")
    for wrong in ({"0": np.zeros(3)}, (np.zeros(3), 1), np.zeros(3)):
        with pytest.raises(ValueError, match=r"observation must have the parts \['0', '1', '2'\], got"):
            model.predict(wrong)  # type: ignore[arg-type]


def test_choices_are_counted_from_the_start() -> None:
    """The agent sees Discrete(3, start=4) as Discrete(3), and acts likewise."""
    torch.manual_seed(0)
    shifted, plain = (
        make_model(Sampler(spaces.Discrete(3, start=start), spaces.Discrete(2, start=start))) for start in (4, 0)
    )
    plain.policy.load_state_dict(shifted.policy.state_dict())
    for value in range(3):
        one, other = (
            each.predict(np.array(at), deterministic=True)[1] for each, at in ((shifted, 4 + value), (plain, value))
        )
        assert one is not None and other is not None
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert shifted.predict(np.array(5), deterministic=True)[0] in (4, 5)


@pytest.mark.parametrize("action", ACTIONS)
def test_actions(action: str, tmp_path: Path) -> None:
    assert_works(DummyVecEnv(samplers(BOX, ACTIONS[action])), "MlpMemoryPolicy", tmp_path)


@pytest.mark.parametrize("observation", ["multi-discrete", "image", "dict of all"])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP], ids=lambda mode: mode.name)
def test_observations_and_actions_of_vector_envs(mode: AutoresetMode, observation: str) -> None:
    policy, space = OBSERVATIONS[observation]
    for action in (ACTIONS["box 2-D"], ACTIONS["multi-binary"]):
        envs = SyncVectorEnv(samplers(space, action), autoreset_mode=mode)
        model = make_model(envs, policy=policy, n_epochs=1).learn(24 * 2)
        assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


def test_a_single_observation_of_each_kind() -> None:
    """The observation has no batch axis, as from a gymnasium env."""
    for policy, space in OBSERVATIONS.values():
        env = Sampler(space, ACTIONS["multi-discrete"])
        model = make_model(env, policy=policy)
        action, state = model.predict(env.reset(seed=0)[0])
        assert env.action_space.contains(action)
        assert env.action_space.contains(model.predict(env.observation_space.sample(), state)[0])


# How an action looks to the next step


def test_discrete_actions_are_one_hot() -> None:
    encoded = encode_action(spaces.Discrete(3), torch.tensor([2, 0]))
    assert encoded.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_multi_discrete_actions_are_one_hot_each() -> None:
    encoded = encode_action(spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 0], [0, 2]]))
    assert encoded.tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_multi_binary_actions_are_as_they_are() -> None:
    assert encode_action(spaces.MultiBinary(3), torch.tensor([[1, 0, 1]])).tolist() == [[1, 0, 1]]


def test_box_actions_are_clipped_and_rescaled() -> None:
    space = spaces.Box(np.float32([0, -1]), np.float32([4, 1]))
    encoded = encode_action(space, torch.tensor([[1.0, 0.5], [-9.0, 9.0]]))
    assert encoded.tolist() == [[-0.5, 0.5], [-1, 1]]
    matrix = spaces.Box(np.float32([[0, -1], [0, -2]]), np.float32([[4, 1], [1, 2]]))
    assert encode_action(matrix, torch.tensor([[1.0, 0.5, 1.0, 1.0]])).tolist() == [[-0.5, 0.5, 1, 0.5]]
    assert encode_action(matrix, torch.tensor([[[1.0, 0.5], [1.0, 1.0]]])).tolist() == [[-0.5, 0.5, 1, 0.5]]
    point = spaces.Box(np.float32([2]), np.float32([2]))
    assert encode_action(point, torch.tensor([[2.0], [3.0]])).isfinite().all()


@pytest.mark.parametrize("action", ACTIONS)
def test_features_are_counted_right(action: str) -> None:
    space = ACTIONS[action]
    sampled = np.array([space.sample() - first_values(space) for _ in range(5)])
    encoded = encode_action(space, torch.as_tensor(sampled))
    assert encoded.shape == (5, action_features(space)) and encoded.dtype == torch.float32
    assert float(encoded.min()) >= -1 and float(encoded.max()) <= 1


# What is refused when the model is built

SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), f"observation_space must be {SUPPORTED}, or a Dict or Tuple of these, got Text"),
        (spaces.Sequence(BOX), "observation_space must be .*, got Sequence"),
        (spaces.Graph(BOX, None), "observation_space must be .*, got Graph"),
        (spaces.OneOf((BOX, BOX)), "observation_space must be .*, got OneOf"),
        (spaces.Dict({"word": spaces.Text(3)}), rf"observation_space\['word'\] must be {SUPPORTED}.*Text"),
        (spaces.Tuple((BOX, spaces.Text(3))), r"observation_space\['1'\] must be .*Text"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Text(3)})}), r"observation_space\['a/b'\] must be .*Text"),
        (spaces.Dict({}), "observation_space must have entries"),
        (spaces.Tuple(()), "observation_space must have entries"),
        (spaces.Dict({"a": spaces.Dict({"b": BOX}), "a/b": BOX}), "two parts with the path 'a/b'"),
        (spaces.Box(-1, 1, (0,)), r"observation_space must not be empty, got Box"),
        (spaces.Box(-1, 1, (3, 0)), r"observation_space must not be empty, got Box"),
        (spaces.Dict({"a": BOX, "b": spaces.Box(-1, 1, (2, 0))}), r"observation_space\['b'\] must not be empty"),
        (spaces.MultiDiscrete([[2, 2], [3, 3]]), "observation_space must be one-dimensional"),
        (spaces.Dict({"": spaces.MultiDiscrete([[2, 2]])}), r"observation_space\[''\] must be one-dimensional"),
    ],
    ids=str,
)
def test_observations_that_are_refused(space: spaces.Space[Any], message: str) -> None:
    policy = "MultiInputMemoryPolicy" if isinstance(space, spaces.Dict | spaces.Tuple) else "MlpMemoryPolicy"
    with pytest.raises(ValueError, match=message):
        make_model(Sampler(space, ACTIONS["discrete"]), policy=policy)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({"a": BOX}), f"action_space must be {SUPPORTED}, got Dict"),
        (spaces.Tuple((BOX,)), f"action_space must be {SUPPORTED}, got Tuple"),
        (spaces.Box(-np.inf, np.inf, (2,)), "action_space must have finite bounds, got Box"),
        (spaces.MultiDiscrete([[2, 2], [3, 3]]), "action_space must be one-dimensional, flatten it; got MultiDiscrete"),
        (spaces.MultiBinary([2, 2]), "action_space must be one-dimensional, flatten it; got MultiBinary"),
        (spaces.Box(-1, 1, (0,)), "action_space must not be empty, got Box"),
        (spaces.Text(3), f"action_space must be {SUPPORTED}, got Text"),
    ],
    ids=["dict", "tuple", "unbounded", "2-D multi-discrete", "2-D multi-binary", "empty", "text"],
)
def test_actions_that_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(Sampler(BOX, space))


@pytest.mark.parametrize(
    ("policy", "observation", "message"),
    [
        ("MlpMemoryPolicy", "dict", "is a Dict: use MultiInputMemoryPolicy; got Dict"),
        ("CnnMemoryPolicy", "dict", r"CnnMemoryPolicy needs images \(uint8, 0 to 255, 3 axes\); got Dict"),
        ("CnnMemoryPolicy", "box", r"CnnMemoryPolicy needs images .*; got Box"),
        ("CnnMemoryPolicy", "discrete", r"CnnMemoryPolicy needs images .*; got Discrete"),
        ("MultiInputMemoryPolicy", "box", "needs a Dict observation_space, use MlpMemoryPolicy; got Box"),
        ("MultiInputMemoryPolicy", "image", "needs a Dict observation_space.*; got Box"),
    ],
)
def test_a_policy_of_another_kind_is_refused(policy: str, observation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(Sampler(OBSERVATIONS[observation][1], ACTIONS["discrete"]), policy=policy)


def test_refused_by_vector_envs_too() -> None:
    envs = SyncVectorEnv(samplers(spaces.Box(-1, 1, (0,)), spaces.Discrete(3)), autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="must not be empty"):
        make_model(envs)


def test_what_is_supported_passes() -> None:
    for action in ACTIONS.values():
        for _, observation in OBSERVATIONS.values():
            check_spaces(observation, action)
