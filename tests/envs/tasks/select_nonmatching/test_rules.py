"""`ctrl/SelectNonmatchingObject-v0`: trials by hand, timer and corridor, random choices, and scores of agents."""

from __future__ import annotations

from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS
from ctrl.envs.randomness import derive, seed_keys
from ctrl.envs.tasks.select_nonmatching import sprites
from ctrl.envs.tasks.select_nonmatching.agents import PerfectSelect
from ctrl.envs.tasks.select_nonmatching.rules import SelectNonmatchingObjectRules, Trial
from ctrl.envs.tasks.select_nonmatching.sprites import objects_of, recognise
from ctrl.envs.tasks.select_nonmatching.task import SelectNonmatchingObjectEnv, SelectNonmatchingObjectVectorEnv

TASK = TASKS["ctrl/SelectNonmatchingObject-v0"]
ACTIONS = {"l": 0, "r": 1, "f": 2}
BLANK_VIEW = [" " * 7] * 7


def first_trials(count: int, **arguments: Any) -> Trial:
    """Return the random choices of the first trials of the seeds 0, 1, …"""
    rules = SelectNonmatchingObjectRules(**arguments)
    keys = derive(seed_keys(0, count), np.zeros(1, dtype=np.int64))
    return rules.trial(rules.begin(keys, np.zeros(count)))


def seed_where(pad: int = 0, pedestal: int = 0) -> int:
    """Return a seed whose first trial has the pad and the match's pedestal on these sides, and its case on the left."""
    trial = first_trials(1000)
    return int(np.flatnonzero((trial.pad == pad) & (trial.pedestal == pedestal) & (trial.case == 0))[0])


def drawn(rules: SelectNonmatchingObjectRules, observation: npt.NDArray[Any]) -> list[str]:
    """Draw an observation, with C for the match object's case, P for pedestals, e for an empty case, o for the pad."""
    marks = np.array(list(" .#oe") + ["C"] * sprites.NUM_OBJECTS + ["P"] * sprites.NUM_OBJECTS)
    return ["".join(line) for line in marks[recognise(observation[None], rules.observation)[0]]]


def walk(actions: str, seed: int, **arguments: Any) -> tuple[list[list[str]], list[float], list[bool], dict[str, Any]]:
    """Return the views [after reset and each step], rewards, ends, and the last info."""
    env = SelectNonmatchingObjectEnv(**arguments)
    rules = SelectNonmatchingObjectRules(**arguments)
    views, rewards, ends, info = [drawn(rules, env.reset(seed=seed)[0])], [], [], {}
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.int64(ACTIONS[action]))
        assert not terminated
        views.append(drawn(rules, observation))
        rewards.append(reward)
        ends.append(truncated)
    return views, rewards, ends, info


@pytest.mark.parametrize(("pedestal", "reward"), [(0, -10.0), (1, 10.0)])
def test_a_trial_step_by_step(pedestal: int, reward: float) -> None:
    """The agent goes to the pad on the left, then to the left pedestal, with the match object or the other one."""
    seed = seed_where(pad=0, pedestal=pedestal)
    views, rewards, ends, _ = walk("rrfrff" + "flfff", seed, depth=2, steps=20)
    wall = "#######"
    assert views[:8] == [
        [wall, wall, wall, wall, wall, wall, "..C.e.."],
        [wall, wall, wall, "###..##", "###..##", "###e.##", "###..##"],
        [wall, wall, wall, wall, wall, ".....o.", "..e.C.."],
        [wall, wall, wall, wall, wall, wall, ".....o."],
        [wall, wall, wall, "###..##", "###o.##", "###.C##", "###..##"],
        [wall, wall, wall, wall, "###..##", "###o.##", "###.C##"],
        [wall, wall, wall, wall, wall, "P.....P", "......."],
        [wall, wall, wall, wall, wall, wall, "P.....P"],
    ]
    assert rewards == [0.0] * 5 + [1.0] + [0.0] * 4 + [reward]
    assert views[-1][-1].replace("e", "C") == "..C.C.."  # the next trial
    assert not any(ends)


def test_objects_of_a_trial_are_seen_where_they_are() -> None:
    seed = seed_where(pad=1, pedestal=1)
    trial, env = first_trials(seed + 1), SelectNonmatchingObjectEnv(depth=2, steps=20)
    match, other = (sprites.object_name(int(each[seed])).split()[::-1] for each in (trial.match, trial.other))
    first, reward = env.reset(seed=seed)[0], 0.0
    assert names(first[6, 2]) == ["glass", *match]
    last = first
    for action in "rrflff":
        last, reward, *_ = env.step(np.int64(ACTIONS[action]))
    assert reward == 1
    assert names(last[5, 0]) == ["pedestal", *other]
    assert names(last[5, 6]) == ["pedestal", *match]


