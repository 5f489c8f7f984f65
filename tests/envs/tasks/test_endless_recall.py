"""`ctrl/EndlessRecall-v0`: rounds of Recall, each with its own cue, until the first mistake or the last round."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrl.envs.tasks.endless_recall import EndlessRecallEnv, EndlessRecallVectorEnv
from ctrl.envs.tasks.symbols import LatestCue


def watch(copies: int, **arguments: Any) -> npt.NDArray[np.float32]:
    """Return the perfect agent's observations in whole episodes, [copies, steps, num_cues + 2]."""
    envs = EndlessRecallVectorEnv(copies, **arguments)
    agent, seen, running = LatestCue(envs), [envs.reset(seed=0)[0]], np.zeros(copies, dtype=np.bool_)
    for _ in range(envs.rules.max_episode_steps - 1):
        seen.append(envs.step(agent(seen[-1], running))[0])
    return np.stack(seen, axis=1)


def test_cues_and_noise_of_all_rounds_are_uniform_and_independent() -> None:
    """So neither noise nor earlier rounds give information about a cue."""
    episodes, noise = 20_000, 0.3
    seen = watch(episodes, length=2, num_cues=3, noise=noise, max_rounds=2)[:, :, :3]
    first, noise_1, _, second, noise_2, _ = seen.transpose(1, 0, 2)
    for one, other, rate in (
        (first, second, 1.0),
        (first, noise_1, noise),
        (second, noise_1, noise),
        (second, noise_2, noise),
    ):
        joint = one.T @ other / episodes  # [3, 3], each entry a probability of two symbols
        assert np.abs(joint - rate / 9).max() < 4.5 * (rate / 9 / episodes) ** 0.5


def test_picture_frames_the_answer_beside_the_next_cue() -> None:
    env = EndlessRecallEnv(length=1, num_cues=3, render_mode="rgb_array")
    first = int(env.reset(seed=1)[0][:3].argmax())
    env.step(np.int64(0))
    second = int(env.step(np.int64(first))[0][:3].argmax())
    picture = env.render()
    assert picture.shape == (108, 108, 3)
    assert first != second
    for tile, colour in ((first, (60, 220, 90)), (second, (255, 255, 255))):
        top_edge = picture[36, tile * 36 : (tile + 1) * 36]
        assert (top_edge == colour).all()
