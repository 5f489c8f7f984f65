"""Catalogue of the tasks of other packages: the ids, the facts about each task, and the errors for missing packages."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from packaging.requirements import Requirement

from ctrl.agents.utils.spaces import check_spaces
from ctrl.envs import RandomAgent, external, play
from ctrl.envs.external import EXTERNAL_TASKS, FAMILIES

ROOT = Path(__file__).resolve().parents[3]
FIRST_IDS = [next(task.id for task in EXTERNAL_TASKS.values() if task.family.name == name) for name in FAMILIES]


def registered(name: str) -> set[str]:
    """Return the ids of memory tasks that the package itself registers."""
    FAMILIES[name].load()
    prefix = {"popgym": "popgym-", "minigrid": "MiniGrid-Memory", "bsuite": "bsuite/memory_", "memory-gym": ""}[name]
    specs = [spec for spec in gym.registry.values() if spec.id.startswith(prefix)]
    return {spec.id for spec in specs if prefix or str(spec.entry_point).startswith("memory_gym.")}


def steps(env: gym.Env[Any, Any], seed: int, count: int) -> Iterator[tuple[Any, float, bool]]:
    """Yield observation, reward and end of each step of random play, over as many episodes as necessary."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    yield observation, 0.0, False
    for _ in range(count):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        yield observation, float(reward), terminated or truncated
        if terminated or truncated:
            yield env.reset()[0], 0.0, False


def flat(observation: Any) -> np.ndarray:
    parts = observation.values() if isinstance(observation, dict) else [observation]
    return np.concatenate([np.ravel(part) for part in parts])


def hide(monkeypatch: pytest.MonkeyPatch, distribution: str, version: str | None = None) -> None:
    """Make `distribution` look as if it were not installed, or installed in another version."""
    real = importlib.metadata.version

    def fake(name: str) -> str:
        if name != distribution:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


@pytest.mark.parametrize(("name", "count"), [("popgym", 48), ("minigrid", 6), ("memory-gym", 10), ("bsuite", 2)])
def test_the_ids_are_those_that_the_package_registers(name: str, count: int) -> None:
    ours = {task.id for task in EXTERNAL_TASKS.values() if task.family.name == name}
    assert len(ours) == count
    assert ours == registered(name)


@pytest.mark.parametrize("env_id", EXTERNAL_TASKS)
def test_observations_fit_their_space_and_episodes_their_length(env_id: str) -> None:
    env = external.make(env_id)
    check_spaces(env.observation_space, env.action_space)
    length = 0
    for observation, _, ended in steps(env, seed=3, count=300):
        assert env.observation_space.contains(observation)
        length += 1  # with the first observation, so one more than steps
        assert length <= (EXTERNAL_TASKS[env_id].length or 10_000) + 1
        length = 0 if ended else length
    env.close()


@pytest.mark.parametrize("env_id", EXTERNAL_TASKS)
def test_a_seed_gives_the_same_episodes_whatever_other_copies_do(env_id: str) -> None:
    env, twin, other = (external.make(env_id) for _ in range(3))
    plays = [steps(env, seed=5, count=120), steps(twin, seed=5, count=120), steps(other, seed=6, count=120)]
    differs = False
    for one, two, three in zip(*plays, strict=False):
        assert np.array_equal(flat(one[0]), flat(two[0])) and one[1:] == two[1:]
        differs |= not np.array_equal(flat(one[0]), flat(three[0]))
    assert differs


@pytest.mark.parametrize(
    ("env_id", "episodes"),
    [
        ("popgym-CountRecallEasy-v0", 20),
        ("popgym-MineSweeperEasy-v0", 60),
        ("popgym-BattleshipEasy-v0", 20),
        ("popgym-PositionOnlyCartPoleEasy-v0", 30),
        ("MiniGrid-MemoryS7-v0", 5),
        ("MortarMayhem-Grid-v0", 10),
        ("bsuite/memory_size-v0", 100),
    ],
)
def test_random_play_scores_what_is_stated(env_id: str, episodes: int) -> None:
    envs = SyncVectorEnv([partial(external.make, env_id)] * 10, autoreset_mode=AutoresetMode.SAME_STEP)
    returns = play(RandomAgent(envs, seed=1), envs, episodes=episodes, seed=1)
    envs.close()
    assert abs(returns.mean() - EXTERNAL_TASKS[env_id].random) < 4 * returns.std() / returns.size**0.5 + 0.005


