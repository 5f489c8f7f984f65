"""From a gymnasium id to the envs that an agent trains on and is evaluated with."""

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
from ctrl.envs import TASKS, Rules, Scores, field
from ctrl.experiments.config import TaskOptions
from ctrl.experiments.errors import UserError, unknown

SEEDS_PER_RUN = 10_000
"""Seeds that one run may use, one for each copy of the task."""
EVALUATION_SEEDS = 1_200_000_000
"""Where the seeds of evaluation start; training would have to run 120,000 seeds to reach them."""


RANDOM, MEMORYLESS, PERFECT, BEST = "random", "best without memory", "perfect", "best known"
"""What reaches a score, as tables and pictures call it."""


def training_seed(seed: int) -> int:
    """Return the task seed of a training run's first copy; copy i has the i-th after it."""
    return seed * SEEDS_PER_RUN


def evaluation_seed(seed: int) -> int:
    """Return the task seed of an evaluation's first copy, which no training run uses."""
    return EVALUATION_SEEDS + seed * SEEDS_PER_RUN


def make_task(task: TaskOptions, *, seed: int, training: bool) -> VecEnv:
    """Build the copies of a task: natively vectorised where it offers that, adapted where `ctrl.envs.field` knows it.

    :param task: id, arguments and number of copies
    :param seed: task seed of the first copy
    :param training: let the copies of our own tasks end their episodes at different times, so that each update sees
        all parts of an episode; the first episodes are shorter for that, so an evaluation must not
    :raises UserError: where the id is unknown, its package is missing or the task does not take the arguments
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
    """Look an env id up; a `UserError` names the closest ones."""
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        raise _unknown_env(name) from error


def _import(module: str) -> None:
    """Import a user's module, also from the working directory, which is not on the path of the `ctrl` command."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


def field_task(env_id: str) -> field.FieldTask | None:
    """Return what is known of a task of another package that `ctrl.envs.field` adapts; None for all others.

    Before the id may stand the package, as in gymnasium: `minigrid:MiniGrid-MemoryS7-v0`.
    """
    module, _, name = env_id.rpartition(":")
    task = field.FIELD_TASKS.get(name)
    return task if task is not None and module in ("", *task.family.modules) else None


def policy_name(observation_space: spaces.Space[object]) -> str:
    """Return the policy that fits what is observed."""
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputMemoryPolicy"
    return "CnnMemoryPolicy" if is_image_space(observation_space) else "MlpMemoryPolicy"


def known_rules(task: TaskOptions) -> Rules[Any] | None:
    """Return the rules of one of our tasks with its arguments; None for tasks of others."""
    ours = TASKS.get(_bare_id(task.env))
    if ours is None:
        return None
    return ours.rules(**{name: value for name, value in task.env_arguments.items() if name in ours.defaults})


def known_scores(task: TaskOptions) -> Scores | None:
    """Return the scores that the task states for its arguments; None for tasks of others."""
    rules = known_rules(task)
    return None if rules is None else rules.scores


def stated_scores(task: TaskOptions) -> dict[str, float]:
    """Return the returns that are stated for a task with its arguments, by what reaches them."""
    scores, known = known_scores(task), field_task(task.env)
    if scores is not None:
        return {RANDOM: scores.random, MEMORYLESS: scores.memoryless, PERFECT: scores.perfect}
    if known is None or {**known.arguments, **task.env_arguments} != known.arguments:
        return {}
    stated = {RANDOM: known.random, BEST: known.best}
    return {name: score for name, score in stated.items() if score is not None}


def reference_scores(task: TaskOptions, metric: str = "return") -> dict[str, float]:
    """Return what a curve is read by: the stated scores, but for those of a random agent.

    :param task: its arguments decide the scores
    :param metric: `return` or `success`; nothing is returned for success where the scores are no success rates
    """
    rules = known_rules(task)
    if metric == "success" and (rules is None or not rules.return_is_success):
        return {}
    return {name: score for name, score in stated_scores(task).items() if name != RANDOM}


def _bare_id(env_id: str) -> str:
    return env_id.rsplit(":", 1)[-1]


def _make(task: TaskOptions, training: bool) -> VecEnv:
    adapted = field_task(task.env)
    if adapted is not None:
        return _make_from_single(task, partial(field.make, adapted.id))
    if find_spec(task.env).vector_entry_point is not None:
        return _make_native(task, training)
    # Not by id: for that SB3 asks every env for a render mode, which many don't have.
    return _make_from_single(task, partial(gym.make, task.env))


def _make_native(task: TaskOptions, training: bool) -> VecEnv:
    arguments = task.env_arguments
    ours = TASKS.get(_bare_id(task.env))
    if training and ours is not None and "stagger" in inspect.signature(ours.vector_env).parameters:
        arguments.setdefault("stagger", True)
    envs = gym.make_vec(task.env, num_envs=task.num_envs, vectorization_mode="vector_entry_point", **arguments)
    return GymnasiumVecEnv(envs)


def _make_from_single(task: TaskOptions, make: Callable[..., gym.Env[Any, Any]]) -> VecEnv:
    return make_vec_env(make, n_envs=task.num_envs, env_kwargs=task.env_arguments)


def _unknown_env(env_id: str) -> UserError:
    others = sorted({*gym.registry, *field.FIELD_TASKS} - {*TASKS})
    close = difflib.get_close_matches(env_id, others, n=4, cutoff=0.6)
    hint = f" Other ids that are close: {', '.join(close)}." if close else ""
    return UserError(
        f"{unknown('env', env_id, TASKS)}{hint} {len(gym.registry)} ids are registered; "
        "for a task of another package write package:Id-v0, so that the package is imported."
    )
