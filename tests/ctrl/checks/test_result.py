"""Findings of any laws: what becomes a finding, in which order laws are judged, and how findings are printed."""

from __future__ import annotations

import warnings

import pytest

from ctrl import Finding, LawBroken
from ctrl.checks.result import Breach, Law, NotApplicable, count, judge, judge_all, require_kept


def positive(number: int) -> str:
    """Serve as a law that goes through all ways in which one may end."""
    if number == 0:
        raise NotApplicable("0 has no sign")
    if number < 0:
        raise Breach("it is negative", env=2, step=number)
    return "large" if 1 / (number - 7) < 0.1 else ""


@pytest.mark.parametrize(
    ("number", "finding", "line"),
    [
        (8, Finding("positive", "kept", ""), "✓ positive"),
        (100, Finding("positive", "kept", "large"), "✓ positive: large"),
        (0, Finding("positive", "not applicable", "0 has no sign"), "– positive: 0 has no sign"),
        (-3, Finding("positive", "broken", "it is negative", 2, -3), "✗ positive: it is negative"),
        (
            7,
            Finding("positive", "broken", "ZeroDivisionError: division by zero"),
            "✗ positive: ZeroDivisionError: division by zero",
        ),
    ],
)
def test_every_end_of_a_law_is_a_finding(number: int, finding: Finding, line: str) -> None:
    assert judge(Law("positive", positive), number) == finding
    assert str(finding) == line


def test_warnings_are_not_shown_and_break_nothing() -> None:
    assert judge(Law("quiet", lambda _: warnings.warn("old", stacklevel=1) or ""), 1).status == "kept"


def laws(essential: bool) -> list[Law[int]]:
    return [Law("one", positive, essential), Law("two", positive), Law("three", positive)]


@pytest.mark.parametrize(("essential", "number", "judged"), [(True, -1, 1), (False, -1, 3), (True, 0, 3), (True, 8, 3)])
def test_only_an_essential_law_that_is_broken_ends_the_check(essential: bool, number: int, judged: int) -> None:
    begun: list[str] = []
    findings = list(judge_all(laws(essential), number, lambda law: begun.append(law.name)))
    assert [finding.law for finding in findings] == begun == ["one", "two", "three"][:judged]


def test_all_that_is_broken_is_told_at_once() -> None:
    kept, other = Finding("one", "kept", ""), Finding("four", "not applicable", "why")
    broken = [Finding("two", "broken", "here", 1, 5), Finding("three", "broken", "there")]
    assert require_kept("It", [kept, other]) == [kept, other]
    with pytest.raises(LawBroken) as caught:
        require_kept("It", [kept, *broken, other])
    assert str(caught.value) == "It breaks 2 of 4 laws:\n✗ two: here\n✗ three: there"
    assert caught.value.findings == [kept, *broken, other] and caught.value.broken == broken
    assert (caught.value.law, caught.value.detail, caught.value.env, caught.value.step) == ("two", "here", 1, 5)
    assert count([kept, *broken, other]) == "1 kept, 2 broken, 1 not applicable"
