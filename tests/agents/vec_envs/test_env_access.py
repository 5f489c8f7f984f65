"""Attributes and methods of single envs inside a vector env, reached through `GymnasiumVecEnv`."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.monitor import Monitor
from vector_env_toys import COPIES, SAME_STEP, Pulse, Walk, sync

from ctrl.agents.vec_envs.vector_env import GymnasiumVecEnv


def test_attributes_and_methods_of_async_envs() -> None:
    ours = GymnasiumVecEnv(AsyncVectorEnv([Walk] * COPIES, autoreset_mode=SAME_STEP))
    try:
        ours.seed(5)
        ours.reset()
        assert not ours.has_attr("nothing")
        assert ours.get_attr("speed", indices=[0, 2]) == [1, 1]
        assert callable(ours.get_attr("hello", indices=[1])[0])  # not called
        assert ours.get_attr("np_random_seed", indices=[1]) == [6]
        assert ours.env_method("hello", "you", loud=True) == ["hello you!"] * COPIES
        ours.set_attr("speed", [4])
        assert ours.get_attr("speed", indices=1) == [[4]]
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            ours.env_method("nothing")
        for subset in (lambda: ours.set_attr("speed", 2, indices=0), lambda: ours.env_method("hello", indices=[1, 2])):
            with pytest.raises(NotImplementedError, match="only do it for all of its envs"):
                subset()
        assert ours.step(np.zeros(COPIES, dtype=np.int64))[1].shape == (COPIES,)  # no worker was lost
    finally:
        ours.close()


def test_attributes_and_methods_of_sync_envs() -> None:
    ours = sync(SAME_STEP, lambda: Monitor(Walk(render_mode="rgb_array")))
    ours.reset()
    ours.step(np.zeros(COPIES))
    ours.set_attr("speed", 7, indices=[0, 2])
    assert ours.get_attr("speed") == [7, 1, 7]
    assert callable(ours.get_attr("hello", indices=1)[0])
    assert ours.env_method("hello", "you", indices=[1], loud=True) == ["hello you!"]
    assert ours.has_attr("limit")
    assert not ours.has_attr("nothing")
    assert ours.env_is_wrapped(Monitor) == [True] * COPIES
    assert ours.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0, 1]) == [False, False]
    images = ours.get_images()
    assert [image.shape for image in images if image is not None] == [(4, 6, 3)] * COPIES
    picture = ours.render()
    assert picture is not None
    assert picture.shape == (8, 12, 3)


def test_wrappers_of_sync_envs_are_found() -> None:
    ours = sync(SAME_STEP, lambda: gym.wrappers.TimeLimit(Walk(), 5))
    assert ours.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * COPIES
    with pytest.warns(UserWarning, match="need the render mode 'rgb_array', got None"):
        assert list(ours.get_images()) == [None] * COPIES


def test_attributes_and_methods_of_a_native_env() -> None:
    ours = GymnasiumVecEnv(RecordEpisodeStatistics(Pulse(SAME_STEP)))
    assert ours.get_attr("level", indices=[0, 1]) == [3, 3]
    assert ours.get_attr("episode_count") == [0] * COPIES
    ours.set_attr("level", 5)
    assert ours.env.unwrapped.level == 5  # type: ignore[attr-defined]
    assert ours.env_method("names", indices=[2, 0]) == ["c", "a"]
    assert ours.env_method("silent", indices=[2]) == [None]
    assert ours.env_is_wrapped(Monitor, indices=0) == [True]
    assert ours.env_is_wrapped(gym.Wrapper) == [False] * COPIES
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ours.get_attr("nothing")
    with pytest.raises(NotImplementedError, match="only do it for all of its envs"):
        ours.set_attr("level", 1, indices=[1])
    with pytest.raises(ValueError, match="must return an entry for each env"):
        ours.env_method("_form", np.zeros((COPIES + 1, 2)))
