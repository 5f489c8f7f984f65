"""Laws of the contract: each finds the bugs that are planted here, and a good env breaks none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ctrl.checks.result import Finding, judge
from ctrl.envs.checks.contract import check, check_task
from ctrl.envs.checks.laws import ALLOWANCE, LAWS, MODES
from ctrl.envs.checks.subject import Subject

LENGTH, STEPS = 4, 2_000


class Good(gym.Env[np.ndarray, np.int64]):
    """Env that shows a random number and the time, and rewards naming the number's third. Episodes have 4 steps."""

    observation_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(3)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    step_count = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.begin()
        return self.observe(), self.info()

    def begin(self) -> None:
        self.step_count = 0
        self.number = float(self.np_random.random())

    def step(self, action: np.int64) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        reward = self.reward(action)
        self.step_count += 1
        self.number = float(self.np_random.random())
        return self.observe(), reward, *self.end(), self.info()

    def observe(self) -> Any:
        return np.array([self.number, self.step_count / LENGTH], dtype=np.float32)

    def reward(self, action: np.int64) -> Any:
        return float(action == int(3 * self.number))

    def end(self) -> tuple[Any, Any]:
        return self.step_count == LENGTH, False

    def info(self) -> dict[str, Any]:
        return {"step": self.step_count}

    def render(self) -> Any:
        return np.zeros((2, 2, 3), dtype=np.uint8)


class IgnoresItsSeed(Good):
    def begin(self) -> None:
        self.np_random = np.random.default_rng()
        super().begin()


class RemembersTheLastEpisode(Good):
    total = 0

    def info(self) -> dict[str, Any]:
        self.total += 1
        return {"total": self.total}


class AlwaysTheSame(Good):
    def observe(self) -> Any:
        self.number = 0.5
        return super().observe()


class LeavesItsSpaceAtTheEnd(Good):
    def observe(self) -> Any:
        return super().observe() * (1 + 2 * (self.step_count == LENGTH))


class ShowsFloat64(Good):
    def observe(self) -> Any:
        return super().observe().astype(np.float64)


class ShowsAnUnknownKey(Good):
    observation_space = spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(3)})})

    def observe(self) -> Any:
        return {"a": {"b": np.int64(self.step_count)}}


class PaysNaN(Good):
    def reward(self, action: np.int64) -> Any:
        return float("nan") if self.step_count == 2 else 0.0


class PaysArrays(Good):
    def reward(self, action: np.int64) -> Any:
        return np.zeros(1)


class EndsInBothWays(Good):
    def end(self) -> tuple[Any, Any]:
        return self.step_count == LENGTH, self.step_count == LENGTH


class CountsItsEnds(Good):
    def end(self) -> tuple[Any, Any]:
        return int(self.step_count == LENGTH), False


class HidesItsTimeLimit(Good):
    spec = EnvSpec("test/Hides-v0", max_episode_steps=LENGTH)


class SharesStateAmongCopies(Good):
    steps_of_all = 0

    def observe(self) -> Any:
        type(self).steps_of_all += 1
        return np.array([self.number, type(self).steps_of_all % 7 / 7], dtype=np.float32)


class ReusesItsArray(Good):
    def begin(self) -> None:
        super().begin()
        self.array = np.zeros(2, dtype=np.float32)

    def observe(self) -> Any:
        self.array[:] = self.number, self.step_count / LENGTH
        return self.array


class ReusesItsInfo(Good):
    def begin(self) -> None:
        super().begin()
        self.told: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
        self.told["step"] = self.step_count
        return self.told


class ForgetsWhenPickled(Good):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, step_count=0)


class CannotBePickled(Good):
    def begin(self) -> None:
        super().begin()
        self.open = lambda: None


