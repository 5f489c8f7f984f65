"""Self-test for memory cores: the laws that a core keeps, and those that it breaks.

    for finding in ctrl.check_core(core):
        print(finding)

The check sees only inputs, outputs, states and gradients, so some mistakes break no law. One is an age that is off by
one in `step` and `unroll` alike: that is another core, which keeps the same laws. Others are memories shorter than they
should be, a compressor that does nothing, and empty slots attended as zeros, as long as all ways of running the core
agree. Such mistakes need a comparison with a reference of the core at hand.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ctrl.checks.laws import LAWS
from ctrl.checks.laws.stream import Differs
from ctrl.checks.laws.trial import Trial
from ctrl.checks.result import Finding, Law, judge, judge_all, require_kept
from ctrl.core import MemoryCore

ROUNDING = 10
"""Multiple of the tolerance up to which a difference may be rounding, if float64 shows none."""


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
    return require_kept(type(core).__name__, judge_core(trial))


def judge_core(trial: Trial) -> list[Finding]:
    """Return the findings of all laws. Torch's random state is restored afterwards."""
    devices = [trial.given.device] if trial.given.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        return list(judge_all([up_to_rounding(law) for law in LAWS], trial))


def up_to_rounding(law: Law[Trial]) -> Law[Trial]:
    """Return the law with a remark in place of a breach that is but rounding, and with random numbers of its own."""
    return replace(law, holds=partial(_holds_up_to_rounding, law))


def _holds_up_to_rounding(law: Law[Trial], trial: Trial) -> str:
    torch.manual_seed(trial.seed)
    trial.draw_anew()
    try:
        return law.holds(trial)
    except Differs as difference:
        if not difference.times <= ROUNDING or trial.in_double is None:  # NaN is never rounding
            raise
        if judge(up_to_rounding(law), trial.in_double).status != "kept":
            raise
        return f"in float64; in {trial.given.dtype} {difference.detail}"
