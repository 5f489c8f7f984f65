"""Episodes of the tasks that show symbols, written out by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS

Arguments = dict[str, Any]

RECALL: Arguments = {"length": 3, "num_cues": 4, "noise": 0.0}
RARE: Arguments = {"length": 2, "num_cues": 4, "noise": 0.0}
ENDLESS_RECALL: Arguments = {"length": 2, "num_cues": 3, "noise": 0.0, "max_rounds": 2}
ENDLESS_COPY: Arguments = {"delay": 1, "num_symbols": 3, "max_length": 2}
COPY: Arguments = {"length": 2, "delay": 1, "num_symbols": 3}
REWRITE: Arguments = {"steps": 7, "num_cues": 3, "change": 0.3, "query": 0.4, "noise": 0.5}
REWRITE_SEED = 1738


def seen(observation: npt.NDArray[np.float32]) -> str:
    """Return `c2` for cue 2, `n2` for noise 2, `?` for a query, `.` for nothing; nothing else may be observed."""
    *symbols, cue, answer = observation.tolist()
    shown = [str(index) for index, value in enumerate(symbols) if value == 1]
    assert sum(symbols) == len(shown)
    kinds = {(1, 1, 0): "c", (1, 0, 0): "n", (0, 0, 1): "?", (0, 0, 0): "."}
    return "".join([kinds[len(shown), cue, answer], *shown])


def episode(task: str, arguments: Arguments, seed: int, actions: str) -> tuple[str, list[float], list[str], Any]:
    """Play an episode; return what is seen, the rewards, the texts of all steps, and the last flags and info."""
    env = gym.make(task, render_mode="ansi", **arguments).unwrapped
    observation, info = env.reset(seed=seed)
    story, rewards, texts, ended = [seen(observation)], [], [env.render()], (False, False)
    for action in actions:
        assert (info, ended) == ({}, (False, False))
        observation, reward, *ended, info = env.step(np.int64(action))
        ended = tuple(ended)
        story.append(seen(observation))
        rewards.append(float(reward))
        texts.append(env.render())
    return " ".join(story), rewards, texts, (*ended, info)


WON, LOST = (True, False, {"is_success": True}), (True, False, {"is_success": False})
CUT, CUT_LOST = (False, True, {"is_success": True}), (False, True, {"is_success": False})
GOES_ON = (False, False, {})


@pytest.mark.parametrize(
    ("task", "arguments", "seed", "actions", "story", "rewards", "end"),
    [
        ("Recall", RECALL, 2, "2222", "c2 . . ? .", [0, 0, 0, 1], WON),
        ("Recall", RECALL, 2, "3332", "c2 . . ? .", [0, 0, 0, 1], WON),  # only the action at the query counts
        ("Recall", RECALL, 2, "2333", "c2 . . ? .", [0, 0, 0, 0], LOST),
        ("Recall", RECALL, 2, "3233", "c2 . . ? .", [0, 0, 0, 0], LOST),
        ("Recall", RECALL, 2, "3323", "c2 . . ? .", [0, 0, 0, 0], LOST),
        ("RareCue", RARE, 0, "000", "c0 . ? .", [0, 0, 1], (True, False, {"is_success": True, "group": 0})),
        ("RareCue", RARE, 1, "222", "c2 . ? .", [0, 0, 1], (True, False, {"is_success": True, "group": 1})),
        ("RareCue", RARE, 2, "330", "c3 . ? .", [0, 0, 0], (True, False, {"is_success": False, "group": 2})),
        # The last right answer cuts the episode off. The cue of the round before is a mistake and the end.
        ("EndlessRecall", ENDLESS_RECALL, 1, "222111", "c2 . ? c1 . ? .", [0, 0, 1, 0, 0, 1], CUT),
        ("EndlessRecall", ENDLESS_RECALL, 1, "222112", "c2 . ? c1 . ? .", [0, 0, 1, 0, 0, 0], LOST),
        ("EndlessRecall", ENDLESS_RECALL, 1, "002", "c2 . ? c1", [0, 0, 1], GOES_ON),
        ("EndlessRecall", ENDLESS_RECALL, 1, "200", "c2 . ? .", [0, 0, 0], LOST),
        ("EndlessRecall", ENDLESS_RECALL, 1, "020", "c2 . ? .", [0, 0, 0], LOST),
        # The newest symbol is not the first that is asked for.
        ("EndlessCopy", ENDLESS_COPY, 0, "0002202", "c0 . ? c2 . ? ? .", [0, 0, 1, 0, 0, 1, 1], CUT),
        ("EndlessCopy", ENDLESS_COPY, 0, "000222", "c0 . ? c2 . ? .", [0, 0, 1, 0, 0, 0], LOST),
        ("EndlessCopy", ENDLESS_COPY, 0, "0002200", "c0 . ? c2 . ? ? .", [0, 0, 1, 0, 0, 1, 0], LOST),
        # A mistake costs its share and the success. Another order is wrong.
        ("CopySequence", COPY, 0, "00002", "c0 c2 . ? ? .", [0, 0, 0, 0.5, 0.5], WON),
        ("CopySequence", COPY, 0, "22212", "c0 c2 . ? ? .", [0, 0, 0, 0, 0.5], LOST),
        ("CopySequence", COPY, 0, "22200", "c0 c2 . ? ? .", [0, 0, 0, 0.5, 0], LOST),
        ("CopySequence", COPY, 0, "00020", "c0 c2 . ? ? .", [0, 0, 0, 0, 0], LOST),
        # Mistakes don't end an episode; the time limit does. The latest cue counts, not noise and not an older cue.
        ("Rewrite", REWRITE, REWRITE_SEED, "0002222", "c0 n2 ? n1 c2 ? ? ?", [0, 0, 1, 0, 0, 1, 1], CUT),
        ("Rewrite", REWRITE, REWRITE_SEED, "2222222", "c0 n2 ? n1 c2 ? ? ?", [0, 0, 0, 0, 0, 1, 1], CUT_LOST),
        ("Rewrite", REWRITE, REWRITE_SEED, "0000000", "c0 n2 ? n1 c2 ? ? ?", [0, 0, 1, 0, 0, 0, 0], CUT_LOST),
        ("Rewrite", REWRITE, REWRITE_SEED, "0010211", "c0 n2 ? n1 c2 ? ? ?", [0, 0, 0, 0, 0, 0, 0], CUT_LOST),
    ],
)
def test_an_episode_step_by_step(
    task: str, arguments: Arguments, seed: int, actions: str, story: str, rewards: list[float], end: Any
) -> None:
    found_story, found_rewards, _, found_end = episode(f"ctrl/{task}-v0", arguments, seed, actions)
    assert (found_story, found_rewards, found_end) == (story, rewards, end)


@pytest.mark.parametrize(
    ("task", "arguments", "seed", "actions", "lines"),
    [
        (
            "Recall",
            {"length": 2, "num_cues": 2, "noise": 1.0},
            0,
            "001",
            {0: "step 0/2  cue 0  (cue 0)", 1: "step 1/2  noise 1  (cue 0)", 2: "step 2/2  answer now  (cue 0)"}
            | {3: "step 2/2  answered 1, wrong  (cue 0)"},
        ),
        ("RareCue", {"length": 1, "num_cues": 17}, 0, "", {0: "step 0/1  cue 0  (cue 0)"}),
        (
            "EndlessRecall",
            {"length": 1, "num_cues": 2, "max_rounds": 3},
            0,
            "0000",
            {0: "step 0/6  cue 0  (cue 0)", 1: "step 1/6  answer now  (cue 0)"}
            | {2: "step 2/6  answered 0, right; cue 1  (cue 1)", 4: "step 4/6  answered 0, wrong  (cue 1)"},
        ),
        (
            "EndlessCopy",
            {"delay": 1, "num_symbols": 2, "max_length": 3},
            1,
            "00100110010",
            {0: "step 0/12  cue 1  (cue 1)", 1: "step 1/12  blank  (cue 1)", 2: "step 2/12  answer now  (cue 1)"}
            | {3: "step 3/12  answered 1, right; cue 1  (cue 1)", 7: "step 7/12  answered 1, right; cue 0  (cue 1)"}
            | {11: "step 11/12  answered 0, wrong  (cue 1)"},
        ),
        (
            "CopySequence",
            {"length": 2, "delay": 0, "num_symbols": 2},
            0,
            "0000",
            {0: "step 0/4  cue 0  (cue 0)", 1: "step 1/4  cue 1  (cue 0)", 2: "step 2/4  answer now  (cue 0)"}
            | {3: "step 3/4  answered 0, right; answer now  (cue 1)", 4: "step 4/4  answered 0, wrong  (cue 1)"},
        ),
        (
            "Rewrite",
            REWRITE,
            REWRITE_SEED,
            "1111121",
            {0: "step 0/7  cue 0  (cue 0)", 1: "step 1/7  noise 2  (cue 0)", 2: "step 2/7  answer now  (cue 0)"}
            | {3: "step 3/7  answered 1, wrong; noise 1  (cue 0)", 4: "step 4/7  cue 2  (cue 2)"}
            | {5: "step 5/7  answer now  (cue 2)", 6: "step 6/7  answered 2, right; answer now  (cue 2)"}
            | {7: "step 7/7  answered 1, wrong; answer now  (cue 2)"},
        ),
    ],
)
def test_text_tells_the_story(task: str, arguments: Arguments, seed: int, actions: str, lines: dict[int, str]) -> None:
    texts = episode(f"ctrl/{task}-v0", arguments, seed, actions)[2]
    assert {step: texts[step] for step in lines} == lines


@pytest.mark.parametrize(
    ("task", "arguments", "story", "memory"),
    [
        ("Recall", {"length": 7, "num_cues": 3, "noise": 1.0}, "Cnnnnnn?", 7),
        ("Recall", {"length": 9, "noise": 0.0}, "C........?", 9),
        ("Recall", {"length": 1}, "C?", 1),
        ("RareCue", {"length": 5, "noise": 1.0}, "Cnnnn?", 5),
        ("EndlessRecall", {"length": 4, "num_cues": 3, "noise": 1.0, "max_rounds": 3}, "Cnnn?" * 3, 4),
        ("EndlessRecall", {"length": 6, "noise": 0.0, "max_rounds": 2}, "C.....?" * 2, 6),
        ("EndlessRecall", {"length": 1, "max_rounds": 4}, "C?" * 4, 1),
        ("CopySequence", {"length": 3, "delay": 4, "num_symbols": 3, "noise": 1.0}, "CCCnnnn???", 7),
        ("CopySequence", {"length": 3, "delay": 2, "noise": 0.0}, "CCC..???", 5),
        ("CopySequence", {"length": 4, "delay": 0}, "CCCC????", 4),
        ("CopySequence", {"length": 1, "delay": 0}, "C?", 1),
        ("EndlessCopy", {"delay": 2, "num_symbols": 3, "max_length": 3}, "C..?C..??C..???", 12),
    ],
)
def test_order_of_cues_noise_and_queries(task: str, arguments: Arguments, story: str, memory: int) -> None:
    """The perfect agent sees the whole story twice. Each of its answers is rewarded, and nothing else is."""
    known, copies = TASKS[f"ctrl/{task}-v0"], 20
    envs = known.vector_env(copies, **arguments)
    agent, observations, reset = known.agents["perfect"](envs), envs.reset(seed=0)[0], np.ones(copies, dtype=np.bool_)
    for step, mark in enumerate(story * 2):
        assert (observations[:, -2] == (mark == "C")).all()
        assert (observations[:, -1] == (mark == "?")).all()
        assert (observations[:, :-2].sum(1) == (mark in "Cn")).all()
        observations, rewards, terminated, truncated, _ = envs.step(agent(observations, reset))
        reset = terminated | truncated
        assert ((rewards > 0) == (mark == "?")).all()
        assert (reset == (step % len(story) == len(story) - 1)).all()
    assert known.rules(**arguments).max_episode_steps == len(story)
    assert known.memory_steps(**arguments) == memory