class KeepsAllItSaw(Good):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.log: list[Any] = []

    def observe(self) -> Any:
        self.log.append(np.zeros(2 * ALLOWANCE // STEPS, dtype=np.uint8))
        return super().observe()


class CannotBeBuilt(Good):
    def __init__(self, render_mode: str | None = None) -> None:
        raise RuntimeError("no screen")


class HasNoSeed(Good):
    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        self.begin()
        return self.observe(), self.info()


class DrawsNoPicture(Good):
    def render(self) -> Any:
        return "a line"


class Native(SyncVectorEnv):
    """Native vector env of `Good` envs."""

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        super().__init__([Good] * num_envs, autoreset_mode=autoreset_mode)


class PaysOneCopyMore(Native):
    calls = 0

    def step(self, actions: Any) -> Any:
        self.calls += 1
        observations, rewards, *rest = super().step(actions)
        rewards[2] += self.calls == 3
        return observations, rewards, *rest


class RestartsAStepEarly(Native):
    """Vector env that declares NEXT_STEP and behaves as SAME_STEP."""

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        super().__init__(num_envs)
        self.metadata["autoreset_mode"] = autoreset_mode


class TellsNoFinalInfo(Native):
    def step(self, actions: Any) -> Any:
        *rest, infos = super().step(actions)
        infos.pop("final_info", None)
        return *rest, infos


class SeedsInItsOwnWay(Native):
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=None if seed is None else 7 * seed + 1, options=options)


class SeesMore(Native):
    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        super().__init__(num_envs, autoreset_mode)
        self.observation_space = spaces.Box(0.0, 2.0, (num_envs, 2), np.float32)


def subject(env: Callable[..., Any], native: Callable[..., Any] | None = None, **more: Any) -> Subject:
    modes = {} if native is None else {mode: partial(native, autoreset_mode=mode) for mode in MODES}
    return Subject(env, native=modes, **{"strict": True, "longest": LENGTH, "steps": STEPS, **more})


def finding(name: str, checked: Subject) -> Finding:
    (law,) = (law for law in LAWS if law.name == name)
    return judge(law, checked)


BUILT, CHECKER = "it can be built and reset", "gymnasium's checker accepts it"
SAME, OTHER = "a seed gives the same episodes again", "another seed gives other episodes"
SPACES, REWARDS = "spaces hold every observation", "rewards are finite numbers"
ENDS, LIMIT = "an end is terminated or truncated, not both", "no episode outlasts its limit; a cut is truncated"
SYNC_NEXT, SYNC_SAME = (f"SyncVectorEnv equals single envs, {mode}_STEP" for mode in ("NEXT", "SAME"))
NATIVE_NEXT, NATIVE_SAME = (f"native vector env equals single envs, {mode}_STEP" for mode in ("NEXT", "SAME"))
KEPT, PICKLED = "later steps change nothing that was returned", "a pickled env goes on where it was"
GROWTH = "steps leave no memory behind"

PLANTED = [
    (BUILT, subject(CannotBeBuilt), "^RuntimeError: no screen$"),
    (CHECKER, subject(HasNoSeed), "the reset function does not call `super|random number generator|seed"),
    (CHECKER, subject(DrawsNoPicture), "rgb_array|render"),
    (SAME, subject(IgnoresItsSeed), r"^single env, replayed in the same instance, step 0: observation\[0\] is 0"),
    (SAME, subject(RemembersTheLastEpisode), r"same instance, step 0: info\['total'\] is 1 and 1\d"),
    (OTHER, subject(AlwaysTheSame), "^single env: the seeds 0 and 1000 give the same episodes$"),
    (SPACES, subject(LeavesItsSpaceAtTheEnd), r"^single env, step 4: observation goes from .* to 3\.0, .* not in Box"),
    (SPACES, subject(ShowsFloat64), r"step 0: observation is float64 of shape \(2,\), not float32 of shape \(2,\)"),
    (SPACES, subject(ShowsAnUnknownKey), r"env, step 3: observation\['a'\]\['b'\] .*3.* is not in Discrete\(3\)"),
    (REWARDS, subject(PaysNaN), "^single env, step 3: reward is nan$"),
    (REWARDS, subject(PaysArrays), r"step 1: reward is array\(\[0\.\]\)"),
    (ENDS, subject(EndsInBothWays), "^3 episodes ended in both ways at once$"),
    (ENDS, subject(CountsItsEnds), "^step 1: terminated is 0, not a bool$"),
    (LIMIT, subject(Good, longest=3), "^step 3: the episode goes on after 3 steps"),
    (LIMIT, subject(HidesItsTimeLimit), "^step 4: the time limit ended the episode, but truncated is False$"),
    (SYNC_NEXT, subject(SharesStateAmongCopies), r"^step \d+, copy \d, in the vector env and alone: obs.*\[1\] is"),
    (SYNC_SAME, subject(SharesStateAmongCopies), r"^step \d+, copy \d, in the vector env and alone: obs.*\[1\] is"),
    (NATIVE_NEXT, subject(Good, PaysOneCopyMore), r"^step 3, copy 2, native and single: reward is [12]\.0 and [01]"),
    (NATIVE_NEXT, subject(Good, RestartsAStepEarly), r"^step 4, copy 0, native and single: observation\[0\] is"),
    (NATIVE_NEXT, subject(Good, SeesMore), r"^it sees Box\(0.0, 2.0, \(5, 2\), float32\), 5 single envs Box\(0.0, 1.0"),
    (NATIVE_SAME, subject(Good, TellsNoFinalInfo), "^step 4, native and SyncVectorEnv: info has .*'final_obs'"),
    (NATIVE_SAME, subject(Good, SeedsInItsOwnWay), r"^step 0, copy 0, native and single: observation\[0\] is"),
    (NATIVE_SAME, subject(Good, native_problem="no GPU"), "^no GPU$"),
    (KEPT, subject(ReusesItsArray), r"^single env, what step 0 returned was changed by a later one: obs.*\[0\]"),
    (KEPT, subject(ReusesItsInfo), r"what step 0 returned was changed by a later one: info\['step'\] is 0 and 4"),
    (PICKLED, subject(ForgetsWhenPickled), r"^single env, \d+ steps after it was pickled, pickled and not: obs"),
    (PICKLED, subject(CannotBePickled), "^single env cannot be pickled: .*lambda"),
    (GROWTH, subject(KeepsAllItSaw), r"^single env: 2,000 steps left \d+,\d+ bytes behind; 65,536 are allowed$"),
]


@pytest.mark.parametrize(("law", "planted", "told"), PLANTED)
def test_planted_bug_is_found(law: str, planted: Subject, told: str) -> None:
    found = finding(law, planted)
    assert found.status == "broken"
    assert re.search(told, found.detail), found.detail
    for what, where in (("step", found.step), ("copy", found.env)):  # as the detail says
        told_at = re.search(rf"(?:^|, |what ){what} (\d+)", found.detail)
        assert where == (told_at and int(told_at.group(1)))


def test_every_law_finds_something() -> None:
    assert {law for law, _, _ in PLANTED} == {law.name for law in LAWS}


def test_good_env_keeps_all_laws() -> None:
    assert set(check(subject(Good, Native))) == {Finding(law.name, "kept", "") for law in LAWS}


@pytest.mark.parametrize(
    ("law", "env", "told"),
    [(ENDS, EndsInBothWays, "3 episodes ended in both"), (OTHER, AlwaysTheSame, "the seeds 0 and 1000 give the same")],
)
def test_what_others_may_do_is_a_remark(law: str, env: type[Good], told: str) -> None:
    found = finding(law, subject(env, strict=False))
    assert found.status == "kept"
    assert told in found.detail


@pytest.mark.parametrize(
    ("law", "checked", "told"),
    [
        (PICKLED, subject(CannotBePickled, strict=False), "single env cannot be pickled"),
        (LIMIT, subject(Good, longest=None), "no longest episode is stated"),
        (NATIVE_SAME, subject(Good), "it has no vector env of its own that restarts"),
        (NATIVE_SAME, subject(Good, SeedsInItsOwnWay, strict=False), "start other episodes than single envs"),
        (NATIVE_SAME, Subject(Good, native={AutoresetMode.NEXT_STEP: Native}), "its own vector env has NEXT_STEP only"),
    ],
)
def test_laws_say_why_they_do_not_apply(law: str, checked: Subject, told: str) -> None:
    found = finding(law, checked)
    assert found.status == "not applicable"
    assert told in found.detail


def test_an_env_that_cannot_be_built_ends_the_check() -> None:
    assert [found.law for found in check(subject(CannotBeBuilt))] == [BUILT]


def test_everything_that_was_built_is_closed() -> None:
    closed: list[int] = []

    class Closing(Good):
        def close(self) -> None:
            closed.append(id(self))
            raise RuntimeError("still needed")

    next(check(subject(Closing)))
    assert len(closed) == 1


@pytest.mark.parametrize("steps", [200, 2_000])
def test_large_actions_are_no_memory_left_behind(steps: int) -> None:
    """In few steps, only few of the actions drawn in advance are used."""

    class LargeActions(Good):
        action_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (1_000,), np.float32)

        def reward(self, action: Any) -> float:
            return 0.0

    assert finding(GROWTH, subject(LargeActions, steps=steps)) == Finding(GROWTH, "kept", "")


def test_episodes_without_an_end_are_told() -> None:
    class Endless(Good):
        def end(self) -> tuple[Any, Any]:
            return False, False

        def observe(self) -> Any:
            return np.array([self.number, 0.5], dtype=np.float32)

    assert finding(SAME, subject(Endless, longest=None)).detail == "no episode ended within 2,000 steps"


@pytest.fixture
def registered() -> Iterator[str]:
    gym.register("test/Good-v0", Good, vector_entry_point=Native, max_episode_steps=3)
    yield "test/Good-v0"
    del gym.registry["test/Good-v0"]


def test_check_task_takes_any_id(registered: str) -> None:
    statuses = {found.law: found.status for found in check_task(registered, steps=50)}
    # Its vector env does not know the time limit.
    assert {law for law, status in statuses.items() if status == "broken"} == {NATIVE_NEXT, NATIVE_SAME}


def test_unknown_id_is_refused() -> None:
    with pytest.raises(gym.error.NamespaceNotFound):
        check_task("no_such_package/Task-v0")
