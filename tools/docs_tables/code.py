"""Tables of what the code says: tasks, the shapes of the default memory, departures from stable-baselines3."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule

import ctrl
from ctrl.agents import MemoryImpala, MemoryPolicy, MemoryPPO
from ctrl.agents.utils.other_names import ALGORITHMS_OWN
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.schedule import plan_window
from ctrl.envs import TASKS
from ctrl.experiments.report.summary import count_text
from docs_tables.pages import MISSING, Lines, read

WINDOW = 64
"""Steps of a window by default."""


def tasks() -> Lines:
    """Our tasks with their default arguments, and their speed as `ctrl bench envs` measured it."""
    yield "id", "longest episode", "memory needed", "random", "memoryless", "perfect", "steps/s"
    measured = {
        each["task"]: each["steps_per_second"]["native"]["median"]
        for each in read("bench_envs.json")["tasks"]
        if not each["arguments"]
    }
    for name, task in TASKS.items():
        rules = task.rules()
        scores = (rules.scores.random, rules.scores.memoryless, rules.scores.perfect)
        speed = count_text(round(measured[name])) if name in measured else MISSING
        cells = (str(rules.max_episode_steps), str(rules.memory_steps), *(f"{score:.4g}" for score in scores))
        yield f"`{name}`", *cells, speed


def default_core() -> CompressiveCore:
    """Return the default memory."""
    core = ctrl.make_core("compressive", 64)
    assert isinstance(core, CompressiveCore)
    return core


def state() -> Lines:
    """Leaves of the default memory's state. What they hold is written by hand."""
    core = default_core()
    yield "leaf", "shape", "holds"
    for name, leaf in core.initial_state(1)._asdict().items():
        yield f"`{name}`", f"`[{', '.join(['B', *map(str, leaf.shape[1:])])}]`"
    yield "all", f"{core.state_bytes:,} bytes", "one env's row"


def tiers() -> Lines:
    """Tiers of the default memory in a window."""
    core = default_core()
    yield "tier", "n", "rate", "steps a slot", "E", "C"
    resets = torch.zeros(1, WINDOW, dtype=torch.bool)
    for at, tier in enumerate(plan_window(core.tiers[0], core.initial_state(1).clock, resets).tiers):
        schedule, columns = tier.schedule, tier.exists.shape[1]
        rate = str(schedule.rate) if at else MISSING
        numbers = (schedule.span, columns - schedule.slots, columns)
        yield str(at), str(schedule.slots), rate, *map(str, numbers)


def arguments() -> Lines:
    """Arguments whose defaults depart from PPO's of stable-baselines3. The reasons are written by hand."""
    kinds = (PPO, MemoryPPO, MemoryImpala)
    yield "argument", *(f"`{kind.__name__}`" for kind in kinds), "why"
    for name in inspect.signature(MemoryPPO).parameters | inspect.signature(PPO).parameters:
        theirs, *ours = (default_text(kind, name) for kind in kinds)
        if ours != [theirs, theirs]:
            yield f"`{name}`", theirs, *ours


def entries() -> Lines:
    """Entries of `policy_kwargs` whose defaults depart from stable-baselines3's. The reasons are written by hand."""
    yield "entry", "`ActorCriticPolicy`", "`MemoryPolicy`", "why"
    own = inspect.signature(MemoryPolicy).parameters
    given = {*ALGORITHMS_OWN, "observation_space", "action_space", "lr_schedule", "kwargs"}
    theirs, ours = (kind(name, "CartPole-v1", device="cpu").policy for kind, name in MODELS)
    for name in [*(name for name in own if name not in given), "optimizer_kwargs", "share_features_extractor"]:
        kind = MemoryPolicy if name in own else ActorCriticPolicy  # what it does not name it passes on unchanged
        cells = [default_text(ActorCriticPolicy, name), default_text(kind, name)]
        if name in {"net_arch", "optimizer_kwargs"}:  # what None stands for
            cells = [f"{cell}: `{getattr(policy, name)}`" for cell, policy in zip(cells, (theirs, ours), strict=True)]
        yield f"`{name}`", *cells


MODELS: tuple[tuple[Any, str], ...] = ((PPO, "MlpPolicy"), (MemoryPPO, "MlpMemoryPolicy"))


def default_text(kind: type, name: str) -> str:
    """Return the default of an argument as text, or a dash if there is no such argument."""
    parameters = inspect.signature(kind).parameters
    if name not in parameters:
        return MISSING
    value = parameters[name].default
    if isinstance(value, LinearSchedule):
        return f"`{value(1.0)}` to `{value(0.0)}`"
    return f"`{value.__name__}`" if isinstance(value, type) else f"`{value!r}`"


TABLES = (tasks, state, tiers, arguments, entries)