def names(cell: npt.NDArray[np.float32]) -> list[str]:
    return [sprites.CHANNELS[channel] for channel in np.flatnonzero(cell)]


def test_walls_and_cases_stop_the_agent() -> None:
    """North of the start is a wall; east of it is a case."""
    views, rewards, _, _ = walk("ff" + "rff", seed_where(), depth=2, steps=11)
    assert views[0] == views[1] == views[2]
    assert views[3] == views[4] == views[5] != views[0]
    assert rewards == [0.0] * 5


def test_the_other_place_of_the_pad_is_floor() -> None:
    """The pad is on the left (west). The agent walks over the other place, on the right, to the wall."""
    views, rewards, _, _ = walk("rrflffff", seed_where(pad=0), depth=2, steps=11)
    assert [view[5][3] for view in views[4:]] == [".", ".", ".", "#", "#"]
    assert rewards == [0.0] * 8


@pytest.mark.parametrize("delay", [1, 4])
def test_corridor_shows_nothing_and_does_nothing(delay: int) -> None:
    seed = seed_where(pad=0, pedestal=1)
    direct, *_ = walk("rrfrff" + "flfff", seed, depth=2, steps=20)
    for ignored in ("f", "l", "r"):
        views, rewards, _, _ = walk("rrfrff" + ignored * delay + "flfff", seed, depth=2, steps=20, delay=delay)
        assert views[6 : 6 + delay] == [BLANK_VIEW] * delay
        assert views[:6] + views[6 + delay :] == direct
        assert rewards == [0.0] * 5 + [1.0] + [0.0] * (delay + 4) + [10.0]


def test_only_the_timer_ends_an_episode() -> None:
    """The timer ends idle and busy episodes; the reward of the last step still counts."""
    seed = seed_where(pad=0, pedestal=1)
    for actions, last, success in (("l" * 11, 0.0, False), ("rrfrffflfff", 10.0, True), ("rrfrfffrfff", -10.0, False)):
        _, rewards, ends, info = walk(actions, seed, depth=2, steps=11)
        assert ends == [False] * 10 + [True]
        assert rewards[-1] == last
        assert info == {"is_success": success}


def test_one_mistake_spoils_the_episode() -> None:
    envs = SelectNonmatchingObjectVectorEnv(64, depth=2, steps=22)
    observations, agent = envs.reset(seed=0)[0], PerfectSelect(envs)
    reset, returns = np.ones(64, dtype=np.bool_), np.zeros(64)
    turned = np.arange(64) % 2 == 0  # these turn to the wrong object in the first trial
    for step in range(22):
        actions = agent(observations, reset)
        actions = np.where(turned & (step == 7), 1 - actions, actions)
        observations, rewards, *_, infos = envs.step(actions)
        returns += rewards
    assert (returns == np.where(turned, 2, 22)).all()
    assert (infos["final_info"]["is_success"] == ~turned).all()


@pytest.mark.parametrize(
    ("arguments", "longest"),
    [
        ({"depth": 2, "steps": 11, "delay": 5}, 16),
        ({"depth": 2, "steps": 17, "delay": 5}, 22),  # the second pad is reached with the last step: no corridor
        ({"depth": 2, "steps": 18, "delay": 5}, 28),
        ({"depth": 3, "steps": 40, "delay": 3}, 49),
        ({}, 180),
        ({"delay": 32}, 180 + 7 * 32),
    ],
)
def test_longest_episode_is_that_of_the_shortest_way(arguments: dict[str, Any], longest: int) -> None:
    envs = SelectNonmatchingObjectVectorEnv(8, **arguments)
    agent, observations, steps = PerfectSelect(envs), envs.reset(seed=0)[0], 0
    ended = np.zeros(8, dtype=np.bool_)
    while not ended.any():
        observations, _, _, ended, _ = envs.step(agent(observations, ended))
        steps += 1
    assert ended.all()
    assert steps == longest == TASK.rules(**arguments).max_episode_steps


