"""A self-test for memory cores: which of the five laws a core keeps, and where it breaks the others.

    for finding in ctrl.check_core(core):
        print(finding.status, finding.law, finding.detail)

A core is a black box here, so some mistakes are no breach of any law. Ages that are off by one in `step` and `unroll`
alike are one: it is another core, which keeps the same laws. So are memories that are shorter than they should be, a
compressor that does nothing, and attention to an empty slot that counts as zeros, as long as all ways agree. Such
mistakes need a comparison with a reference of the core at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ctrl.checks.laws import LAWS, Law
from ctrl.checks.laws.stream import Breach, Differs, NotApplicable
from ctrl.checks.laws.trial import Trial
from ctrl.core import MemoryCore

ROUNDING = 10
"""By how many times the tolerance results may differ at most where they do not in float64."""

Status = Literal["kept", "broken", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What came of one law."""

    law: str
    status: Status
    detail: str
    """Where and how it is broken, why it does not apply, or a remark; may be empty."""
    env: int | None = None
    """The first env in which it is broken, where that has a meaning."""
    step: int | None = None
    """The first step of the window in which it is broken, from 0, where that has a meaning."""


class LawBroken(AssertionError):
    """At least one law is broken; the message lists all that are.

    :param subject: what was checked
    :param findings: what came of all laws
    """

    def __init__(self, subject: str, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        """What came of all laws, the kept ones too."""
        self.broken = [finding for finding in findings if finding.status == "broken"]
        self.law, self.detail = self.broken[0].law, self.broken[0].detail
        """The first that is broken, and how."""
        self.env, self.step = self.broken[0].env, self.broken[0].step
        lines = "".join(f"\n- {finding.law}: {finding.detail}" for finding in self.broken)
        super().__init__(f"{subject} breaks {len(self.broken)} of {len(self.findings)} laws:{lines}")


def check_core(
    core: MemoryCore[Any],
    *,
    batch_size: int = 3,
    length: int | None = None,
    history: int | None = None,
    noise: float = 0.2,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> list[Finding]:
    """Check the five laws for any core, ours or yours. The core itself is neither run nor changed.

    Takes under 10 s for up to four layers of the default's width; wider ones take longer. In float32 rounding alone may
    exceed `tolerance` where weights are large: what differs by up to `ROUNDING` times of it is looked at again with the
    same inputs in float64, and a law that is kept there has a remark. It may also tip a hard choice: then check
    `copy.deepcopy(core).double()`.

    :param core: copies of it are run, on its device and with its dtype
    :param batch_size: B, at least 2
    :param length: T, steps of the windows, at least 8; None for 40, and fewer where the state is not small
    :param history: steps that the oldest env has lived before a window, which should go beyond what the core remembers;
        None for a compressive core's reach and some more, 64 for others, and a limit where that would take long
    :param noise: how far the copies' parameters are moved, relative to their spread, since zeros and identities of a
        fresh core hide mistakes; 0 for the core as it is
    :param tolerance: by how much, relative to 1 + size, results may differ that must be the same but for rounding
    :param seed: of all that is drawn
    :return: what came of each law, none of them broken; some have a remark
    :raises LawBroken: where a law is broken; its `findings` are those of all laws
    :raises ValueError: where an argument does not fit
    """
    trial = Trial(
        core, batch_size=batch_size, length=length, history=history, noise=noise, tolerance=tolerance, seed=seed
    )
    findings = list(judge_all(trial))
    if any(finding.status == "broken" for finding in findings):
        raise LawBroken(type(core).__name__, findings)
    return findings


def judge_all(trial: Trial) -> Iterator[Finding]:
    """Yield what comes of each law; where one of the first two is broken, no other can be checked.

    Torch's random numbers go on afterwards as if nothing had been drawn.
    """
    devices = [trial.given.device] if trial.given.device.type == "cuda" else []
    for number, law in enumerate(LAWS):
        with torch.random.fork_rng(devices), torch.enable_grad():
            finding = judge(law, trial)
        yield finding
        if number < 2 and finding.status == "broken":
            return


def judge(law: Law, trial: Trial) -> Finding:
    """Say what comes of one law. Whatever a core raises breaks the law; warnings are not shown."""
    torch.manual_seed(trial.seed)
    trial.draw_anew()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Finding(law.name, "kept", law(trial))
    except NotApplicable as reason:
        return Finding(law.name, "not applicable", str(reason))
    except Breach as breach:
        if isinstance(breach, Differs) and _may_be_rounding(law, trial, breach):
            return Finding(law.name, "kept", f"in float64; in {trial.given.dtype} {breach.detail}")
        return Finding(law.name, "broken", breach.detail, breach.env, breach.step)
    except Exception as error:
        return Finding(law.name, "broken", f"{type(error).__name__}: {error}")


def _may_be_rounding(law: Law, trial: Trial, breach: Differs) -> bool:
    """Whether what differs does so by at most `ROUNDING` times the tolerance, and not in float64."""
    if not breach.times <= ROUNDING or trial.in_double is None:  # NaN is none
        return False
    return judge(law, trial.in_double).status == "kept"
