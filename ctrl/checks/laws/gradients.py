"""Law 5, gradients go where they should: each loss to its own parameters, before and after training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ctrl.checks.laws.stream import Core, Differs, Stream
from ctrl.checks.laws.trial import LONGEST, Trial
from ctrl.checks.result import Breach, NotApplicable
from ctrl.core import Unrolled


def the_two_lists_are_disjoint_and_complete(trial: Trial) -> str:
    """Check that each parameter is in `compression_parameters` or `main_parameters`, and in only one of them."""
    core = trial.fresh()
    listed = [id(parameter) for parameter in (*core.compression_parameters(), *core.main_parameters())]
    for name, parameter in core.named_parameters():
        times = listed.count(id(parameter))
        if times != 1:
            raise Breach(f"{name} is {times} times in compression_parameters() and main_parameters(), not once")
    strangers = set(listed) - {id(parameter) for parameter in core.parameters()}
    if strangers:
        raise Breach(f"{len(strangers)} listed parameters are not among the core's parameters()")
    return ""


def the_task_loss_reaches_the_rest(trial: Trial) -> str:
    """Check where the task loss's gradient goes: parameters and inputs, over windows in which all tiers form slots."""
    core, hit = trial.fresh(), set[str]()
    compression = _names(core, core.compression_parameters())
    for stream in _long_windows(trial):
        unrolled, inputs = _unroll_with_gradients(core, stream)
        hit |= _reached(core, _task_loss(unrolled, trial))
        if inputs.grad is None or not bool(inputs.grad.any()):
            raise Breach("the task loss does not reach the inputs, so what comes before the core would not learn")
    if hit & compression:
        raise Breach(f"the task loss reaches compression_parameters(): {_listed(hit & compression)}")
    main = {name for name, parameter in core.named_parameters() if parameter.requires_grad} - compression
    if main - hit and not trial.reaches_all:
        return f"within {LONGEST:,} steps the task loss does not reach {_listed(main - hit)}"
    if main - hit:
        raise Breach(f"the task loss does not reach {_listed(main - hit)}")
    fixed = [name for name, parameter in trial.pristine.named_parameters() if not parameter.requires_grad]
    return f"requires_grad is False from the beginning for {_listed(fixed)}" if fixed else ""


def the_reconstruction_loss_reaches_the_compressors(trial: Trial) -> str:
    """Check where the reconstruction loss's gradient goes, over the same windows."""
    core, hit, total = trial.fresh(), set[str](), 0.0
    compression = _names(core, core.compression_parameters())
    for stream in _long_windows(trial):
        unrolled, inputs = _unroll_with_gradients(core, stream)
        total += float(unrolled.reconstruction_loss.abs())
        hit |= _reached(core, unrolled.reconstruction_loss)
        if inputs.grad is not None and bool(inputs.grad.any()):
            raise Breach("the reconstruction loss reaches the inputs, and so what comes before the core")
    if hit - compression:
        raise Breach(f"the reconstruction loss reaches main_parameters(): {_listed(hit - compression)}")
    if not compression:
        raise NotApplicable("it has no compression_parameters()")
    trained = {name for name, parameter in core.named_parameters() if parameter.requires_grad} & compression
    if trained - hit and total == 0:
        return "the reconstruction loss is 0, so the compressors stay as they are"
    if trained - hit and not trial.reaches_all:
        return f"within {LONGEST:,} steps the reconstruction loss does not reach {_listed(trained - hit)}"
    if trained - hit:
        raise Breach(f"the reconstruction loss does not reach {_listed(trained - hit)}")
    return ""