@pytest.mark.parametrize(("depth", "delay"), [(2, 0), (3, 4), (8, 0), (10, 3)])
def test_memory_needed_is_what_the_perfect_agent_bridges(depth: int, delay: int) -> None:
    arguments = {"depth": depth, "delay": delay, "steps": 2 * depth + 7}
    envs = SelectNonmatchingObjectVectorEnv(16, **arguments)
    agent, observations = PerfectSelect(envs), envs.reset(seed=0)[0]
    match, sight, decision = first_trials(16, **arguments).match, np.zeros(16, dtype=np.int64), 0
    for step in range(2 * depth + 4 + delay):
        cells = recognise(observations, "symbolic")
        sight[(cells == sprites.CASE + match[:, None, None]).any(axis=(1, 2))] = step
        if (cells[:, -1, [0, -1]] >= sprites.PEDESTAL).all():
            decision = step
        observations = envs.step(agent(observations, np.zeros(16, dtype=np.bool_)))[0]
    assert decision - sight.min() == TASK.memory_steps(**arguments)
    assert (sight == 2).all() == (depth > 4)


@pytest.mark.parametrize("resample", [False, True])
def test_match_is_drawn_for_the_episode_or_for_the_trial(resample: bool) -> None:
    rules = SelectNonmatchingObjectRules(resample_each_trial=resample)
    state = rules.begin(seed_keys(0, 2000), np.zeros(2000))
    trials = [rules.trial(state._replace(trial=np.full(2000, number))) for number in range(6)]
    same = np.mean([trial.match == trials[0].match for trial in trials[1:]])
    assert abs(same - 1 / 27) < 0.01 if resample else same == 1
    for before, after in pairwise(trials):
        assert abs((before.other == after.other).mean() - 1 / 27) < 0.02
        for side in ("case", "pad", "pedestal"):
            assert abs((getattr(before, side) == getattr(after, side)).mean() - 0.5) < 0.05


def test_objects_and_sides_are_uniform_and_independent() -> None:
    """All 9 · 8 pairs are equally likely on all sides, so nothing in room B shows which object is the match."""
    count = 200_000
    trial = first_trials(count, split="held_out")
    order = np.zeros(sprites.NUM_OBJECTS, dtype=np.int64)
    order[objects_of("held_out")] = np.arange(9)
    sides = trial.case + 2 * trial.pad + 4 * trial.pedestal
    table = np.bincount((order[trial.match] * 9 + order[trial.other]) * 8 + sides, minlength=648).reshape(9, 9, 8)
    assert (table[np.arange(9), np.arange(9)] == 0).all()
    expected = count / (72 * 8)
    chi = ((table[~np.eye(9, dtype=bool)] - expected) ** 2 / expected).sum()
    assert abs(chi - 575) < 4.5 * (2 * 575) ** 0.5


def test_episodes_of_one_seed_and_seeds_of_one_episode_are_independent() -> None:
    envs = SelectNonmatchingObjectVectorEnv(500, depth=2, steps=11)
    shown = [recognise(envs.reset(seed=0)[0], "symbolic")[:, -1].max(axis=1)]
    shown.extend(recognise(envs.reset()[0], "symbolic")[:, -1].max(axis=1) for _ in range(30))
    table = np.stack(shown)
    for one, other in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert abs((one == other).mean() - 1 / 27) < 4.5 * (1 / 27 / one.size) ** 0.5


