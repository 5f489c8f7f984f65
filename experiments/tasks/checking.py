"""`ctrl envs --check ID`: check any task against the laws that a memory agent relies on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial

import gymnasium as gym
from rich.console import Console, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ctrl.checks.result import MARKS, Finding, Law, count
from ctrl.envs.checks.contract import check, subject_of
from ctrl.envs.checks.subject import Subject
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.runs.tasks import external_task, find_spec

STYLES = {"kept": "green", "broken": "bold red", "not applicable": "dim"}


def check_env(config: EnvsConfig, console: Console) -> int:
    """Print a line for each law and return 1 if one is broken, else 0.

    :raises UserError: if there is no such task, or its package is missing
    """
    assert config.check is not None
    if config.json:
        with redirect_stdout(sys.stderr):  # an env's own prints would break the JSON
            findings = list(check(find_subject(config.check, config)))
        console.print_json(data=[asdict(finding) for finding in findings])
    else:
        subject = find_subject(config.check, config)
        console.print(f"{config.check}, {config.checked_steps:,} steps", style="bold", soft_wrap=True)
        findings = print_findings(subject, console)
    return 1 if any(finding.status == "broken" for finding in findings) else 0


def print_findings(subject: Subject, console: Console) -> list[Finding]:
    """Check all laws, print a line for each and a count by status, and return the findings."""
    findings = []
    with _live(console if console.is_terminal else None) as show:
        for finding in check(subject, partial(announce, subject, show)):
            findings.append(finding)
            console.print(line(finding))
    console.print(count(findings), style="bold")
    return findings


def find_subject(env_id: str, config: EnvsConfig) -> Subject:
    """Find the task to check.

    :raises UserError: if there is none or its package is missing; the message says what would work
    """
    adapted = external_task(env_id)
    try:
        if adapted is not None:
            adapted.family.load()
        else:
            find_spec(env_id)
        return subject_of(adapted.id if adapted else env_id, config.env_arguments, steps=config.checked_steps)
    except gym.error.DependencyNotInstalled as error:
        raise UserError(f"{env_id}: {error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def line(finding: Finding) -> RenderableType:
    """Return the line for one finding in colour; a long detail is wrapped to the right of the mark."""
    style = STYLES[finding.status]
    text = Text(str(finding).removeprefix(MARKS[finding.status]).lstrip())
    if finding.status != "kept":
        text.stylize(style, 0, len(finding.law))
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(Text(MARKS[finding.status], style), text)
    return row


def announce(subject: Subject, show: Callable[[str], None], law: Law[Subject]) -> None:
    """Show the law that is about to be checked, and from time to time the steps that its check has taken so far."""
    subject.tick = _counting(law.name, show)
    show(law.name)


def _counting(name: str, show: Callable[[str], None]) -> Callable[[], None]:
    steps, shown = 0, time.monotonic()

    def tick() -> None:
        nonlocal steps, shown
        steps += 1
        if time.monotonic() > shown + 0.5:
            shown = time.monotonic()
            show(f"{name}  {steps:,} steps")

    return tick


@contextmanager
def _live(console: Console | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a text below the printed lines; without a terminal it shows nothing."""
    if console is None:
        yield lambda text: None
        return
    with Status("", console=console) as status:
        yield status.update
