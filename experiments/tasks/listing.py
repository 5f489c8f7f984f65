"""`ctrl envs`: list our memory tasks and those of installed packages, with the facts known about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ctrl.envs import TASKS, Task, external
from ctrl.envs.external import ExternalTask, Family
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.errors import unknown
from ctrl.experiments.report.summary import MISSING, number_text, titled

OURS = "ctrl"
"""Family name of our own tasks, as `--family` takes it."""
POPGYM = external.popgym.FAMILY
LEVELS = external.popgym.LEVELS

Facts = dict[str, Any]


def task_facts(task: Task) -> Facts:
    """Return the facts about one of our tasks with its default arguments, as plain data."""
    env, rules = gym.make(task.id), task.rules()
    facts = {
        "id": task.id,
        "family": OURS,
        "summary": task.summary,
        "arguments": task.defaults,
        **_spaces(env),
        "max_episode_steps": rules.max_episode_steps,
        "memory_steps": rules.memory_steps,
        "random": rules.scores.random,
        "memoryless": rules.scores.memoryless,
        "perfect": rules.scores.perfect,
    }
    env.close()
    return facts


def external_facts(task: ExternalTask) -> Facts:
    """Return the facts about a task of another package, as plain data; the package must be installed."""
    env = external.make(task.id)
    facts = {
        "id": task.id,
        "family": task.family.name,
        "arguments": dict(task.arguments),
        **_spaces(env),
        "max_episode_steps": task.length,
        "memory_steps": task.memory_steps,
        "random": task.random,
        "best": task.best,
        "source": task.source,
    }
    env.close()
    return facts


def missing_facts(family: Family, problem: str) -> Facts:
    """Return the reason why the tasks of a family cannot be built, and the commands that install them."""
    return {"family": family.name, "problem": problem, "install": list(family.install)}


def problem_of(family: Family) -> str | None:
    """Return the reason why the tasks of a family cannot be built; None if they can."""
    try:
        family.load()
    except gym.error.DependencyNotInstalled as error:
        return family.problem() or str(error.__cause__)
    return None


def _spaces(env: gym.Env[Any, Any]) -> Facts:
    return {"observation": space_text(env.observation_space), "action": space_text(env.action_space)}


def space_text(space: spaces.Space[Any]) -> str:
    """Describe a space in a few words."""
    if isinstance(space, spaces.Discrete):
        return f"{space.n} choices"
    if isinstance(space, spaces.MultiDiscrete):
        return f"{' × '.join(map(str, space.nvec.ravel()))} choices"
    if isinstance(space, spaces.Box):
        return f"{' × '.join(map(str, space.shape))} {space.dtype}"
    if isinstance(space, spaces.Dict):
        return "; ".join(f"{name}: {space_text(part)}" for name, part in space.spaces.items())
    return str(space)


def short(space: str) -> str:
    """Shorten a text of `space_text` to the counts of numbers and choices, for a narrow column."""
    parts = [part.rsplit(": ", 1)[-1].rsplit(" ", 1)[0] for part in space.split("; ")]
    return " + ".join(part.replace(" × ", "×") for part in parts)


def compact_table(first: str, columns: Sequence[str]) -> Table:
    """Create a table whose columns are close together, so that long ids fit into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column(first, style="bold", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def our_table(tasks: Iterable[Facts]) -> RenderableType:
    """Build the table of our own tasks, and below it a summary of each."""
    table = compact_table("task", ["sees", "does", "steps", "memory", "random", "no\nmemory", "perfect"])
    notes = Table.grid(padding=(0, 2, 0, 0))
    for facts in tasks:
        scores = [number_text(facts[name]) for name in ("random", "memoryless", "perfect")]
        table.add_row(*_cells(facts), *scores)
        arguments = ", ".join(f"{name}={value}" for name, value in facts["arguments"].items())
        notes.add_row(_short_name(facts["id"]), Text(f"{facts['summary']} ({arguments})", style="dim"))
    return Group(titled("our tasks, with their default arguments", table), Text(), notes)


def _short_name(env_id: str) -> str:
    return env_id.removeprefix("ctrl/").removesuffix("-v0")


def field_table(tasks: Iterable[Facts]) -> RenderableType:
    """Build the table of other packages' tasks, by family."""
    table, family = compact_table("task", ["sees", "does", "steps", "memory", "random", "best"]), None
    for facts in tasks:
        if facts["family"] != family:
            family = facts["family"]
            table.add_section()
            table.add_row(Text(family, style="italic"))
        table.add_row(*_cells(facts), number_text(facts["random"]), number_text(facts["best"]))
    return titled("tasks of the field that are installed", table)


def popgym_table(tasks: Sequence[Facts]) -> RenderableType:
    """Build the table of popgym's tasks, with the three levels of a task in one line."""
    table = compact_table("task", ["steps", "memory", "random", "best"])
    levels: dict[str, list[Facts]] = {}
    for facts in tasks:
        name = facts["id"].removeprefix("popgym-").removesuffix("-v0")
        levels.setdefault(next(name.removesuffix(level) for level in LEVELS if name.endswith(level)), []).append(facts)
    for name, group in levels.items():
        counts = [_merged([_count(facts[key]) for facts in group]) for key in ("max_episode_steps", "memory_steps")]
        scores = [_merged([number_text(facts[key]) for facts in group]) for key in ("random", "best")]
        table.add_row(name, *counts, *scores)
    title = f"popgym-NAME{{{','.join(LEVELS)}}}-v0, numbers in this order"
    return titled(title, table, "ctrl envs --family popgym says what each of them sees and does")


def _cells(facts: Facts) -> list[str]:
    steps = [_count(facts[name]) for name in ("max_episode_steps", "memory_steps")]
    return [facts["id"], short(facts["observation"]), short(facts["action"]), *steps]


def _count(number: int | None) -> str:
    return MISSING if number is None else str(number)


def _merged(texts: Sequence[str]) -> str:
    """Return the text that all are, or all of them joined by slashes if they differ."""
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)


