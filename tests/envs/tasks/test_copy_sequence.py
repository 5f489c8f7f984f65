"""`ctrl/CopySequence-v0`: queries for all symbols in order, each `length + delay` steps after it was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctrl.envs.tasks.copy_sequence import CopySequenceEnv, CopySequenceVectorEnv


def watch(copies: int, **arguments: Any) -> npt.NDArray[np.float32]:
    """Return the observations of whole episodes, [copies, steps, num_symbols + 2]."""
    envs = CopySequenceVectorEnv(copies, **arguments)
    seen = [envs.reset(seed=0)[0]]
    seen.extend(envs.step(np.zeros(copies, dtype=np.int64))[0] for _ in range(envs.rules.max_episode_steps - 1))
    return np.stack(seen, axis=1)


def test_symbols_and_noise_are_uniform_and_independent() -> None:
    """So no step gives information about another step."""
    episodes, noise = 20_000, 0.3
    seen = watch(episodes, length=2, delay=2, num_symbols=3, noise=noise)[:, :4, :3].transpose(1, 0, 2)
    rates = [1.0, 1.0, noise, noise]
    for one in range(4):
        for other in range(one):
            joint = seen[one].T @ seen[other] / episodes  # [3, 3]
            expected = rates[one] * rates[other] / 9
            assert np.abs(joint - expected).max() < 4.5 * (expected / episodes) ** 0.5


def test_picture_draws_the_time_as_a_bar() -> None:
    env = CopySequenceEnv(length=1, delay=2, num_symbols=2, render_mode="rgb_array")
    env.reset(seed=0)
    shares = []
    for _ in range(5):
        bar = env.render()[-20, 4:-4]
        shares.append(float((bar == 255).all(-1).mean()))
        if len(shares) < 5:
            env.step(np.int64(0))
    assert env.render().shape == (108, 72, 3)
    assert shares == [0, 0.25, 0.5, 0.75, 1]
