"""Facts about each task by hand: default arguments, scores, refused arguments, and the ends of staggered episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctrl.envs import TASKS

SELECT = "SelectNonmatchingObject"
SELECT_DEFAULTS = {
    "steps": 180,
    "depth": 10,
    "delay": 0,
    "resample_each_trial": False,
    "split": "train",
    "observation": "symbolic",
}


@pytest.mark.parametrize(
    ("task", "defaults"),
    [
        ("Recall", {"length": 64, "num_cues": 4, "noise": 0.5}),
        ("EndlessRecall", {"length": 32, "num_cues": 4, "noise": 0.5, "max_rounds": 20}),
        ("RareCue", {"length": 32, "num_cues": 32, "noise": 0.5, "exponent": 1.0}),
        ("Rewrite", {"steps": 512, "num_cues": 4, "change": 0.05, "query": 0.1, "noise": 0.5}),
        ("CopySequence", {"length": 8, "delay": 16, "num_symbols": 4, "noise": 0.0}),
        ("EndlessCopy", {"delay": 4, "num_symbols": 4, "max_length": 16}),
        ("TMaze", {"length": 64, "rules": "passive"}),
        (SELECT, SELECT_DEFAULTS),
    ],
)
def test_defaults(task: str, defaults: dict[str, Any]) -> None:
    assert TASKS[f"ctrl/{task}-v0"].defaults == defaults


@pytest.mark.parametrize(
    ("task", "arguments", "scores"),
    [
        ("Recall", {}, (0.25, 0.25, 1)),
        ("Recall", {"num_cues": 5}, (0.2, 0.2, 1)),
        ("EndlessRecall", {"num_cues": 4, "max_rounds": 2}, (1 / 4 + 1 / 16, 1 / 4 + 1 / 16, 2)),
        ("RareCue", {"num_cues": 3}, (1 / 3, 6 / 11, 1)),
        ("RareCue", {"num_cues": 5, "exponent": 0}, (0.2, 0.2, 1)),
        ("Rewrite", {"steps": 40, "query": 0.3}, (0.3 * 39 / 4, 0.3 * 39 / 4, 0.3 * 39)),
        ("CopySequence", {"num_symbols": 5}, (0.2, 0.2, 1)),
        ("TMaze", {"length": 1, "rules": "passive"}, (1 / 2, 0.5, 1)),
        ("TMaze", {"length": 1, "rules": "active"}, (1 / 3, 0.5, 1)),
        ("TMaze", {"length": 1, "rules": "original"}, (1 / 16 - 3 / 4, 0.5, 1)),
        (SELECT, {}, (pytest.approx(0.1687, abs=1e-4), 15 / 27 * (7 + 60 * 12 / 26), 6 * 11 + 1)),
    ],
)
def test_scores_by_hand(task: str, arguments: dict[str, Any], scores: tuple[Any, ...]) -> None:
    found = TASKS[f"ctrl/{task}-v0"].scores(**arguments)
    assert found.random == pytest.approx(scores[0]) or found.random == scores[0]
    assert (found.memoryless, found.perfect) == (pytest.approx(scores[1]), pytest.approx(scores[2]))


INTEGERS = [
    *(("Recall", "length", 1), ("Recall", "num_cues", 2)),
    *(("EndlessRecall", "length", 1), ("EndlessRecall", "num_cues", 2), ("EndlessRecall", "max_rounds", 1)),
    *(("RareCue", "length", 1), ("RareCue", "num_cues", 2)),
    *(("Rewrite", "steps", 2), ("Rewrite", "num_cues", 2)),
    *(("CopySequence", "length", 1), ("CopySequence", "delay", 0), ("CopySequence", "num_symbols", 2)),
    *(("EndlessCopy", "delay", 0), ("EndlessCopy", "num_symbols", 2), ("EndlessCopy", "max_length", 1)),
    *(("TMaze", "length", 1), (SELECT, "depth", 2), (SELECT, "steps", 27), (SELECT, "delay", 0)),
]


def refused(task: str, arguments: dict[str, Any], message: str) -> None:
    for make in (TASKS[f"ctrl/{task}-v0"].env, TASKS[f"ctrl/{task}-v0"].vector_env):
        with pytest.raises(ValueError, match=f"^{message}"):
            make(**arguments)


@pytest.mark.parametrize(("task", "name", "least"), INTEGERS)
def test_integers_have_a_least_value(task: str, name: str, least: int) -> None:
    for value in (least - 1, least + 2.0, True, "many"):
        refused(task, {name: value}, f"{name} must be an integer of at least {least}, got {value!r}")
    TASKS[f"ctrl/{task}-v0"].env(**{name: least})


@pytest.mark.parametrize("task", ["Recall", "EndlessRecall", "RareCue", "Rewrite", "CopySequence"])
@pytest.mark.parametrize("value", [-0.1, 1.5, 2, float("nan"), "much"])
def test_noise_is_a_fraction(task: str, value: Any) -> None:
    refused(task, {"noise": value}, f"noise must be a number from 0 to 1, got {value!r}")


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        *(
            ("RareCue", {"exponent": x}, f"exponent must be a number of at least 0, got {x!r}")
            for x in (-0.5, float("inf"), float("nan"), True)
        ),
        ("Rewrite", {"change": 0}, "change must be above 0, got 0"),
        ("Rewrite", {"query": 0.0}, "query must be above 0, got 0"),
        ("Rewrite", {"change": -0.1}, "change must be a number from 0 to 1, got -0.1"),
        ("Rewrite", {"query": 1.5}, "query must be a number from 0 to 1, got 1.5"),
        ("Rewrite", {"change": 0.7, "query": 0.4}, r"change \+ query must be at most 1, got 0.7 \+ 0.4"),
        ("TMaze", {"rules": "fast"}, r"rules must be one of \('passive', 'active', 'original'\), got 'fast'"),
        ("TMaze", {"rules": None}, "rules must be one of .*, got None"),
        (SELECT, {"resample_each_trial": 1}, "resample_each_trial must be True or False, got 1"),
        (SELECT, {"split": "test"}, r"split must be one of \('train', 'held_out', 'all'\), got 'test'"),
        (SELECT, {"observation": "rgb"}, r"observation must be one of \('symbolic', 'pixels'\), got 'rgb'"),
    ],
)
def test_other_arguments_are_named(task: str, arguments: dict[str, Any], message: str) -> None:
    refused(task, arguments, message)


@pytest.mark.parametrize(
    ("task", "arguments", "firsts", "period"),
    [
        ("Recall", {"length": 8}, [8, 6, 4, 2], 9),
        ("EndlessRecall", {"length": 8, "max_rounds": 3}, [26, 24, 22, 20], 27),
        ("Rewrite", {"steps": 9}, [8, 6, 4, 2], 9),
        ("CopySequence", {"length": 2, "delay": 8}, [11, 9, 7, 5], 12),
        ("CopySequence", {"length": 2, "delay": 0}, [3, 3, 3, 3], 4),  # nothing to leave out
        ("EndlessCopy", {"delay": 4, "num_symbols": 2, "max_length": 2}, [12, 11, 10, 9], 13),
        ("TMaze", {"length": 8, "rules": "passive"}, [8, 6, 4, 2], 9),
        ("TMaze", {"length": 8, "rules": "active"}, [9, 7, 5, 3], 10),
        ("TMaze", {"length": 8, "rules": "original"}, [8, 8, 8, 8], 9),  # the agent walks by itself
        (SELECT, {"depth": 2, "steps": 20}, [19, 14, 9, 4], 20),
    ],
)
def test_stagger_shortens_only_the_first_episodes(
    task: str, arguments: dict[str, Any], firsts: list[int], period: int
) -> None:
    known = TASKS[f"ctrl/{task}-v0"]
    envs = known.vector_env(4, stagger=True, **arguments)
    for seed in (0, 1):
        agent, observations, reset = known.agents["perfect"](envs), envs.reset(seed=seed)[0], np.ones(4, dtype=np.bool_)
        ends = []
        for _ in range(max(firsts) + 2 * period + 1):
            observations, _, terminated, truncated, infos = envs.step(agent(observations, reset))
            reset = terminated | truncated
            ends.append(reset)
            if infos and task != SELECT:  # which takes its time
                assert (infos["final_info"]["is_success"] == reset).all()
        for copy, first in enumerate(firsts):
            assert np.flatnonzero(np.array(ends)[:, copy])[:3].tolist() == [first, first + period, first + 2 * period]
