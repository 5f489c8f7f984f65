"""Laws of an env that a memory agent relies on, each a function that checks one env.

A law takes a `Subject`, which builds the env to check. `ctrl.checks.result` says what it returns and raises. The tasks
of this package keep all laws without a remark. Some laws are milder with other envs and only return a remark.
`ctrl.envs.checks.contract` checks any id.
"""

from __future__ import annotations

import gc
import itertools
import pickle
import re
import tracemalloc
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.passive_env_checker import env_render_passive_checker
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from ctrl.checks.result import Breach, Law, NotApplicable
from ctrl.envs.checks.subject import CALLS, COPIES, EPISODES, Subject, Vector
from ctrl.envs.checks.transcript import Event, Playable, Restarting, actions, begin, copy_of, difference, keep, play

ALLOWANCE = 64 * 1024
"""Number of bytes by which allocated memory may grow, since Python and its libraries keep some for reuse."""
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


def it_can_be_built(subject: Subject) -> str:
    """Build and reset the env."""
    begin(Restarting(subject.single()), subject.seed)
    return ""


def gymnasium_accepts_it(subject: Subject) -> str:
    """Run gymnasium's env checker and its render checks; their warnings are the remark."""
    env = subject.single()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # gymnasium's render and close checks build the env anew from its spec, which adapted envs do not have.
        check_env(env, skip_render_check=True, skip_close_check=True)
        for mode in env.metadata.get("render_modes", []):
            if mode != "human":  # "human" would open a window
                _check_pictures(subject, mode)
        env.close()
        env.close()
    remarks = {_plain(str(warning.message)) for warning in caught}
    told = "; ".join(sorted(remark for remark in remarks if "from the unwrapped version" not in remark))
    return subject.insist(told) if told else ""


def _check_pictures(subject: Subject, mode: str) -> None:
    try:
        env = subject.single(render_mode=mode)
        env.reset(seed=subject.seed)
        env_render_passive_checker(env)
    except gym.error.DependencyNotInstalled as error:
        warnings.warn(f"render mode {mode!r} was not checked: {error}", stacklevel=2)


def _plain(message: str) -> str:
    """Strip the colours and the "WARN: " that gymnasium puts around its warnings."""
    return re.sub(r"\x1b\[\d*m|^WARN: ", "", re.sub(r"\x1b\[\d*m", "", message)).strip()


def a_seed_gives_the_same_again(subject: Subject) -> str:
    """Check that a seed gives the same episodes again, in the same instance and in a fresh one."""
    ended = False
    for form, make in subject.forms():
        envs = make()
        first = [keep(event) for event in subject.play(envs)]
        for where, again in (("the same instance", envs), ("a fresh instance", make())):
            _compare(first, subject.play(again), f"{form}, replayed in {where}")
        ended = ended or any(np.any(event.ended) for event in first)
    return "" if ended else f"no episode ended within {CALLS:,} steps"


def _compare(first: list[Event], again: Iterator[Event], form: str) -> None:
    for step, (one, other) in enumerate(itertools.zip_longest(first, again)):
        found = difference(one, other)
        if found is not None:
            raise Breach(f"{form}, step {step}: {found}", step=step)


def another_seed_gives_another(subject: Subject) -> str:
    """Check that another seed gives other episodes; else it is a remark, since a task may have nothing random."""
    other = subject.seed + 1_000
    for form, make in subject.forms():
        streams = (play(make(), seed=seed, calls=CALLS, episodes=EPISODES) for seed in (subject.seed, other))
        if all(difference(*events) is None for events in zip(*streams, strict=False)):
            return subject.insist(f"{form}: the seeds {subject.seed} and {other} give the same episodes")
    return ""


def spaces_hold_what_is_seen(subject: Subject) -> str:
    """Check that the spaces contain every observation, also the last one of an episode."""
    for form, make in subject.forms():
        envs = make()
        for step, event in enumerate(subject.play(envs)):
            _require_inside(envs.observation_space, event.observation, f"{form}, step {step}", step)
            if not isinstance(envs, VectorEnv):
                continue
            for copy, final in enumerate(event.info.get("final_obs", ())):
                if final is not None:
                    where = f"{form}, step {step}, end of copy {copy}"
                    _require_inside(envs.single_observation_space, final, where, step, copy)
    return ""


def _require_inside(space: spaces.Space[Any], observation: Any, where: str, step: int, copy: int | None = None) -> None:
    if not space.contains(observation):
        raise Breach(f"{where}: {_outside(space, observation, 'observation')}", copy, step)


