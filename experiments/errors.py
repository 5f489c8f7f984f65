"""Mistakes of the user, reported in one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Request that cannot be carried out; the message says why, and what would work.

    It is not a ValueError: the command line parser would catch that, and print some of them in a box of its own.
    """


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def flag(name: str) -> str:
    """Return the flag of an option: `--num-envs` for `num_envs`."""
    return f"--{name.replace('_', '-')}"


def require_at_least(least: int, options: object, *names: str) -> None:
    """Raise a `UserError` unless each of the named options is left open (None) or at least `least`."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value >= least, f"{flag(name)} must be at least {least}, got {value}")


def require_distinct(options: object, name: str) -> None:
    """Raise a `UserError` if the named option, a sequence, has a value twice."""
    values = getattr(options, name)
    require(len(set(values)) == len(values), f"{flag(name)} names one twice: {' '.join(map(str, values))}")


def unknown(kind: str, name: str, choices: Iterable[str], *, show: int = 12) -> UserError:
    """Build the error for a name that is not among `choices`. It lists at most `show` of them, the closest first."""
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = close + [other for other in names if other not in close]
    more = f" and {len(listed) - show} more" if len(listed) > show else ""
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return UserError(f"unknown {kind} {name!r}{hint} Valid are {', '.join(listed[:show])}{more}.")