def no_gradient_leaves_its_episode(trial: Trial) -> str:
    """Check the gradient of one late output of each env with respect to the inputs of all envs and steps."""
    core = trial.fresh()
    weight = trial.randn(core.output_size)
    for env in range(trial.batch_size):
        stream = trial.old
        last = stream.length - 2
        unrolled, inputs = _unroll_with_gradients(core, stream)
        _gradients(core, (unrolled.outputs[env, last] * weight).sum())
        if inputs.grad is None:
            raise NotApplicable("no gradient reaches the inputs")
        first = max(stream.reset[env, : last + 1].nonzero()[:, 0].tolist(), default=0)
        reached = inputs.grad.any(dim=2)
        reached[env, first : last + 1] = False
        for other, step in reached.nonzero().tolist():
            raise Breach(
                f"the gradient of the output of env {env}, step {last} reaches the input of env {other}, step {step} "
                f"of {stream.length}, though its episode began at step {first} ({stream.resets_of(env)})",
                other,
                step,
            )
    return ""


def training_freezes_nothing(trial: Trial) -> str:
    """Train for some rounds: `requires_grad` must stay, and the last round must reach all that the first did."""
    core = trial.fresh()
    if not list(core.parameters()):
        raise NotApplicable("it has no parameters")
    optimizer = torch.optim.SGD(core.parameters(), lr=1e-3)
    rounds = []
    for _ in range(3):
        hit = set[str]()
        for stream in _long_windows(trial):
            unrolled, _ = _unroll_with_gradients(core, stream)
            hit |= _reached(core, _task_loss(unrolled, trial) + unrolled.reconstruction_loss)
            optimizer.step()
        rounds.append(hit)
    for (name, now), then in zip(core.named_parameters(), trial.pristine.parameters(), strict=True):
        if now.requires_grad != then.requires_grad:
            raise Breach(f"running and training the core sets requires_grad of {name} to {now.requires_grad}")
    if rounds[0] - rounds[-1]:
        raise Breach(f"after two rounds of training no loss reaches {_listed(rounds[0] - rounds[-1])} any more")
    return ""


def a_step_has_the_gradients_of_a_window(trial: Trial) -> str:
    """Compare the gradients of `step` with those of an unroll of one step, where `step` has any."""
    core = trial.fresh()
    stream = trial.short.part(0, 1, trial.short.state)
    weight = trial.randn(trial.batch_size, core.output_size)
    unrolled = _gradients(core, (core.unroll(stream.inputs, stream.state, stream.reset).outputs[:, 0] * weight).sum())
    outputs, _ = core.step(stream.inputs[:, 0], stream.state, stream.reset[:, 0])
    if not outputs.requires_grad:
        raise NotApplicable("its step takes no gradients")
    for name, gradient in _gradients(core, (outputs * weight).sum()).items():
        size = 1 + float(unrolled[name].abs().max())
        times = float((gradient - unrolled[name]).abs().max()) / (10 * trial.tolerance * size)
        if not times <= 1:  # true for NaN, too
            raise Differs(f"the gradient of {name} differs between step and an unroll of one step", times)
    return ""


def _long_windows(trial: Trial) -> list[Stream]:
    whole = trial.whole
    return [trial.young, trial.old, whole.part(0, min(LONGEST, whole.length), whole.state)]


def _unroll_with_gradients(core: Core, stream: Stream) -> tuple[Unrolled, Tensor]:
    """Unroll a stream; also return the inputs, which take a gradient."""
    inputs = stream.inputs.clone().requires_grad_()
    return core.unroll(inputs, stream.state, stream.reset), inputs


def _task_loss(unrolled: Unrolled, trial: Trial) -> Tensor:
    return (unrolled.outputs * trial.randn(*unrolled.outputs.shape)).sum()


def _gradients(core: Core, loss: Tensor) -> dict[str, Tensor]:
    core.zero_grad()
    if loss.requires_grad:
        loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in core.named_parameters()}


def _reached(core: Core, loss: Tensor) -> set[str]:
    return {name for name, gradient in _gradients(core, loss).items() if bool(gradient.any())}


def _names(core: Core, parameters: list[torch.nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in core.named_parameters() if id(parameter) in wanted}


def _listed(names: Iterable[str]) -> str:
    """Join names; all but the first three are only counted."""
    first, more = sorted(names)[:3], len(sorted(names)) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
