"""Envs for actors: how each actor process gets its own copy, and the threads that torch leaves to actors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents.utils.validation import check_env_id
from ctrl.agents.vec_envs.vector_env import as_vec_env


@contextmanager
def threads_beside(num_actors: int) -> Iterator[None]:
    """Limit torch's threads, so that each actor has a core."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(before, cores - num_actors)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_env(env: VecEnv) -> VecEnv:
    """Return the env: an actor has a copy of it by pickling."""
    return env


def wrapped_env(maker: Callable[[], Any]) -> VecEnv:
    """Return the env that a function makes, as a `VecEnv`."""
    return as_vec_env(built_env(maker))


def built_env(env: Any) -> Any:
    """Return the env, made from an id or by a function where `env` is one."""
    env = env if maker_of(env) is None else env()
    if isinstance(env, str):
        check_env_id(env)
        return gym.make(env)
    return env


def maker_of(env: Any) -> Callable[[], Any] | None:
    """Return `env` if it is a function that returns an env, otherwise None."""
    return env if callable(env) and not isinstance(env, gym.Env | gym.vector.VectorEnv | VecEnv) else None
