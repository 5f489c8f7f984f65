"""Law 3, no leaks: no output sees the future or another env."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ctrl.checks.laws.stream import Stream, walk
from ctrl.checks.laws.trial import Trial


def no_output_sees_the_future(trial: Trial) -> str:
    """Replace the inputs, then the resets, of later steps."""
    core, stream = trial.fresh(), trial.old
    expected = walk(core, stream, "unroll").outputs
    time = torch.arange(stream.length, device=core.device).expand_as(stream.reset)
    for cut in (1, stream.length // 3, stream.length - 1):
        for what, other in _replaced(stream, time >= cut, trial.huge):
            outputs = walk(core, other, "unroll").outputs
            names = f"unroll and unroll with other {what} from step {cut} on"
            trial.same_outputs(names, expected, outputs, stream, where=time < cut)
    return ""


def no_output_sees_another_env(trial: Trial) -> str:
    """Replace the inputs, then the resets, of each env in turn."""
    for way in ("unroll", "step", "acting"):
        core, stream = trial.fresh(), trial.old if way == "unroll" else trial.short
        expected = walk(core, stream, way).outputs
        for env in range(trial.batch_size):
            its = torch.zeros_like(stream.reset)
            its[env] = True
            for what, other in _replaced(stream, its, trial.huge):
                outputs = walk(core, other, way).outputs
                names = f"{way} and {way} with other {what} in env {env}"
                trial.same_outputs(names, expected, outputs, stream, where=~its)
    return ""


def _replaced(stream: Stream, where: Tensor, value: float) -> list[tuple[str, Stream]]:
    """Replace one field at some steps [B, T]: the inputs by `value`, or the resets by their opposites."""
    inputs = torch.where(where[:, :, None], value, stream.inputs)
    return [("inputs", replace(stream, inputs=inputs)), ("resets", replace(stream, reset=stream.reset ^ where))]
