"""Vector envs for training and evaluation, built from a gymnasium id, and the known scores of tasks."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents import GymnasiumVecEnv
from ctrl.agents.vec_envs.nested import flat_env
from ctrl.envs import TASKS, Rules, Scores, external
from ctrl.experiments.errors import UserError, unknown
from ctrl.experiments.options import SEEDS_PER_RUN, TaskOptions

EVALUATION_SEEDS = 1_200_000_000
"""First task seed of evaluations; training reaches it only with run seeds from 120,000 on."""


RANDOM, MEMORYLESS, PERFECT, BEST = "random", "best without memory", "perfect", "best known"
"""Names of the baselines whose scores are known, as shown in tables and pictures."""


def training_seed(seed: int) -> int:
    """Return the task seed of a training run's first copy; copy i has this seed plus i."""
    return seed * SEEDS_PER_RUN


def evaluation_seed(seed: int) -> int:
    """Return the task seed of an evaluation's first copy; no training run uses it."""
    return EVALUATION_SEEDS + seed * SEEDS_PER_RUN


def make_task(task: TaskOptions, *, seed: int, training: bool) -> VecEnv:
    """Build the copies of a task as one vector env.

    Tasks that `ctrl.envs.external` knows are adapted. Other tasks use their own vector env if they have one.

    :param task: id, arguments and number of copies
    :param seed: task seed of the first copy
    :param training: let the copies of our own tasks end their episodes at different times, so that each update sees
        all parts of an episode; this shortens the first episodes, so evaluations must pass False
    :raises UserError: if the id is unknown, its package is missing or the task does not take the arguments
    """
    try:
        env = _make(task, training)
    except gym.error.DependencyNotInstalled as error:
        raise UserError(f"{task.env}: {error}") from error
    except (TypeError, ValueError, AssertionError, ImportError, gym.error.Error) as error:
        raise UserError(f"{task.env} cannot be built with {task.env_arguments}: {error}") from error
    env.seed(seed)
    return env


def find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """Return the registered spec of an env id.

    :raises UserError: if there is none; the message names the closest ids
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        raise _unknown_env(name) from error


def _import(module: str) -> None:
    """Import a user's module. The `ctrl` command does not have the working directory on its path, so it is added."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


def require_named(task: TaskOptions, remedy: str, *, trust: bool) -> None:
    """Refuse the task of a file if building it would import a module: only modules that the user named are imported.

    Our own tasks and those of packages that we adapt import nothing else, so they are always accepted.

    :param remedy: end of the message: how the user names the module
    :param trust: whether the user trusts the file
    :raises UserError: where the id names a module, or an argument of another package's task looks like such an id
    """
    module, _, name = task.env.rpartition(":")
    ours = name in TASKS or name in external.EXTERNAL_TASKS
    packages = {"", "ctrl.envs", *(part for known in external.EXTERNAL_TASKS.values() for part in known.family.modules)}
    texts = [] if ours else [value for value in task.env_arguments.values() if ":" in str(value)]
    named = [] if module in packages else [task.env]
    if not trust and named + texts:
        shown = str((named + texts)[0])[:100]
        raise UserError(f"the run's task {shown!r} imports a module, which runs code; if you trust the run, {remedy}")


def external_task(env_id: str) -> external.ExternalTask | None:
    """Return the entry of `ctrl.envs.external` for a task of another package; None for all other tasks.

    The id may begin with the package, as in gymnasium: `minigrid:MiniGrid-MemoryS7-v0`.
    """
    module, _, name = env_id.rpartition(":")
    task = external.EXTERNAL_TASKS.get(name)
    return task if task is not None and module in ("", *task.family.modules) else None


def policy_name(observation_space: spaces.Space[object]) -> str:
    """Return the name of the policy for an observation space."""
    if isinstance(observation_space, spaces.Dict | spaces.Tuple):
        return "MultiInputMemoryPolicy"
    return "CnnMemoryPolicy" if is_image_space(observation_space) else "MlpMemoryPolicy"


def known_rules(task: TaskOptions) -> Rules[Any] | None:
    """Return the rules of one of our tasks with its arguments; None for tasks of other packages."""
    ours = TASKS.get(_bare_id(task.env))
    if ours is None:
        return None
    return ours.rules(**{name: value for name, value in task.env_arguments.items() if name in ours.defaults})


def known_scores(task: TaskOptions) -> Scores | None:
    """Return the scores that one of our tasks states for its arguments; None for tasks of other packages."""
    rules = known_rules(task)
    return None if rules is None else rules.scores


def stated_scores(task: TaskOptions) -> dict[str, float]:
    """Return the known returns of baselines on a task with its arguments, by name of the baseline."""
    scores, known = known_scores(task), external_task(task.env)
    if scores is not None:
        return {RANDOM: scores.random, MEMORYLESS: scores.memoryless, PERFECT: scores.perfect}
    if known is None or {**known.arguments, **task.env_arguments} != known.arguments:
        return {}
    stated = {RANDOM: known.random, BEST: known.best}
    return {name: score for name, score in stated.items() if score is not None}


def reference_scores(task: TaskOptions, metric: str = "return") -> dict[str, float]:
    """Return the baselines that are drawn beside a learning curve: all `stated_scores` but the random agent's.

    :param task: task with its arguments, which decide the scores
    :param metric: `return` or `success`; for `success` there are none unless the task's return is its success
    """
    rules = known_rules(task)
    if metric == "success" and (rules is None or not rules.return_is_success):
        return {}
    return {name: score for name, score in stated_scores(task).items() if name != RANDOM}


def _bare_id(env_id: str) -> str:
    return env_id.rsplit(":", 1)[-1]


def _make(task: TaskOptions, training: bool) -> VecEnv:
    adapted = external_task(task.env)
    if adapted is not None:
        return _make_from_single(task, partial(external.make, adapted.id))
    if find_spec(task.env).vector_entry_point is not None:
        return _make_native(task, training)
    # Passed as a function: given an id, SB3 asks every env for a render mode, which many don't have.
    return _make_from_single(task, partial(gym.make, task.env))


def _make_native(task: TaskOptions, training: bool) -> VecEnv:
    arguments = task.env_arguments
    ours = TASKS.get(_bare_id(task.env))
    if training and ours is not None and "stagger" in inspect.signature(ours.vector_env).parameters:
        arguments.setdefault("stagger", True)
    envs = gym.make_vec(task.env, num_envs=task.num_envs, vectorization_mode="vector_entry_point", **arguments)
    return GymnasiumVecEnv(envs)


def _make_from_single(task: TaskOptions, make: Callable[..., gym.Env[Any, Any]]) -> VecEnv:
    return make_vec_env(make, n_envs=task.num_envs, env_kwargs=task.env_arguments, wrapper_class=flat_env)


def _unknown_env(env_id: str) -> UserError:
    others = sorted({*gym.registry, *external.EXTERNAL_TASKS} - {*TASKS})
    close = difflib.get_close_matches(env_id, others, n=4, cutoff=0.6)
    hint = f" Other ids that are close: {', '.join(close)}." if close else ""
    return UserError(
        f"{unknown('env', env_id, TASKS)}{hint} {len(gym.registry)} ids are registered; "
        "for a task of another package write package:Id-v0, so that the package is imported."
    )