def missing_lines(families: Iterable[Facts]) -> list[Text]:
    """Return the lines on missing families; each install command has its own line, so that it can be copied."""
    lines = []
    for facts in families:
        lines += [
            Text(f"{facts['family']}: {facts['problem']}. Install with", style="dim"),
            Text(f"  {' && '.join(facts['install'])}"),
        ]
    return lines


NOTE = (
    "sees: numbers observed · does: an action's choices or numbers · steps: longest episode\n"
    "memory: steps back to the oldest observation that a decision needs\n"
    "scores: mean return an episode"
)


def catalogue(family: str | None = None) -> dict[str, list[Facts]]:
    """Return the facts about our tasks, the tasks of installed packages, and the families that are missing.

    :param family: name of one family; None for all
    :raises UserError: if there is no family of that name
    """
    if family not in (None, OURS, *external.FAMILIES):
        raise unknown("family", str(family), [OURS, *external.FAMILIES])
    chosen = {family} if family is not None else {OURS, *external.FAMILIES}
    problems = {name: problem_of(other) for name, other in external.FAMILIES.items() if name in chosen}
    working = [name for name, problem in problems.items() if problem is None]
    return {
        "ours": [task_facts(task) for task in TASKS.values() if OURS in chosen],
        "field": [external_facts(task) for task in external.EXTERNAL_TASKS.values() if task.family.name in working],
        "missing": [missing_facts(external.FAMILIES[name], problem) for name, problem in problems.items() if problem],
    }


def envs_text(found: Mapping[str, list[Facts]], *, fold_popgym: bool) -> Group:
    """Build all tables; `fold_popgym` puts the three levels of a popgym task in one line."""
    folded = [facts for facts in found["field"] if fold_popgym and facts["family"] == POPGYM.name]
    listed = [facts for facts in found["field"] if facts not in folded]
    parts: list[RenderableType] = [our_table(found["ours"])] if found["ours"] else []
    parts += [Text(), field_table(listed)] if listed else []
    parts += [Text(), popgym_table(folded)] if folded else []
    parts += [Text(), Text(NOTE, style="dim")] if parts else []
    return Group(*parts)


def run_command(config: EnvsConfig, console: Console) -> int:
    """Run `ctrl envs` and return its exit code."""
    if config.check is not None:
        from ctrl.experiments.tasks.checking import check_env

        return check_env(config, console)
    if config.sheet is not None:
        from ctrl.experiments.tasks.contact_sheet import write_sheet

        return write_sheet(config, console)
    found = catalogue(config.family)
    if config.json:
        console.print_json(data=found)
        return 0
    console.print(envs_text(found, fold_popgym=config.family is None))
    for line in missing_lines(found["missing"]):
        console.print(line, soft_wrap=True)
    return 0
