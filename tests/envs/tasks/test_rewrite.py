"""`ctrl/Rewrite-v0`: the latest cue counts, and cues, queries and noise come at the stated rates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS, RandomAgent, play
from ctrl.envs.tasks.rewrite import RewriteEnv, RewriteVectorEnv
from ctrl.envs.tasks.symbols import LatestCue

TASK = TASKS["ctrl/Rewrite-v0"]
STORY: dict[str, Any] = {"steps": 7, "num_cues": 3, "change": 0.3, "query": 0.4, "noise": 0.5}
SEED = 1738  # in STORY: cue 0, noise 2, query, noise 1, cue 2, query, query, and a query after the end


class Played(NamedTuple):
    """Record of one episode of each copy, all arrays [copies, steps]."""

    cue: npt.NDArray[np.bool_]
    query: npt.NDArray[np.bool_]
    symbol: npt.NDArray[np.int64]
    """Symbol that is shown, -1 where there is none."""
    rewards: npt.NDArray[np.float64]


def play_random(copies: int, **arguments: Any) -> Played:
    envs = RewriteVectorEnv(copies, **arguments)
    agent, observations = RandomAgent(envs), envs.reset(seed=0)[0]
    seen, rewards, none = [], [], np.zeros(copies, dtype=np.bool_)
    for _ in range(arguments["steps"]):
        seen.append(observations)
        observations, reward, *_ = envs.step(agent(observations, none))
        rewards.append(reward)
    stream = np.stack(seen, axis=1)
    symbol = np.where(stream[:, :, :-2].any(-1), stream[:, :, :-2].argmax(-1), -1)
    return Played(stream[:, :, -2] > 0, stream[:, :, -1] > 0, symbol, np.stack(rewards, axis=1))


def test_rates_of_cues_queries_and_noise() -> None:
    change, query, noise = 0.15, 0.25, 0.4
    played = play_random(1000, steps=101, num_cues=3, change=change, query=query, noise=noise)
    assert played.cue[:, 0].all()
    later = Played(*(array[:, 1:] for array in played))
    shown = (later.symbol >= 0) & ~later.cue
    for events, rate in (
        (later.cue, change),
        (later.query, query),
        (shown, noise * (1 - change - query)),
    ):
        assert abs(events.mean() - rate) < 4.5 * (rate * (1 - rate) / events.size) ** 0.5
    assert not (later.query & (later.symbol >= 0)).any()
    assert (later.symbol[later.cue] >= 0).all()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_noise_can_be_never_or_always(noise: float) -> None:
    played = play_random(50, steps=40, noise=noise)
    assert ((played.symbol >= 0) == (played.cue | (~played.query & (noise == 1)))).all()


def test_symbols_are_uniform_and_independent_of_the_kind_of_event() -> None:
    """A noise symbol gives no information about the valid cue, and a cue gives none about the previous one."""
    played = play_random(1000, steps=101, num_cues=3, change=0.2, query=0.1, noise=0.8)
    latest = np.maximum.accumulate(np.where(played.cue, np.arange(101), 0), axis=1)
    valid = np.take_along_axis(played.symbol, latest, axis=1)
    noise = ~played.cue & (played.symbol >= 0)
    for symbols, given in (
        (played.symbol[:, 1:][played.cue[:, 1:]], valid[:, :-1][played.cue[:, 1:]]),
        (played.symbol[noise], valid[noise]),
    ):
        joint = np.bincount(symbols * 3 + given, minlength=9) / len(symbols)
        # The valid cue is the same for about 5 steps, so fewer of the pairs are independent.
        assert np.abs(joint - 1 / 9).max() < 4.5 * (1 / 9 / (len(symbols) / 5)) ** 0.5
        agree = (symbols == given).mean()
        assert abs(agree - 1 / 3) < 4.5 * (2 / 9 / len(symbols)) ** 0.5


def test_reward_is_for_the_latest_cue_at_a_query_only() -> None:
    played = play_random(200, steps=50, num_cues=3, change=0.2, query=0.3)
    assert not played.rewards[~played.query].any()
    rate = played.rewards[played.query].mean()
    assert abs(rate - 1 / 3) < 4.5 * (2 / 9 / played.query.sum()) ** 0.5


def test_memory_steps_is_the_99_percent_quantile_of_the_distance() -> None:
    played = play_random(1000, steps=300, change=0.5, query=0.5)
    latest = np.maximum.accumulate(np.where(played.cue, np.arange(300), 0), axis=1)
    distances = (np.arange(300) - latest)[:, 20:][played.query[:, 20:]]
    assert np.quantile(distances, 0.99) == TASK.memory_steps(change=0.5, query=0.5) == 7


def test_memory_steps_by_hand_and_at_the_edges() -> None:
    assert TASK.memory_steps() == 90  # 0.95^90 = 0.0099, 0.95^89 = 0.0104
    assert TASK.memory_steps(steps=40) == 39
    assert TASK.memory_steps(steps=40, change=1e-300) == 39
    assert TASK.memory_steps(change=1.0, query=1e-20) == 1


def test_perfect_agent_answers_all_queries_until_the_time_limit() -> None:
    arguments: dict[str, Any] = {"steps": 30, "change": 0.2, "query": 0.3}
    envs = RewriteVectorEnv(200, **arguments)
    agent, observations, none = LatestCue(envs), envs.reset(seed=0)[0], np.zeros(200, dtype=np.bool_)
    for step in range(1, TASK.rules(**arguments).max_episode_steps + 1):
        asked = observations[:, -1]
        observations, rewards, terminated, truncated, infos = envs.step(agent(observations, none))
        assert (rewards == asked).all()
        assert not terminated.any()
        assert (truncated == (step == 30)).all()
    assert infos["final_info"]["is_success"].all()


def test_mean_return_of_the_perfect_agent() -> None:
    """The number of queries is binomial with `steps - 1` trials."""
    envs = RewriteVectorEnv(500, steps=40, query=0.3)
    returns = play(LatestCue(envs), envs, episodes=4, seed=0)
    scores = TASK.scores(steps=40, query=0.3)
    assert scores.perfect == pytest.approx(0.3 * 39)
    assert scores.memoryless == scores.random == scores.perfect / 4
    assert abs(returns.mean() - scores.perfect) < 4.5 * (39 * 0.3 * 0.7 / returns.size) ** 0.5
    assert abs(returns.var() / (39 * 0.3 * 0.7) - 1) < 4.5 * (2 / returns.size) ** 0.5


def test_picture_moves_the_dot_to_the_latest_cue() -> None:
    env = RewriteEnv(**STORY, render_mode="rgb_array")
    env.reset(seed=SEED)
    dots = []
    for _ in range(5):
        picture = env.render()
        assert picture.shape == (108, 108, 3)
        dots.append([tile for tile in range(3) if (picture[54, 36 * tile + 18] == 255).all()])
        env.step(np.int64(0))
    assert dots == [[0], [0], [0], [0], [2]]
