"""Contract of every task. A new task is tested here once it is in `TASKS` and has a line in `CASES`."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv

from ctrl.checks.result import Finding, Law, judge
from ctrl.envs import TASKS, Task, play
from ctrl.envs.checks.contract import subject_of
from ctrl.envs.checks.laws import LAWS, steps_leave_no_memory_behind

CASES: dict[str, list[dict[str, Any]]] = {
    "ctrl/Recall-v0": [
        {"length": 6, "num_cues": 3, "noise": 0.5},
        {"length": 1, "num_cues": 2, "noise": 1.0},
        {"length": 9, "num_cues": 5, "noise": 0.0},
    ],
    "ctrl/EndlessRecall-v0": [
        {"length": 6, "num_cues": 3, "noise": 0.5, "max_rounds": 3},
        {"length": 1, "num_cues": 2, "noise": 1.0, "max_rounds": 1},
    ],
    "ctrl/RareCue-v0": [
        {"length": 6, "num_cues": 11, "noise": 0.5, "exponent": 1.0},
        {"length": 5, "num_cues": 3, "noise": 0.2, "exponent": 0.0},
    ],
    "ctrl/Rewrite-v0": [
        {"steps": 13, "num_cues": 3, "change": 0.2, "query": 0.3, "noise": 0.5},
        {"steps": 7, "num_cues": 2, "change": 0.5, "query": 0.5, "noise": 0.0},
    ],
    "ctrl/CopySequence-v0": [
        {"length": 2, "delay": 6, "num_symbols": 3, "noise": 0.5},
        {"length": 3, "delay": 5, "num_symbols": 2, "noise": 0.0},
    ],
    "ctrl/EndlessCopy-v0": [
        {"delay": 5, "num_symbols": 2, "max_length": 2},
        {"delay": 0, "num_symbols": 3, "max_length": 3},
    ],
    "ctrl/TMaze-v0": [
        {"length": 7, "rules": "passive"},
        {"length": 6, "rules": "active"},
        {"length": 2, "rules": "original"},
    ],
    "ctrl/SelectNonmatchingObject-v0": [
        {"steps": 30, "depth": 2},
        {"steps": 20, "depth": 2, "delay": 3, "resample_each_trial": True, "split": "held_out"},
        {"steps": 28, "depth": 2, "delay": 1, "split": "all", "observation": "pixels"},
    ],
}
COPIES, STEPS, SEED = 5, 60, 11


class Case(NamedTuple):
    task: Task
    arguments: dict[str, Any]

    def single(self, **more: Any) -> gym.Env[Any, Any]:
        return gym.make(self.task.id, **self.arguments, **more)

    def vector(self, num_envs: int = COPIES, **more: Any) -> VectorEnv[Any, Any, Any]:
        return gym.make_vec(self.task.id, num_envs, **self.arguments, **more)

    def actions(self, steps: int = STEPS) -> list[Any]:
        space = self.vector().action_space
        space.seed(3)
        return [space.sample() for _ in range(steps)]


@pytest.fixture(
    params=[Case(TASKS[id_], arguments) for id_, cases in CASES.items() for arguments in cases],
    ids=lambda case: f"{case.task.id}-{case.arguments}",
)
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


def run(envs: Any, actions: list[Any], seed: int | None = SEED) -> list[Any]:
    """Return the results of the reset and of all steps."""
    return [envs.reset(seed=seed), *(envs.step(action) for action in actions)]


def _law_id(law: Law[Any]) -> str:
    return law.name.replace(" ", "-")


def test_every_task_has_cases() -> None:
    assert set(CASES) == set(TASKS)


@pytest.mark.parametrize("law", [law for law in LAWS if law.holds is not steps_leave_no_memory_behind], ids=_law_id)
def test_law(case: Case, law: Law[Any]) -> None:
    assert judge(law, subject_of(case.task.id, case.arguments, seed=SEED)) == Finding(law.name, "kept", "")


@pytest.mark.parametrize("steps", [200, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", TASKS)
def test_steps_leave_no_memory_behind(task: str, steps: int) -> None:
    assert steps_leave_no_memory_behind(subject_of(task, CASES[task][0], steps=steps)) == ""


def test_id_imports_the_package_by_itself(case: Case) -> None:
    assert type(gym.make(f"ctrl.envs:{case.task.id}").unwrapped) is case.task.env
    envs = gym.make_vec(f"ctrl.envs:{case.task.id}", num_envs=3)
    assert type(envs) is case.task.vector_env
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_without_a_seed_reset_moves_on_to_the_next_episode(case: Case) -> None:
    """An early reset also starts the next episode, in the single env and in the vector env."""
    single, envs = case.single(), case.vector(num_envs=1)
    for seed in (SEED, None, None, None):
        observation, _ = single.reset(seed=seed)
        np.testing.assert_array_equal(envs.reset(seed=seed)[0][0], observation)


def test_unseeded_envs_differ(case: Case) -> None:
    actions = [np.zeros_like(case.actions(1)[0])] * STEPS
    assert not data_equivalence(run(case.vector(), actions, seed=None), run(case.vector(), actions, seed=None))


def test_end_of_an_episode_is_reported_once_and_where_it_is(case: Case) -> None:
    envs = case.vector(stagger=True)
    for step in run(envs, case.actions())[1:]:
        _, _, terminated, truncated, infos = step
        ended = terminated | truncated
        assert bool(infos) == bool(ended.any())
        if infos:
            final_info = infos["final_info"]
            for mask in (infos["_final_obs"], infos["_final_info"], final_info["_is_success"]):
                np.testing.assert_array_equal(mask, ended)
            np.testing.assert_array_equal([final is not None for final in infos["final_obs"]], ended)
            assert final_info["is_success"].dtype == np.bool_


def test_reset_mask_restarts_only_these_copies(case: Case) -> None:
    """The other copies are undisturbed, in their later episodes too."""
    envs, undisturbed, actions = case.vector(), case.vector(), case.actions()
    mask = np.arange(COPIES) % 2 == 0
    before, expected = run(envs, actions[:1]), run(undisturbed, actions)
    first = envs.reset(options={"reset_mask": mask})[0]
    np.testing.assert_array_equal(first[~mask], before[-1][0][~mask])
    seeded = envs.reset(seed=SEED, options={"reset_mask": mask})[0]
    np.testing.assert_array_equal(seeded[mask], expected[0][0][mask])
    envs.reset(seed=SEED + 1000, options={"reset_mask": mask})
    for action, reference in zip(actions[1:], expected[2:], strict=True):
        np.testing.assert_array_equal(envs.step(action)[0][~mask], reference[0][~mask])


def test_stagger_spreads_the_ends_and_keeps_later_episodes(case: Case) -> None:
    """From the second episode on, a staggered copy has the same observations as an unstaggered one, but earlier."""
    plain, staggered = case.vector(), case.vector(stagger=True)
    action = np.zeros_like(case.actions(1)[0])
    streams = [run(envs, [action] * STEPS) for envs in (plain, staggered)]
    ends = [np.array([step[2] | step[3] for step in stream[1:]]) for stream in streams]  # [STEPS, B]
    assert (ends[1].argmax(0) <= ends[0].argmax(0)).all()
    if ends[0][:, 0].argmax() >= COPIES:
        assert len(set(ends[1].argmax(0))) > 1
    for copy in range(COPIES):
        begins = [ends[i][:, copy].argmax() + 1 for i in range(2)]
        seen = [np.array([step[0][copy] for step in streams[i]])[begins[i] :] for i in range(2)]
        length = min(len(seen[0]), len(seen[1]))
        assert length > STEPS // 2
        np.testing.assert_array_equal(seen[0][:length], seen[1][:length])


@pytest.mark.parametrize("agent", ["random", "memoryless", "perfect"])
def test_scripted_agents_reach_the_stated_scores(case: Case, agent: str) -> None:
    envs = case.vector(num_envs=64)
    returns = play(case.task.agents[agent](envs), envs, episodes=40, seed=5)
    assert returns.shape == (40, 64)
    tolerance = 4.5 * returns.std() / returns.size**0.5  # one false alarm in 150,000
    assert abs(returns.mean() - getattr(case.task.scores(**case.arguments), agent)) <= tolerance
    assert agent == "perfect" or returns.std() > 0


def test_perfect_agent_succeeds_and_others_sometimes_fail(case: Case) -> None:
    for agent, expected in (("perfect", {True}), ("random", {True, False})):
        envs = case.vector(num_envs=64)
        acting, seen = case.task.agents[agent](envs), set()
        observations, reset = envs.reset(seed=0)[0], np.ones(64, dtype=bool)
        for _ in range(STEPS):
            observations, _, terminated, truncated, infos = envs.step(acting(observations, reset))
            reset = terminated | truncated
            if infos:
                seen |= set(infos["final_info"]["is_success"][infos["_final_info"]].tolist())
        assert seen == expected


def test_memory_is_a_positive_number_of_steps(case: Case) -> None:
    assert case.task.memory_steps(**case.arguments) > 0
    assert case.task.memory_steps() == case.task.memory_steps(**case.task.defaults)


def test_pictures_and_text(case: Case) -> None:
    for form in (case.single, case.vector):
        text, picture = form(render_mode="ansi"), form(render_mode="rgb_array")
        text.reset(seed=0)
        picture.reset(seed=0)
        shown: Any = text.render()
        drawn: Any = picture.render()
        lines, frames = (shown, drawn) if isinstance(shown, tuple) else ((shown,), (drawn,))
        assert len(lines) == len(frames)
        for line, frame in zip(lines, frames, strict=True):
            assert isinstance(line, str)
            assert frame.dtype == np.uint8
            assert frame.ndim == 3
            assert frame.shape[2] == 3


def test_user_mistakes_are_named(case: Case) -> None:
    with pytest.raises(ValueError, match=r"no argument \['speed'\]"):
        case.task.scores(speed=1)
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1, got 0"):
        case.task.vector_env(num_envs=0)
    for make in (case.task.env, case.task.vector_env):
        with pytest.raises(ValueError, match="render_mode must be None or one of .*got 'human'"):
            make(render_mode="human")
        with pytest.raises(gym.error.ResetNeeded):
            make().step(np.zeros(1, dtype=np.int64))
        with pytest.raises(gym.error.ResetNeeded):
            make(render_mode="ansi").render()
        with pytest.warns(UserWarning, match="needs a render mode"):
            assert make().render() is None


def test_wrong_actions_are_refused(case: Case) -> None:
    env, envs = case.task.env(), case.vector()
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="action must be in Discrete"):
        env.step(np.int64(-1))
    zeros = np.zeros(COPIES, dtype=np.int64)
    for actions in (zeros[:-1], zeros[:, None], zeros.astype(np.float32)):
        with pytest.raises(ValueError, match="actions must be integers of shape"):
            envs.step(actions)
    with pytest.raises(ValueError, match="actions must be in"):
        envs.step(zeros + envs.single_action_space.n)  # type: ignore[attr-defined]
    for fresh_or_not in (envs, case.vector()):
        with pytest.raises(ValueError, match="reset_mask must be bool of shape"):
            fresh_or_not.reset(options={"reset_mask": zeros})


def test_numbers_of_numpy_become_plain_ones(case: Case) -> None:
    """Without the conversion the sum of two bytes would stay a byte."""
    narrow = {int: np.uint8, float: np.float16, bool: np.bool_}
    given = {name: narrow.get(type(value), type(value))(value) for name, value in case.arguments.items()}
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    rules = case.task.rules(**given)
    assert not any(isinstance(getattr(rules, name), np.generic) for name in given)
    assert (rules, rules.scores) == (case.task.rules(**plain), case.task.scores(**plain))


@pytest.mark.filterwarnings("error")
def test_bytes_do_not_overflow() -> None:
    assert TASKS["ctrl/Recall-v0"].rules(length=np.uint8(255), num_cues=np.uint8(255)).max_episode_steps == 256
    assert TASKS["ctrl/CopySequence-v0"].memory_steps(length=np.uint8(200), delay=np.uint8(100)) == 300
    assert 0.5 < TASKS["ctrl/RareCue-v0"].scores(exponent=np.uint8(2)).memoryless < 1


def test_single_env_must_be_reset_after_the_end(case: Case) -> None:
    env = case.task.env(**case.arguments)
    env.reset(seed=0)
    while not any(env.step(np.int64(0))[2:4]):
        pass
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
