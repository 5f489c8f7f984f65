"""One damaged file after another, each with its outcome, time and memory."""

from __future__ import annotations

import gc
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctrl.experiments.errors import UserError
from fuzz.targets import Target

SOUND, REFUSED, TRACEBACK, SLOW, LARGE, RAN = "read", "refused", "traceback", "too slow", "too large", "ran code"
OUTCOMES = (SOUND, REFUSED, TRACEBACK, SLOW, LARGE, RAN)
BAD = (TRACEBACK, SLOW, LARGE, RAN)
SECONDS = 20
"""Most seconds that a file may take."""
BYTES = 400 * 2**20
"""Most bytes of memory that a file may take."""
ROOM = 4 * 2**30
"""Bytes of address space beside what the process has already: the process survives what is asked for."""


class TooSlow(BaseException):
    """Raised by the alarm; no handler of errors catches it."""


@dataclass
class Report:
    """Outcomes by kind of file."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """What went wrong, with the damaged file's number."""
    slowest: float = 0.0
    """Seconds."""
    largest: int = 0
    """Bytes."""

    @property
    def bad(self) -> int:
        """Number of files that ended badly."""
        return sum(count for (_, outcome), count in self.counts.items() if outcome in BAD)

    def table(self) -> str:
        """Return the counts as text, one line a kind of file."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.counts))
        lines = [f"{'kind':<30}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES)]
        for kind in [*kinds, "all"]:
            counts = [self._count(kind, outcome) for outcome in OUTCOMES]
            lines.append(f"{kind:<30}" + "".join(f"{count:>11,}" for count in counts))
        limits = f"slowest {self.slowest:.1f} s of {SECONDS}; largest {self.largest >> 20} MiB of {BYTES >> 20}"
        return "\n".join([*lines, limits])

    def _count(self, kind: str, outcome: str) -> int:
        return sum(
            n for (a_kind, an_outcome), n in self.counts.items() if kind in ("all", a_kind) and an_outcome == outcome
        )


def fuzz(targets: Sequence[Target], cases: int, seed: int, work: Path) -> Report:
    """Damage files and read them.

    :param targets: kinds of files
    :param cases: number of damaged files
    :param seed: of the damages; case i depends on nothing else than it and i
    :param work: folder for the files; `evil_module.py` in it leaves a file behind when it is imported
    """
    (work / "evil_module.py").write_text(f"open({str(work / 'ran')!r}, 'w').close()\n")
    report = Report()
    weighted = [target for target in targets for _ in range(target.weight)]
    with limited(), importing_from(work):
        for case in range(cases):
            if case % 50 == 0:
                gc.collect()  # a tenth of a second each time: not for each file
            rng = random.Random(f"{seed}/{case}")
            target = rng.choice(weighted)
            _one(report, target, rng, work, case)
    return report


def _one(report: Report, target: Target, rng: random.Random, work: Path, case: int) -> None:
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if target.beside is not None:
        shutil.copytree(target.beside, folder, dirs_exist_ok=True)
    damaged = rng.choice(target.damages)(rng, target.content)
    (folder / target.file).write_bytes(damaged)
    before, begun = _reset_peak(), time.monotonic()
    outcome, problem = _read(target, folder)
    seconds, size = time.monotonic() - begun, max(0, _peak() - before)
    if outcome in (SOUND, REFUSED) and size > BYTES:
        outcome, problem = LARGE, f"{size >> 20} MiB"
    if (work / "ran").exists():
        (work / "ran").unlink()
        outcome, problem = RAN, "code of the file ran"
    report.counts[target.name, outcome] += 1
    report.slowest, report.largest = max(report.slowest, seconds), max(report.largest, size)
    if outcome in BAD:
        report.problems.append(f"case {case}, {target.name}: {outcome}: {problem}")


def _read(target: Target, folder: Path) -> tuple[str, str]:
    """Read a file and return the outcome, with the traceback if there is one."""
    signal.alarm(SECONDS)
    try:
        target.read(folder)
    except (ValueError, UserError, OSError) as error:
        return (REFUSED, "") if "\n" not in str(error).strip() else (TRACEBACK, f"more than one line: {error}")
    except TooSlow:
        return SLOW, traceback.format_exc(limit=-4)
    except Exception:
        return TRACEBACK, traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    return SOUND, ""


@contextmanager
def limited() -> Iterator[None]:
    """Limit the address space, and let alarms raise `TooSlow`, inside the `with` block."""

    def stop(*_: Any) -> None:
        raise TooSlow

    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Put a folder on the import path inside the `with` block."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        with suppress(KeyError):
            del sys.modules["evil_module"]


def _reset_peak() -> int:
    """Reset the peak of this process's memory, and return its present memory in bytes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
