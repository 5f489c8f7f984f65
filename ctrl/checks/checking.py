"""Self-test for memory cores: the laws that a core keeps, and those that it breaks.

    for finding in ctrl.check_core(core):
        print(finding.status, finding.law, finding.detail)

The check sees only inputs, outputs, states and gradients, so some mistakes break no law. One is an age that is off by
one in `step` and `unroll` alike: that is another core, which keeps the same laws. Others are memories shorter than they
should be, a compressor that does nothing, and empty slots attended as zeros, as long as all ways of running the core
agree. Such mistakes need a comparison with a reference of the core at hand.
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
"""Multiple of the tolerance up to which a difference may be rounding, if float64 shows none."""

Status = Literal["kept", "broken", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """Result of checking one law."""

    law: str
    status: Status
    detail: str
    """Place and nature of the breach, the reason why the law does not apply, or a remark; may be empty."""
    env: int | None = None
    """The first env in which the law is broken, where that has a meaning."""
    step: int | None = None
    """The first step of the window in which the law is broken, from 0, where that has a meaning."""


class LawBroken(AssertionError):
    """At least one law is broken; the message lists all that are.

    :param subject: name of the checked core
    :param findings: the findings of all laws
    """

    def __init__(self, subject: str, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        """The findings of all laws, the kept ones too."""
        self.broken = [finding for finding in findings if finding.status == "broken"]
        self.law, self.detail = self.broken[0].law, self.broken[0].detail
        """The first law that is broken, and its detail."""
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

    It takes under 10 s for up to four layers of the default's width; wider ones take longer. In float32 rounding alone
    may exceed `tolerance` where weights are large. A difference of up to `ROUNDING` times the tolerance is therefore
    checked again with the same inputs in float64; if the law is kept there, its finding is "kept" with a remark.
    Rounding may also tip a hard choice: then check `copy.deepcopy(core).double()`.

    :param core: copies of it are run, on its device and with its dtype
    :param batch_size: B, at least 2
    :param length: T, steps of the windows, at least 8; None for 40, and fewer where the state is not small
    :param history: steps that the oldest env has lived before a window, preferably more than the core remembers; None
        for a compressive core's reach and some more, 64 for others, and a limit where that would take long
    :param noise: how far the copies' parameters are moved, relative to their spread, since zeros and identities of a
        fresh core hide mistakes; 0 for the core as it is
    :param tolerance: the largest difference, relative to 1 + size, between results that must be the same but for
        rounding
    :param seed: of all random numbers
    :return: a finding for each law, none of them broken; some have a remark
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
    """Yield the finding of each law; where one of the first two is broken, no other can be checked.

    Torch's random state is restored afterwards.
    """
    devices = [trial.given.device] if trial.given.device.type == "cuda" else []
    for number, law in enumerate(LAWS):
        with torch.random.fork_rng(devices), torch.enable_grad():
            finding = judge(law, trial)
        yield finding
        if number < 2 and finding.status == "broken":
            return


def judge(law: Law, trial: Trial) -> Finding:
    """Return the finding of one law. Any exception of the core breaks the law; warnings are not shown."""
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
    """Return True if the difference is at most `ROUNDING` times the tolerance, and absent in float64."""
    if not breach.times <= ROUNDING or trial.in_double is None:  # NaN is never rounding
        return False
    return judge(law, trial.in_double).status == "kept"
