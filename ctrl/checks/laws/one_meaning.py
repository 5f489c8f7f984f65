"""Law 1, one meaning: `unroll`, `step` and acting give the same results for the same stream, however it is cut."""

from __future__ import annotations

import torch

from ctrl.checks.laws.state_is_data import same_layout
from ctrl.checks.laws.stream import Core, Stream, Walked, walk
from ctrl.checks.laws.trial import LONGEST, Trial, shake
from ctrl.checks.result import NotApplicable


def unroll_equals_folded_steps(way: str, trial: Trial) -> str:
    """Compare over a young and an old window; acting also over the whole history."""
    core, streams = trial.fresh(), [trial.young, trial.old]
    if way == "acting" and trial.whole.length <= LONGEST:
        streams.append(trial.whole)
    for stream in streams:
        trial.compare(("unroll", walk(core, stream, "unroll")), (way, walk(core, stream, way)), stream)
    if trial.reaches_all:
        return ""
    return f"envs lived for {trial.history:,} steps; the core's oldest slots are {trial.wanted_history:,} old"


def any_split_means_the_same(trial: Trial) -> str:
    """Compare whole windows with windows in pieces, and with windows with a plan that was made beforehand."""
    core = trial.fresh()
    streams = [trial.young, trial.old] + ([trial.whole] if trial.whole.length <= LONGEST else [])
    for stream in streams:
        length = stream.length
        whole = walk(core, stream, "unroll")
        for cuts in ([1], [length // 4], [length // 3, length // 3 + 1, length - 2]):  # env 1 resets at a quarter
            trial.compare(("one window", whole), (f"windows cut at {cuts}", _in_pieces(core, stream, cuts)), stream)
        plan = core.plan(stream.state, stream.reset)
        planned = core.unroll(stream.inputs, stream.state, stream.reset, plan=plan)
        trial.compare(("unroll", whole), ("unroll with a plan", Walked(planned.outputs, planned.state)), stream)
    return ""


def _in_pieces(core: Core, stream: Stream, cuts: list[int]) -> Walked:
    state, outputs = stream.state, []
    for first, last in zip([0, *cuts], [*cuts, stream.length], strict=True):
        part, state = walk(core, stream.part(first, last, state), "unroll")
        outputs.append(part)
    return Walked(torch.cat(outputs, dim=1), state)


def acting_gives_back_the_state(trial: Trial) -> str:
    """Compare acting's state with that of `step` after each step, for all envs and for some."""
    core, stream = trial.fresh(), trial.old
    acting, state = core.acting(stream.state), stream.state
    same_layout(acting.state(), state, "before acting")
    some = torch.arange(trial.batch_size - 1, -1, -2)
    with torch.no_grad():
        for t in range(stream.length):
            inputs, reset = stream.inputs[:, t], stream.reset[:, t]
            _, state = core.step(inputs, state, reset)
            acting.step(inputs, reset)
            trial.same_state(f"acting and step, after step {t}", acting.state(), state, t)
            picked = type(state)(*(leaf[some.to(leaf.device)] for leaf in state))
            trial.same_state(f"acting.state({some.tolist()}), after step {t}", acting.state(some.numpy()), picked, t)
    return ""


def each_env_is_as_if_alone(trial: Trial) -> str:
    """Compare all envs together with each env alone, and with all in another order."""
    envs = list(range(trial.batch_size))
    for way in ("unroll", "step", "acting"):
        core, stream = trial.fresh(), trial.old if way == "unroll" else trial.short
        together = walk(core, stream, way).outputs
        alone = torch.cat([walk(core, stream.rows([env]), way).outputs for env in envs])
        trial.same_outputs(f"{way} of all envs and of each alone", together, alone, stream)
        turned = walk(core, stream.rows([*envs[1:], 0]), way).outputs.roll(1, dims=0)
        trial.same_outputs(f"{way} of all envs and in another order", together, turned, stream)
    return ""


def acting_follows_the_weights(trial: Trial) -> str:
    """Change the weights in the middle, in each way an agent may, and compare with an untouched copy."""
    if not list(trial.pristine.parameters()):
        raise NotApplicable("it has no parameters")
    for change in ("by an optimizer", "by a fused optimizer", "by load_state_dict", "by load_state_dict(assign=True)"):
        core, reference, stream = trial.fresh(), trial.fresh(), trial.short
        middle = stream.length // 2
        acting = core.acting(stream.state)
        for t in range(middle):
            acting.step(stream.inputs[:, t], stream.reset[:, t])
        state = acting.state()
        core.unroll(stream.inputs[:, :1], stream.state, stream.reset[:, :1])
        _change_weights(core, trial, change)
        reference.load_state_dict(core.state_dict())
        rest = stream.part(middle, stream.length, state)
        expected = walk(reference, rest, "unroll").outputs
        outputs = [acting.step(rest.inputs[:, t], rest.reset[:, t]) for t in range(rest.length)]
        ways = {
            "acting": torch.stack(outputs, dim=1),
            **{way: walk(core, rest, way).outputs for way in ("unroll", "step")},
        }
        for way, found in ways.items():
            names = f"{way} and a fresh copy, weights changed {change} before step {middle},"
            trial.same_outputs(names, found, expected, stream, offset=middle)
    return ""


def _change_weights(core: Core, trial: Trial, change: str) -> None:
    if "optimizer" not in change:
        other = trial.fresh()
        shake(other, 0.2, torch.Generator().manual_seed(trial.seed + 1))
        core.load_state_dict(other.state_dict(), assign="assign" in change)
        return
    parameters = list(core.parameters())
    for parameter in parameters:
        parameter.grad = trial.randn(*parameter.shape)
    torch.optim.Adam(parameters, lr=0.01, fused="fused" in change).step()