def _outside(space: spaces.Space[Any], value: Any, name: str) -> str:
    """Return the reason why `space` does not contain `value`."""
    if isinstance(space, spaces.Dict) and isinstance(value, dict) and value.keys() == space.spaces.keys():
        key = next(key for key, part in space.spaces.items() if not part.contains(value[key]))
        return _outside(space[key], value[key], f"{name}[{key!r}]")
    if isinstance(space, spaces.Box) and isinstance(value, np.ndarray):
        if value.shape != space.shape or not np.can_cast(value.dtype, space.dtype):
            return f"{name} is {value.dtype} of shape {value.shape}, not {space.dtype} of shape {space.shape}"
        return f"{name} goes from {value.min()} to {value.max()}, which is not in {space}"
    return f"{name} {value!r} is not in {space}"


def rewards_are_finite_numbers(subject: Subject) -> str:
    """Check that rewards are finite: Python or numpy numbers, and arrays of numbers from a vector env."""
    for form, make in subject.forms():
        envs = make()
        for step, event in enumerate(subject.play(envs)):
            if not _is_reward(event.reward, isinstance(envs, VectorEnv)) or not np.isfinite(event.reward).all():
                raise Breach(f"{form}, step {step}: reward is {event.reward!r}", step=step)
    return ""


def _is_reward(reward: Any, batched: bool) -> bool:
    if batched:
        return isinstance(reward, np.ndarray) and reward.dtype.kind in "iuf"
    return isinstance(reward, int | float | np.integer | np.floating)


def an_end_is_terminated_or_truncated(subject: Subject) -> str:
    """Check that both flags are bools and never both True: agents treat the two kinds of ends differently."""
    both = 0
    for step, event in enumerate(subject.play(Restarting(subject.single()))):
        for name, flag in (("terminated", event.terminated), ("truncated", event.truncated)):
            if not isinstance(flag, bool | np.bool_):
                raise Breach(f"step {step}: {name} is {flag!r}, not a bool", step=step)
        both += bool(event.terminated and event.truncated)
    return subject.insist(f"{both} episodes ended in both ways at once") if both else ""


def a_time_limit_truncates(subject: Subject) -> str:
    """Check that no episode is longer than stated, and that gymnasium's `max_episode_steps` truncates."""
    env = subject.single()
    cut = None if env.spec is None else env.spec.max_episode_steps
    longest = subject.longest if cut is None else cut
    if longest is None:
        raise NotApplicable("no longest episode is stated")
    age = -1
    for step, event in enumerate(subject.play(Restarting(env))):
        age += 1
        if age == longest and not event.ended:
            raise Breach(f"step {step}: the episode goes on after {age} steps, the stated length", step=step)
        if age == cut and not event.truncated:
            raise Breach(f"step {step}: the time limit ended the episode, but truncated is False", step=step)
        age = -1 if event.ended else age
    return ""


def sync_vector_env_equals_singles(mode: AutoresetMode, subject: Subject) -> str:
    """Compare gymnasium's own vector env with single envs that restart: copies must not influence each other."""
    envs, singles = subject.sync(mode), [Restarting(subject.single(), mode) for _ in range(COPIES)]
    drawn = actions(envs, 0)  # the same actions that `play` draws
    for step, event in enumerate(subject.play(envs)):
        if step == 0:
            expected = [begin(single, subject.seed + copy) for copy, single in enumerate(singles)]
        else:
            pairs = zip(singles, iterate(envs.action_space, next(drawn)), strict=True)
            expected = [single.step(action) for single, action in pairs]
        for copy, one in enumerate(expected):
            found = difference(copy_of(event, envs, copy), one._replace(info={}))
            if found is not None:
                raise Breach(f"step {step}, copy {copy}, in the vector env and alone: {found}", copy, step)
    return ""


def native_vector_env_equals_singles(mode: AutoresetMode, subject: Subject) -> str:
    """Compare all returned values of the env's own vector env with those of gymnasium's."""
    if subject.native_problem is not None:
        raise Breach(subject.native_problem)
    if mode not in subject.native:
        has = " and ".join(name.name for name in subject.native)
        raise NotApplicable(
            f"its own vector env has {has} only" if has else "it has no vector env of its own that restarts"
        )
    native, sync = subject.vector(mode), subject.sync(mode)
    if native.observation_space != sync.observation_space:
        raise Breach(f"it sees {native.observation_space}, {COPIES} single envs {sync.observation_space}")
    for step, (one, other) in enumerate(zip(subject.play(native), subject.play(sync), strict=False)):
        if difference(one, other) is not None:
            return _tell_apart(subject, step, (one, native), (other, sync))
    return ""


