"""Law 2, reset first: nothing before a reset reaches anything after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ctrl.checks.laws.stream import WAYS, walk
from ctrl.checks.laws.trial import Trial
from ctrl.checks.result import Breach


def nothing_reaches_over_a_reset(way: str, trial: Trial) -> str:
    """Replace the state and all inputs before each env's last reset by other finite numbers, however large.

    Some envs reset at the first step and never use their state, others use theirs first.
    """
    core = trial.fresh()
    stream = trial.old if way == "unroll" else trial.short
    last = torch.tensor([5 * env % (stream.length - 2) for env in range(trial.batch_size)])[:, None]
    time = torch.arange(stream.length)
    reset = stream.reset.cpu() & (time < last) | (time == last)
    stream = replace(stream, reset=reset.to(core.device))
    expected = walk(core, stream, way).outputs
    after = (time >= last).to(core.device)
    initial, huge = core.initial_state(trial.batch_size), _of_size(trial.huge, stream.state, trial)
    for what, size, state in (
        ("inputs of size 1", 1.0, initial),
        ("huge inputs and a huge state", trial.huge, huge),
        ("huge inputs and a huge state of opposite sign", trial.huge, _opposite(huge)),
    ):
        inputs = torch.where(after[:, :, None], stream.inputs, size * trial.randn(*stream.inputs.shape))
        outputs = walk(core, replace(stream, inputs=inputs, state=state), way).outputs
        trial.same_outputs(f"{way} and {way} with other {what} before a reset", expected, outputs, stream, where=after)
    return ""


def what_is_not_finite_stays_before_a_reset(way: str, trial: Trial) -> str:
    """Replace inputs before each env's last reset by NaN or infinity: outputs and states after it must stay.

    What a state means shows in the outputs of further steps from it, since an empty slot may hold anything. In a window
    the gradients of outputs after the reset must be finite, too.
    """
    core, stream = trial.fresh(), trial.short
    last = torch.tensor([2 + 3 * env % (stream.length - 4) for env in range(trial.batch_size)])[:, None]
    time = torch.arange(stream.length)
    reset = (stream.reset.cpu() & (time < last) | (time == last)).to(core.device)
    stream = replace(stream, reset=reset, state=core.initial_state(trial.batch_size))
    after = (time >= last).to(core.device)
    expected = walk(core, stream, way)
    onward = replace(stream, reset=torch.zeros_like(reset), state=expected.state)
    expected_onward = walk(core, onward, way)
    for value in (torch.nan, torch.inf) if way == "unroll" else (torch.nan,):
        spoiled = replace(stream, inputs=torch.where(after[:, :, None], stream.inputs, value))
        walked = walk(core, spoiled, way)
        names = f"{way} and {way} with {value} before a reset"
        trial.same_outputs(names, expected.outputs, walked.outputs, stream, where=after)
        walked_onward = walk(core, replace(onward, state=walked.state), way)
        trial.same_outputs(f"{names}, in further steps,", expected_onward.outputs, walked_onward.outputs, onward)
        if way == "unroll":  # a single step can't know that a reset will follow
            _require_finite_gradients(core, walked.outputs[after].sum(), f"{value} in inputs")
    return ""


def _of_size(size: float, state: Any, trial: Trial) -> Any:
    """Replace all floating-point numbers of a state by random ones; clocks stay, so its slots count as filled."""
    drawn = (size * trial.randn(*leaf.shape) if leaf.is_floating_point() else leaf for leaf in state)
    return type(state)(*drawn)


def _opposite(state: Any) -> Any:
    return type(state)(*(-leaf if leaf.is_floating_point() else leaf for leaf in state))


def a_state_of_nan_is_harmless_at_a_reset(trial: Trial) -> str:
    """Reset an old state that holds nothing but NaN, in a window's first step or later.

    Gradients are checked in the first case only. In the second, those of the steps before the reset are NaN, too.
    """
    core, stream = trial.fresh(), trial.short
    lived = walk(core, stream.part(0, stream.length // 2, stream.state), "unroll").state
    stream = stream.part(0, 8, lived)
    envs = torch.arange(trial.batch_size, device=core.device)
    for first in (torch.zeros_like(envs), 1 + envs % 5):
        time = torch.arange(stream.length, device=core.device)
        after = time >= first[:, None]
        stream = replace(stream, reset=stream.reset & after | (time == first[:, None]))
        poisoned = replace(stream, state=_of_nan(stream.state))
        for way in WAYS:
            expected, outputs = walk(core, stream, way).outputs, walk(core, poisoned, way).outputs
            names = f"{way} and {way} with NaN in the state before a reset"
            trial.same_outputs(names, expected, outputs, stream, where=after)
        if bool(after.all()):
            unrolled = core.unroll(poisoned.inputs, poisoned.state, poisoned.reset)
            loss = unrolled.outputs.sum() + unrolled.reconstruction_loss
            _require_finite_gradients(core, loss, "NaN in the state")
    return ""


def _require_finite_gradients(core: Any, loss: torch.Tensor, what: str) -> None:
    core.zero_grad()
    if loss.requires_grad:
        loss.backward()
    bad = [name for name, p in core.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if bad:
        raise Breach(f"{what} before a reset reaches the gradient of {', '.join(bad[:3])}")


def _of_nan(state: Any) -> Any:
    """Replace all floating-point numbers of a state by NaN."""
    return type(state)(*(torch.full_like(leaf, torch.nan) if leaf.is_floating_point() else leaf for leaf in state))


def a_reset_is_a_fresh_start(trial: Trial) -> str:
    """Compare a reset of an old state with the initial state, whose first step need not be marked as a reset."""
    core, stream = trial.fresh(), trial.short
    fresh = replace(stream, reset=torch.zeros_like(stream.reset), state=core.initial_state(trial.batch_size))
    lived = replace(stream, reset=torch.zeros_like(stream.reset))
    lived.reset[:, 0] = True
    for way in WAYS:
        names = (f"{way} from a reset", f"{way} from the initial state")
        trial.compare((names[0], walk(core, lived, way)), (names[1], walk(core, fresh, way)), lived)
    return ""