def test_a_best_score_has_a_source_and_is_better_than_random_play() -> None:
    for task in EXTERNAL_TASKS.values():
        assert (task.best is None) == (task.source is None), task.id
        assert task.best is None or task.random < task.best, task.id


def test_memory_reaches_back_less_than_an_episode() -> None:
    for task in EXTERNAL_TASKS.values():
        assert task.memory_steps is None or task.length is None or 0 < task.memory_steps < task.length, task.id


def test_all_are_installed_here() -> None:
    assert external.installed_tasks() == EXTERNAL_TASKS


def test_an_unknown_id_is_named() -> None:
    with pytest.raises(ValueError, match=r"popgym-NoSuchTask-v0"):
        external.make("popgym-NoSuchTask-v0")


@pytest.mark.parametrize(
    ("env_id", "distribution", "command"),
    [
        ("popgym-RepeatFirstEasy-v0", "popgym", 'pip install "ctrl-memory[popgym]"'),
        ("popgym-LabyrinthEscapeEasy-v0", "mazelib", 'pip install "ctrl-memory[popgym]"'),
        ("MiniGrid-MemoryS7-v0", "minigrid", 'pip install "ctrl-memory[minigrid]"'),
        (
            "MysteryPath-v0",
            "memory-gym",
            'pip install "pygame-ce>=2.4,<3" && pip install --no-deps memory-gym==1.0.2',
        ),
        ("bsuite/memory_len-v0", "bsuite", 'pip install "ctrl-memory[bsuite]"'),
        ("bsuite/memory_len-v0", "shimmy", 'pip install "ctrl-memory[bsuite]"'),
    ],
)
def test_a_missing_package_gives_the_command(
    monkeypatch: pytest.MonkeyPatch, env_id: str, distribution: str, command: str
) -> None:
    hide(monkeypatch, distribution)
    with pytest.raises(gym.error.DependencyNotInstalled) as caught:
        external.make(env_id)
    assert f"{distribution} is not installed. Install with: {command}" in str(caught.value)
    family = EXTERNAL_TASKS[env_id].family.name
    assert {task.family.name for task in external.installed_tasks().values()} == set(FAMILIES) - {family}


def test_a_version_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "memory-gym", "0.3.0")
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"memory-gym 0\.3\.0 is installed, and only 1\.0\.2"):
        external.make("MortarMayhem-v0")


@pytest.mark.parametrize("env_id", FIRST_IDS)
def test_an_import_that_fails_gives_reason_and_command(monkeypatch: pytest.MonkeyPatch, env_id: str) -> None:
    family = EXTERNAL_TASKS[env_id].family
    monkeypatch.setitem(sys.modules, family.modules[0], None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"its import fails \(.*halted.*Install with: pip"):
        external.make(env_id)


def test_an_import_may_fail_with_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that was built against another numpy raises ValueError or AttributeError."""
    (tmp_path / "stale_tasks.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    family = dataclasses.replace(FAMILIES["bsuite"], modules=("stale_tasks",))
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"its import fails \(numpy\.dtype size changed\)"):
        family.load()


def test_install_commands_name_what_exists() -> None:
    """The extras are those of this package. The version that works is the one that the tests install."""
    extras = importlib.metadata.metadata("ctrl-memory").get_all("Provides-Extra")
    assert {"popgym", "minigrid", "bsuite", "tasks"} <= set(extras or [])
    version = FAMILIES["memory-gym"].distributions["memory-gym"]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("memory-gym")]
    assert pins == [f"memory-gym=={version}"]
    assert FAMILIES["memory-gym"].install[1].endswith(pins[0])
    pygame = Requirement(FAMILIES["memory-gym"].install[0].split('"')[1])
    assert pygame.specifier.contains(importlib.metadata.version(pygame.name))
