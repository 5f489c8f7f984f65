"""Check of a task's contract, for any gymnasium id.

    from ctrl.envs.checks.contract import check_task

    for finding in check_task("my_package:My-v0"):
        print(finding)

The contract is the list of laws in `ctrl.envs.checks.laws`. A test checks that all tasks of this package keep them.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from ctrl.checks.result import Finding, Law, judge_all
from ctrl.envs import TASKS
from ctrl.envs.checks.laws import LAWS, MODES
from ctrl.envs.checks.subject import Subject, Vector
from ctrl.envs.external import EXTERNAL_TASKS
from ctrl.envs.external import make as make_external_task


def subject_of(
    env_id: str, arguments: Mapping[str, Any] | None = None, *, steps: int = 100_000, seed: int = 0
) -> Subject:
    """Return the env to check for an id of this package, of `ctrl.envs.external` or of gymnasium's registry.

    :param env_id: as for `gymnasium.make`, so `my_package:My-v0` imports my_package first
    :param arguments: the env's arguments
    :param steps: number of steps in the check for memory leaks
    :param seed: seed of all random play
    :raises gymnasium.error.Error: if the id is not known
    """
    given = dict(arguments or {})
    if env_id in EXTERNAL_TASKS:
        longest = None if given else EXTERNAL_TASKS[env_id].length
        return Subject(partial(make_external_task, env_id, **given), longest=longest, steps=steps, seed=seed)
    native, problem = _native(env_id, given)
    ours = TASKS.get(env_id.rpartition(":")[2])
    return Subject(
        partial(gym.make, env_id, disable_env_checker=True, **given),
        native=native,
        native_problem=problem,
        strict=ours is not None,
        longest=None if ours is None else ours.rules(**given).max_episode_steps,
        steps=steps,
        seed=seed,
    )


def _native(env_id: str, given: dict[str, Any]) -> tuple[Mapping[AutoresetMode, Callable[[int], Vector]], str | None]:
    """Return functions that build the id's own vector envs, by autoreset mode, and an error text or None."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    if gym.spec(name).vector_entry_point is None:
        return {}, None
    make: Callable[..., Vector] = partial(gym.make_vec, env_id, vectorization_mode="vector_entry_point", **given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probe = make(1)
    except Exception as error:
        return {}, f"the vector env cannot be built: {error}"
    own_mode = probe.metadata.get("autoreset_mode")
    takes_mode = "autoreset_mode" in inspect.signature(type(probe.unwrapped)).parameters
    probe.close()
    if takes_mode:
        return {mode: partial(make, autoreset_mode=mode) for mode in MODES}, None
    return {mode: make for mode in MODES if mode == own_mode}, None


def check(subject: Subject, begin: Callable[[Law[Subject]], object] | None = None) -> Iterator[Finding]:
    """Yield the finding for each law. If the env cannot be built, yield only that finding.

    :param begin: called with each law before it is checked
    """
    try:
        for finding in judge_all(LAWS, subject, begin):
            subject.close()
            yield finding
    finally:
        subject.close()


def check_task(
    env_id: str, arguments: Mapping[str, Any] | None = None, *, steps: int = 100_000, seed: int = 0
) -> list[Finding]:
    """Check all laws for any id and return the findings. A broken law does not stop the check of the others.

    An env that cannot be built is the exception: then only the first law is checked. For the parameters see
    `subject_of`.
    """
    return list(check(subject_of(env_id, arguments, steps=steps, seed=seed)))
