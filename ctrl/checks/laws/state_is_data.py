"""Law 4, state is data: explicit, of a fixed shape, without a graph, and nothing hidden in the module."""

from __future__ import annotations

from typing import Any

import torch

from ctrl.checks.laws.stream import STEPPING, WAYS, Core, Stream, cloned, equal, steps, walk
from ctrl.checks.laws.trial import Trial
from ctrl.checks.result import Breach
from ctrl.core import Unrolled


def state_is_data_of_a_fixed_shape(trial: Trial) -> str:
    """Compare the states after one and after many steps with the initial one."""
    core, stream = trial.fresh(), trial.young
    single, initial = core.initial_state(1), core.initial_state(trial.batch_size)
    if not isinstance(initial, tuple) or not hasattr(initial, "_fields"):
        raise Breach(f"initial_state returns a {type(initial).__name__}, not a NamedTuple")
    for name, one, leaf in zip(initial._fields, single, initial, strict=True):
        if leaf.shape != (trial.batch_size, *one.shape[1:]) or one.shape[:1] != (1,):
            raise Breach(
                f"state.{name} is not batch first: {tuple(one.shape)} for 1 env and {tuple(leaf.shape)} for "
                f"{trial.batch_size}"
            )
    for way in ("step", "step with a graph"):
        same_layout(walk(core, stream.part(0, 3, initial), way).state, initial, f"after {way}")
    same_layout(core.unroll(stream.inputs, initial, stream.reset).state, initial, f"after {stream.length} steps")
    return f"{trial.pristine.state_bytes:,} bytes per env"


def same_layout(state: Any, initial: Any, when: str) -> None:
    if type(state) is not type(initial):
        raise Breach(f"{when} the state is a {type(state).__name__}, at first a {type(initial).__name__}")
    for name, leaf, first in zip(initial._fields, state, initial, strict=True):
        for what in ("shape", "dtype", "device"):
            now, then = getattr(leaf, what), getattr(first, what)
            if now != then:
                raise Breach(f"{when} state.{name} has {what} {now}, at first {then}")


def it_can_be_run(trial: Trial) -> str:
    """Copy the core, unroll it, and check the type, shapes and finiteness of the result."""
    core, stream = trial.fresh(), trial.young
    unrolled = core.unroll(stream.inputs, stream.state, stream.reset)
    if not isinstance(unrolled, Unrolled):
        raise Breach(f"unroll returns a {type(unrolled).__name__}, not an Unrolled")
    expected = (trial.batch_size, trial.length, core.output_size)
    for what, tensor, shape in (
        ("outputs", unrolled.outputs, expected),
        ("reconstruction_loss", unrolled.reconstruction_loss, ()),
    ):
        if tuple(tensor.shape) != shape:
            raise Breach(f"{what} must be of shape {shape}, got {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise Breach(f"{what} must be finite for finite inputs")
    return ""


def the_state_carries_no_graph(trial: Trial) -> str:
    """Check the states that each way of running the core returns."""
    core, stream = trial.fresh(), trial.young.part(0, 3, trial.young.state)
    states = {way: walk(core, stream, way).state for way in WAYS}
    for way, state in {**states, "initial_state": core.initial_state(2)}.items():
        graphs = [name for name, leaf in zip(state._fields, state, strict=True) if leaf.requires_grad]
        if graphs:
            raise Breach(f"after {way} state.{graphs[0]} carries a graph")
    return ""


def nothing_is_hidden_in_the_module(trial: Trial) -> str:
    """Interleave two streams, and switch between training and evaluation; compare with a copy that saw one only."""
    one = trial.short
    two = trial.young.part(0, one.length, trial.young.state)
    for way in STEPPING:
        core = trial.fresh()
        alone = torch.stack([outputs for outputs, _ in steps(trial.fresh(), one, way)], dim=1)
        pairs = zip(steps(core, one, way), steps(core, two, way), strict=True)
        among = torch.stack([outputs for (outputs, _), _ in pairs], dim=1)
        trial.same_outputs(f"{way} between steps of another stream and {way} alone", among, alone, one)
        _run_left_alone(core, trial)
    core, expected = trial.fresh(), walk(trial.fresh(), one, "unroll")
    for training in (True, False):
        walk(core.train(training), two, "unroll")
        mode = "train" if training else "eval"
        found = walk(core, one, "unroll")
        trial.compare((f"unroll in {mode}() after another stream", found), ("unroll at first", expected), one)
    return _run_left_alone(core, trial)


def _run_left_alone(core: Core, trial: Trial) -> str:
    """Raise a `Breach` if running a core has changed its weights or buffers."""
    before = trial.pristine.state_dict()
    changed = [name for name, now in core.state_dict().items() if name not in before or not equal(now, before[name])]
    if changed:
        raise Breach(f"running the core changes {', '.join(changed[:3])} of its state_dict")
    return ""


def what_is_given_is_not_changed(trial: Trial) -> str:
    """Check at the end that inputs, given states and returned states are unchanged."""
    for way in WAYS:
        core, stream = trial.fresh(), trial.short
        kept = stream.copy()
        walk(core, stream, way)
        for name, now, then in (
            ("inputs", stream.inputs, kept.inputs),
            ("reset", stream.reset, kept.reset),
            *zip((f"state.{name}" for name in kept.state._fields), stream.state, kept.state, strict=True),
        ):
            if not equal(now, then):
                raise Breach(f"{way} changes in place the {name} that it is given")
        if way != "unroll":
            _returned_states_stay(core, kept, way)
    return _acting_keeps_a_copy(trial)


def _returned_states_stay(core: Core, stream: Stream, way: str) -> None:
    states = []
    for _, get_state in steps(core, stream, way):
        state = get_state()
        states.append((state, cloned(state)))
    for t, (state, then) in enumerate(states):
        for name, now, kept in zip(state._fields, state, then, strict=True):
            if not equal(now, kept):
                raise Breach(f"the state.{name} that {way} returned after step {t} was changed by a later one", step=t)


def _acting_keeps_a_copy(trial: Trial) -> str:
    core, stream = trial.fresh(), trial.short
    expected = walk(core, stream, "acting").outputs
    start = cloned(stream.state)
    acting = core.acting(start)
    for leaf in start:
        leaf.fill_(3)
    outputs = [acting.step(stream.inputs[:, t], stream.reset[:, t]) for t in range(stream.length)]
    names = "acting and acting whose first state was overwritten after it had begun"
    trial.same_outputs(names, expected, torch.stack(outputs, dim=1), stream)
    return ""