def test_splits_share_no_object_but_all_shapes_and_colours() -> None:
    train, held_out, everything = (objects_of(split) for split in ("train", "held_out", "all"))
    assert (len(train), len(held_out)) == (27, 9)
    assert sorted([*train, *held_out]) == everything.tolist() == list(range(36))
    for parts, count in ((train // 3, 12), (train % 3, 3), (held_out // 3, 9), (held_out % 3, 3)):
        assert len(np.unique(parts)) == count
    for split, objects in (("train", train), ("held_out", held_out), ("all", everything)):
        trial = first_trials(5000, split=split)
        assert set(trial.match) == set(trial.other) == set(objects)


@pytest.mark.parametrize("delay", [0, 2])
def test_pixels_show_what_channels_show(delay: int) -> None:
    """Each cell is drawn as one tile, and the tile identifies the kind of cell."""
    arguments: dict[str, Any] = {"depth": 3, "steps": 30, "split": "all", "delay": delay}
    names = ("symbolic", "pixels")
    forms = [SelectNonmatchingObjectVectorEnv(40, observation=form, **arguments) for form in names]
    agent, seen = PerfectSelect(forms[0]), [envs.reset(seed=1)[0] for envs in forms]
    assert [observations.dtype for observations in seen] == [np.float32, np.uint8]
    rng, tiles, channels = np.random.default_rng(0), sprites.tiles(), sprites.channels()
    kinds = set[int]()
    for _ in range(50):
        cells = [recognise(observations, form) for form, observations in zip(names, seen, strict=True)]
        np.testing.assert_array_equal(*cells)
        np.testing.assert_array_equal(channels[cells[0]], seen[0])
        for i, j in product(range(7), repeat=2):
            tile = seen[1][:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            np.testing.assert_array_equal(tiles[cells[0][:, i, j]], tile)
        kinds |= set(cells[0].ravel().tolist())
        actions = np.where(rng.random(40) < 0.9, agent(seen[0], np.zeros(40, dtype=np.bool_)), rng.integers(0, 3, 40))
        seen = [envs.step(actions)[0] for envs in forms]
    assert len(kinds) > 60
    assert (sprites.BLANK in kinds) == (delay > 0)


def test_scores_do_not_depend_on_the_corridor_or_the_form() -> None:
    scores = TASK.scores()
    assert TASK.memory_steps() == 21
    assert TASK.memory_steps(delay=512) == 533
    assert TASK.scores(delay=512, observation="pixels") == scores
    assert TASK.scores(resample_each_trial=True).memoryless < 10


@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize("resample", [False, True])
def test_selective_scores_are_those_of_all_cases(trials: int, resample: bool) -> None:
    """The test enumerates the pairs of objects in each trial, for agents that accept k of the 9 objects as a match."""
    rules = SelectNonmatchingObjectRules(depth=2, steps=11 * trials, split="held_out", resample_each_trial=resample)
    every = list(product(permutations(range(9), 2), repeat=trials))
    episodes = [pairs for pairs in every if resample or len({match for match, _ in pairs}) == 1]
    for k in range(1, 10):
        returns = []
        for pairs in episodes:
            gone = [match < k for match, _ in pairs]
            gone = [all(gone[: trial + 1]) for trial in range(trials)]
            returns.append(sum(goes * (1 + 10 * (other >= k)) for goes, (_, other) in zip(gone, pairs, strict=True)))
        assert rules.selective_scores[k - 1] == pytest.approx(np.mean(returns))


def test_who_always_goes_without_memory_wins_the_pads_alone() -> None:
    for resample in (False, True):
        assert SelectNonmatchingObjectRules(resample_each_trial=resample).selective_scores[-1] == 7


def test_perfect_agent_is_perfect_at_every_depth() -> None:
    for depth in range(2, 14):
        envs = SelectNonmatchingObjectVectorEnv(32, depth=depth, steps=2 * depth + 7)
        agent, observations, returns = PerfectSelect(envs), envs.reset(seed=depth)[0], np.zeros(32)
        for _ in range(2 * depth + 7):
            observations, rewards, *_ = envs.step(agent(observations, np.zeros(32, dtype=np.bool_)))
            returns += rewards
        assert (returns == 11).all()


def test_text_tells_the_story() -> None:
    seed = seed_where(pad=0, pedestal=1)
    env = SelectNonmatchingObjectEnv(depth=2, steps=20, delay=1, render_mode="ansi")
    env.reset(seed=seed)
    lines: list[Any] = [env.render()]
    for action in "rrfrff" + "f" + "flfff":
        env.step(np.int64(ACTIONS[action]))
        lines.append(env.render())
    match = lines[0].split("(match ")[1].split(",")[0]
    other = lines[7].split("north, ")[1].split(" on")[0]
    assert match in [sprites.object_name(index) for index in range(36)]
    assert other != match
    assert [lines[index] for index in (0, 3, 6, 7, 12)] == [
        f"step 0/20  room A, at (3, 0) facing north  (match {match}, score 0)",
        f"step 3/20  room A, at (3, 1) facing south  (match {match}, score 0)",
        f"step 6/20  +1, corridor, 1 more  (match {match}, score 1)",
        f"step 6/20  room B, at (3, 1) facing north, {other} on the left, {match} on the right"
        f"  (match {match}, score 1)",
        f"step 11/20  +10, room A, at (3, 0) facing north  (match {match}, score 11)",
    ]


@pytest.mark.parametrize(("pedestal", "colour"), [(0, (235, 60, 60)), (1, (60, 220, 90))])
def test_picture_has_a_frame_after_a_reward(pedestal: int, colour: tuple[int, int, int]) -> None:
    seed = seed_where(pad=0, pedestal=pedestal)
    env = SelectNonmatchingObjectEnv(depth=2, steps=20, delay=2, render_mode="rgb_array")
    env.reset(seed=seed)
    frames, pictures = [], []
    for action in "rrfrff" + "ff" + "flfff":
        env.step(np.int64(ACTIONS[action]))
        pictures.append(env.render())
        frames.append(tuple(pictures[-1][0, 0].tolist()))
    dark = (24, 24, 28)
    assert frames == [dark] * 5 + [(255, 205, 60)] + [dark] * 6 + [colour]
    assert not np.array_equal(pictures[5], pictures[6])  # it moves through the corridor
