"""Findings of self-checks, for cores, agents and tasks alike: laws, how they are judged, and how findings are printed.

A law is a function of its subject: a core's trial, a copy of a model, an env. It returns a remark, or "". It raises
`Breach` where the subject breaks it, and `NotApplicable` where it says nothing about the subject.

`ctrl.envs` shares this module, so it imports the standard library only.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Status = Literal["kept", "broken", "not applicable"]
MARKS: dict[Status, str] = {"kept": "✓", "broken": "✗", "not applicable": "–"}
SubjectT = TypeVar("SubjectT")


class Breach(AssertionError):
    """A law is broken.

    :param detail: description of the breach
    :param env: the first env in which it shows; None where that has no meaning
    :param step: the first step in which it shows, from 0; None likewise
    """

    def __init__(self, detail: str, env: int | None = None, step: int | None = None) -> None:
        super().__init__(detail)
        self.detail, self.env, self.step = detail, env, step


class NotApplicable(Exception):
    """A law says nothing about its subject; the message says why."""


@dataclass(frozen=True)
class Law(Generic[SubjectT]):
    """One law, with the name that findings show."""

    name: str
    holds: Callable[[SubjectT], str]
    essential: bool = False
    """True if no later law can be checked where this one is broken."""


@dataclass(frozen=True)
class Finding:
    """Result of checking one law; printed, a line such as `✗ rewards are finite numbers: step 3: reward is nan`."""

    law: str
    status: Status
    detail: str
    """Place and nature of the breach, the reason why the law does not apply, or a remark; may be empty."""
    env: int | None = None
    """The first env in which the law is broken, where that has a meaning."""
    step: int | None = None
    """The first step of the window or of random play in which the law is broken, from 0, where that has a meaning."""

    def __str__(self) -> str:
        return f"{MARKS[self.status]} {self.law}" + (f": {self.detail}" if self.detail else "")


class LawBroken(AssertionError):
    """At least one law is broken; the message lists all that are.

    :param subject: name of what was checked
    :param findings: the findings of all laws
    """

    def __init__(self, subject: str, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        """The findings of all laws, the kept ones too."""
        self.broken = [finding for finding in findings if finding.status == "broken"]
        self.law, self.detail = self.broken[0].law, self.broken[0].detail
        """The first law that is broken, and its detail."""
        self.env, self.step = self.broken[0].env, self.broken[0].step
        lines = "".join(f"\n{finding}" for finding in self.broken)
        super().__init__(f"{subject} breaks {len(self.broken)} of {len(self.findings)} laws:{lines}")


def judge(law: Law[SubjectT], subject: SubjectT) -> Finding:
    """Return the finding of one law. Any other exception breaks the law, too; warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Finding(law.name, "kept", law.holds(subject))
    except NotApplicable as reason:
        return Finding(law.name, "not applicable", str(reason))
    except Breach as breach:
        return Finding(law.name, "broken", breach.detail, breach.env, breach.step)
    except Exception as error:
        return Finding(law.name, "broken", f"{type(error).__name__}: {error}")


def judge_all(
    laws: Sequence[Law[SubjectT]], subject: SubjectT, begin: Callable[[Law[SubjectT]], object] | None = None
) -> Iterator[Finding]:
    """Yield the finding of each law; the last one is that of an essential law that is broken.

    :param begin: called with each law before it is checked
    """
    for law in laws:
        if begin is not None:
            begin(law)
        finding = judge(law, subject)
        yield finding
        if law.essential and finding.status == "broken":
            return


def require_kept(subject: str, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings; raise `LawBroken` if one of them is broken.

    :param subject: name of what was checked
    """
    if any(finding.status == "broken" for finding in findings):
        raise LawBroken(subject, findings)
    return list(findings)


def count(findings: Sequence[Finding]) -> str:
    """Return a line with the number of findings of each status, such as `12 kept, 0 broken, 3 not applicable`."""
    counts = Counter(finding.status for finding in findings)
    return ", ".join(f"{counts[status]} {status}" for status in MARKS)