def _tell_apart(subject: Subject, step: int, native: tuple[Event, Vector], sync: tuple[Event, Vector]) -> str:
    """Raise `Breach` with the first difference between the native and gymnasium's vector env.

    An env that is not strict may start other episodes than the single envs do. That raises `NotApplicable`.
    """
    if step == 0 and not subject.strict:
        raise NotApplicable("its copies start other episodes than single envs with the seeds s, s + 1, …")
    for copy in range(COPIES):
        found = difference(copy_of(*native, copy), copy_of(*sync, copy))
        if found is not None:
            raise Breach(f"step {step}, copy {copy}, native and single: {found}", copy, step)
    raise Breach(f"step {step}, native and SyncVectorEnv: {difference(native[0], sync[0])}", step=step)


def later_steps_change_nothing_returned(subject: Subject) -> str:
    """Check that later steps don't change returned arrays, so that a buffer may keep them without a copy."""
    for form, make in subject.forms():
        returned = [(event, keep(event)) for event in subject.play(make(), calls=CALLS // 10)]
        for step, (event, kept) in enumerate(returned):
            found = difference(kept, event)
            if found is not None:
                raise Breach(f"{form}, what step {step} returned was changed by a later one: {found}", step=step)
    return ""


def a_pickled_env_goes_on(subject: Subject) -> str:
    """Pickle the env at several points of play, and check that the unpickled one goes on like the original."""
    for form, make in subject.forms():
        envs = make()
        drawn = actions(envs, 0)
        begin(envs, subject.seed)
        for _ in range(EPISODES):
            clone = _pickled(subject, envs, form)
            for step in range(1, CALLS // 50):
                action = next(drawn)
                found = difference(Event(*clone.step(action)), Event(*envs.step(action)))
                if found is not None:
                    raise Breach(f"{form}, {step} steps after it was pickled, pickled and not: {found}")
    return ""


def _pickled(subject: Subject, envs: Playable, form: str) -> Playable:
    try:
        clone: Playable = pickle.loads(pickle.dumps(envs))
    except Exception as error:
        raise NotApplicable(subject.insist(f"{form} cannot be pickled: {error}")) from error
    return clone


def steps_leave_no_memory_behind(subject: Subject) -> str:
    """Check for memory leaks: compare allocated memory after a tenth of the steps and after all steps."""
    for form, make in subject.forms():
        envs = make()
        calls = subject.steps // (COPIES if isinstance(envs, VectorEnv) else 1)
        grown = _growth(subject, envs, calls)
        if grown > ALLOWANCE:
            raise Breach(f"{form}: {subject.steps:,} steps left {grown:,} bytes behind; {ALLOWANCE:,} are allowed")
    return ""


def _growth(subject: Subject, envs: Playable, calls: int) -> int:
    some = list(itertools.islice(actions(envs, 0), 500))  # drawing all actions would take longer than the steps
    traced = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before = _allocated(subject, envs, itertools.islice(itertools.cycle(some), calls // 10))
        return _allocated(subject, envs, itertools.islice(itertools.cycle(some), calls)) - before
    finally:
        if not traced:
            tracemalloc.stop()


def _allocated(subject: Subject, envs: Playable, drawn: Iterator[Any]) -> int:
    """Return the bytes in use after all actions and a reset, so that the env always holds the same episode."""
    begin(envs, subject.seed)
    for action in drawn:
        envs.step(action)
        if subject.tick is not None:
            subject.tick()
    begin(envs, subject.seed)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


LAWS: tuple[Law[Subject], ...] = (
    Law("it can be built and reset", it_can_be_built, essential=True),
    Law("gymnasium's checker accepts it", gymnasium_accepts_it),
    Law("a seed gives the same episodes again", a_seed_gives_the_same_again),
    Law("another seed gives other episodes", another_seed_gives_another),
    Law("spaces hold every observation", spaces_hold_what_is_seen),
    Law("rewards are finite numbers", rewards_are_finite_numbers),
    Law("an end is terminated or truncated, not both", an_end_is_terminated_or_truncated),
    Law("no episode outlasts its limit; a cut is truncated", a_time_limit_truncates),
    *(
        Law(f"SyncVectorEnv equals single envs, {mode.name}", partial(sync_vector_env_equals_singles, mode))
        for mode in MODES
    ),
    *(
        Law(f"native vector env equals single envs, {mode.name}", partial(native_vector_env_equals_singles, mode))
        for mode in MODES
    ),
    Law("later steps change nothing that was returned", later_steps_change_nothing_returned),
    Law("a pickled env goes on where it was", a_pickled_env_goes_on),
    Law("steps leave no memory behind", steps_leave_no_memory_behind),
)
"""All laws, in the order in which they are checked."""
