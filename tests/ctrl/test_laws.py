"""Five laws of a memory core (DESIGN 2), for every core: `check_core`, and what needs more than one core as it comes.

Sizes are pairwise distinct and episodes staggered. The property test draws splits and resets at random. Comparisons of
bits are stricter than `check_core`, whose tolerance is for other machines. Only the tests here know which slots of a
state are empty.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ctrl
from ctrl import MemoryCore, Tier
from ctrl.checks.laws import LAWS
from ctrl.checks.laws.stream import STEPPING, Stream, walk

BATCH, LENGTH, INPUTS = 3, 23, 5
CONV = [Tier(4), Tier(3, 3, "conv")]
THREE_TIERS = [Tier(3), Tier(2, 2, "max"), Tier(2, 2, "conv")]
SMALL = {"layers": 2, "width": 8, "heads": 2}
"""Options of cores with slots that do not say otherwise."""


def ranked(compressor: str) -> list[list[Tier]]:
    """Return memories of two layers, the first with two tiers of a compressor that keeps the slot of highest rank."""
    return [[Tier(5), Tier(3, 3, compressor), Tier(4, 2, compressor)], [Tier(3), Tier(4, 2, "conv")]]


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "compressive": ("compressive", {"memory": CONV}),
    "compressive, three tiers, layers differ": (
        "compressive",
        {"width": 6, "heads": 3, "layers": 3, "memory": [THREE_TIERS, [Tier(5)], [Tier(2), Tier(4, 1, "mean")]]},
    ),
    "compressive, learned compressors": (
        "compressive",
        {
            "layers": 3,
            "memory": [
                [Tier(4), Tier(3, 3, "dilated_conv"), Tier(2, 2, "gru")],
                [Tier(3), Tier(5, 2, "attention")],
                [Tier(4), Tier(4, 2, "select")],
            ],
        },
    ),
    "compressive, auto-encoding": ("compressive", {"memory": CONV, "reconstruction": "auto_encoding"}),
    "compressive, trained by the task": (
        "compressive",
        {"memory": [*CONV, Tier(2, 2, "attention")], "compression_gradient": "task"},
    ),
    "compressive, most used": ("compressive", {"memory": ranked("most_used")}),
    "compressive, most missed": ("compressive", {"memory": ranked("most_missed")}),
    "transformer_xl": ("transformer_xl", {"heads": 4, "slots": 6}),
    "gtrxl": ("gtrxl", {"width": 6, "slots": 7}),
    "the paper's": ("compressive", ctrl.paper_config(3, width=8, heads=2, slots=4, compressed_slots=5)),
    "sinusoidal, gated, three tiers, layers differ": (
        "compressive",
        {
            "width": 9,  # odd: a sine without its cosine
            "heads": 3,
            "memory": [THREE_TIERS, [Tier(2), Tier(4, 1, "mean")]],
            "position": "sinusoidal",
            "residual": "gated",
        },
    ),
    "surprise": (
        "compressive",
        {"heads": 4, "memory": [[Tier(5), Tier(3, 3), Tier(4, 2)], [Tier(3), Tier(4, 2, "surprise")]]},
    ),
    "neither forgetting nor clock": (
        "compressive",
        {"memory": [Tier(4), Tier(3, 3)], "forgetting": False, "clock": False},
    ),
    "one head, no clock": ("compressive", {"heads": 1, "memory": [Tier(4), Tier(3, 3, "most_used")], "clock": False}),
    "by age, pre-norm": ("compressive", {"memory": CONV, "residual": "pre_norm", "forgetting": False}),
    "by age, gated": ("compressive", {"memory": [Tier(4), Tier(3, 3, "most_missed")], "residual": "gated"}),
    "by age, post-norm": ("compressive", {"memory": CONV, "residual": "post_norm"}),
    "sinusoidal, post-norm, most used": (
        "compressive",
        {
            "memory": [Tier(4), Tier(3, 3, "most_used"), Tier(4, 2, "most_used")],
            "position": "sinusoidal",
            "residual": "post_norm",
        },
    ),
    "lstm": ("lstm", {"width": 7}),
    "lstm, two layers": ("lstm", {"width": 4, "layers": 2, "chrono_horizon": None}),
    "gru": ("gru", {"width": 7, "layers": 2}),
    "mingru": ("mingru", {"width": 7}),
    "mingru, two layers": ("mingru", {"width": 4, "layers": 2, "chrono_horizon": None}),
    "feedforward": ("feedforward", {"width": 7}),
}
ATTENTION = ("compressive", "transformer_xl", "gtrxl")
WITH_SLOTS = [name for name, (kind, _) in OPTIONS.items() if kind in ATTENTION]
Core = MemoryCore[Any]


def build(name: str) -> Core:
    torch.manual_seed(0)
    kind, options = OPTIONS[name]
    if name in WITH_SLOTS:
        options = SMALL | options
    core = ctrl.make_core(kind, INPUTS, **options)
    with torch.no_grad():
        for parameter in core.parameters():  # away from zeros and identities that would hide a mistake
            parameter.add_(0.2 * torch.randn_like(parameter))
    return core


@pytest.fixture(params=OPTIONS)
def core(request: pytest.FixtureRequest) -> Core:
    return build(request.param)


@pytest.fixture
def window() -> tuple[Tensor, Tensor]:
    """Return inputs [B, T, I] and resets [B, T] at different times in every env, none at step 0 of env 1."""
    torch.manual_seed(1)
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    reset[0, [0, 4, 5]] = True
    reset[1, [11]] = True
    reset[2, [0, 19]] = True
    return torch.randn(BATCH, LENGTH, INPUTS), reset


def lived_in_state(core: Core, steps: int = 17) -> Any:
    """Return a state in the middle of episodes of different ages."""
    torch.manual_seed(2)
    reset = torch.zeros(BATCH, steps, dtype=torch.bool)
    reset[:, 0] = True
    reset[1, 9] = True
    reset[2, 15] = True
    inputs = torch.randn(BATCH, steps, INPUTS).to(core.dtype)
    return core.unroll(inputs, core.initial_state(BATCH), reset).state


def fold(core: Core, inputs: Tensor, state: Any, reset: Tensor, way: str = "step") -> tuple[Tensor, Any]:
    """Take one step after another, by `step` or by acting; return the outputs and the final state."""
    return walk(core, Stream(inputs, reset, state, "here"), way)


def assert_same_state(actual: Any, expected: Any) -> None:
    for name, left, right in zip(actual._fields, actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_law_is_kept(name: str) -> None:
    core = build(name)
    findings = ctrl.check_core(core, length=16)
    assert [finding.law for finding in findings] == [law.name for law in LAWS]
    others = {finding.law for finding in findings if finding.status != "kept"}
    reconstruction = "law 5 (gradients): the reconstruction loss reaches the compressors"
    assert others == (set() if core.compression_parameters() else {reconstruction})
    assert not [finding for finding in findings if "does not reach" in finding.detail], "or the history is too short"
    assert core.state_bytes == sum(leaf.nbytes for leaf in core.initial_state(BATCH)) // BATCH


# Law 1: one meaning


@pytest.mark.parametrize("way", STEPPING)
@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), length=st.sampled_from([1, 2, 7, 30, 70]))
def test_unroll_equals_folded_steps_for_any_split_and_resets(
    name: str, way: str, data: st.DataObject, length: int
) -> None:
    """The plan is made before or by `unroll` itself. In float64 no rounding looks like a difference."""
    core = build(name).double()
    rows = st.lists(st.sampled_from([False] * 6 + [True]), min_size=length, max_size=length)
    reset = torch.tensor([data.draw(rows) for _ in range(BATCH)])
    inputs = torch.randn(BATCH, length, INPUTS, dtype=torch.float64)
    start = lived_in_state(core)
    stepped, final = fold(core, inputs, start, reset, way)

    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=3))) if length > 1 else []
    state, parts, planned = start, [], data.draw(st.booleans())
    for first, last in zip([0, *cuts], [*cuts, length], strict=True):
        plan = core.plan(state, reset[:, first:last]) if planned else None
        unrolled = core.unroll(inputs[:, first:last], state, reset[:, first:last], plan=plan)
        parts.append(unrolled.outputs)
        state = unrolled.state
    torch.testing.assert_close(torch.cat(parts, dim=1), stepped, rtol=1e-7, atol=1e-8)
    assert_same_state(state, final)


@pytest.mark.parametrize("name", ["compressive", "transformer_xl"])
def test_acting_without_a_bias_for_each_age(
    name: str, window: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acting has no table of biases if the memory's reach is too long for it."""
    monkeypatch.setattr("ctrl.compressive.cache_schedule.TABLE", 0)
    core, (inputs, reset) = build(name), window
    outputs, _ = fold(core, inputs, lived_in_state(core), reset, "acting")
    close(outputs, core.unroll(inputs, lived_in_state(core), reset).outputs)


@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_acting_goes_on_as_a_copy(core: Core, window: tuple[Tensor, Tensor], way: str) -> None:
    inputs, reset = window
    acting = core.acting(lived_in_state(core))
    for t in range(LENGTH):
        if t == 7:
            other = copy.deepcopy(acting) if way == "copied" else pickle.loads(pickle.dumps(acting))
            assert other.core is not core
        output = acting.step(inputs[:, t], reset[:, t])
        if t >= 7:
            close(other.step(inputs[:, t], reset[:, t]), output)
    assert_same_state(other.state(), acting.state())


def test_what_acting_returns_can_be_learned_from(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    acting = core.acting(core.initial_state(BATCH))
    weight = torch.ones(core.output_size, requires_grad=True)
    (acting.step(inputs[:, 0], reset[:, 0]) * weight).sum().backward()
    assert weight.grad is not None
    for state in (acting.state(), acting.state(np.array([2, 0, 1]))):
        core.unroll(inputs, state, reset).outputs.sum().backward()


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_acting_follows_weights_that_are_changed_by_hand(
    core: Core, window: tuple[Tensor, Tensor], change: str
) -> None:
    inputs, reset = window
    acting, state = core.acting(core.initial_state(BATCH)), core.initial_state(BATCH)
    for t in range(LENGTH):
        if t == 15:
            for parameter in core.parameters():
                weights = parameter.detach() + 0.1 * torch.randn_like(parameter)
                if change == "replaced":
                    parameter.data = weights
                else:
                    parameter.detach().copy_(weights)
        with torch.no_grad():
            expected, state = core.step(inputs[:, t], state, reset[:, t])
        close(acting.step(inputs[:, t], reset[:, t]), expected)


def test_weights_that_take_the_place_of_freed_ones_are_noticed() -> None:
    core = ctrl.make_core("compressive", INPUTS, width=16)
    acting = core.acting(core.initial_state(BATCH))
    weight = core.layers[0].attention.query.weight  # type: ignore[union-attr]
    seen = weight.data_ptr()
    for _ in range(100):  # as a rule the allocator hands out the same memory again
        weight.data = torch.randn(weight.shape)
        assert weight.data_ptr() != seen
    acting.step(torch.randn(BATCH, INPUTS), torch.ones(BATCH, dtype=torch.bool))


# Laws 2 and 3: reset first, no leaks


@pytest.mark.parametrize("size", [1.0, 1e9, 1e30])
def test_no_bit_depends_on_what_must_not_matter(core: Core, window: tuple[Tensor, Tensor], size: float) -> None:
    """Replace what is before each env's last reset, after a step or of one env: outputs elsewhere stay the same."""
    inputs, reset = window
    start, time = lived_in_state(core), torch.arange(LENGTH).expand_as(reset)
    outputs = core.unroll(inputs, start, reset).outputs
    before, env_1 = time < last_resets(reset)[:, None], torch.tensor([[False], [True], [False]])
    drawn = size * torch.randn_like(inputs)
    numbers = [size * torch.randn_like(leaf) if leaf.is_floating_point() else leaf for leaf in start]
    for where in (before, time >= 1, time >= 8, time >= 20, env_1.expand_as(reset)):
        other = torch.where(where[:, :, None], drawn, inputs)
        state = core.make_state(numbers) if where is before else start
        assert torch.equal(core.unroll(other, state, reset).outputs[~where], outputs[~where])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_nothing_seen_before_a_reset_is_acted_on_after_it(
    core: Core, window: tuple[Tensor, Tensor], poison: float
) -> None:
    inputs, reset = window
    before = torch.arange(LENGTH) < last_resets(reset)[:, None]
    clean, _ = fold(core, inputs, core.initial_state(BATCH), reset, "acting")
    other = torch.where(before[:, :, None], poison, inputs)
    assert torch.equal(fold(core, other, core.initial_state(BATCH), reset, "acting")[0][~before], clean[~before])


def last_resets(reset: Tensor) -> Tensor:
    return torch.tensor([int(row.nonzero().max()) for row in reset])


@pytest.mark.parametrize("poison", [torch.nan, 1e9])
def test_no_output_sees_an_empty_or_stale_slot(window: tuple[Tensor, Tensor], poison: float) -> None:
    """The slots of a state hold arbitrary numbers; its clock says which of them are empty."""
    inputs, reset = window
    for name in WITH_SLOTS:
        core = build(name)
        clean = core.initial_state(BATCH)
        lived = lived_in_state(core)
        filled = lived._replace(slots=torch.where(lived.slots == 0, poison, lived.slots))
        assert bool((lived.slots == 0).all(dim=2).any()), "some slots must be empty for this test to mean anything"
        assert torch.equal(core.unroll(inputs, filled, reset).outputs, core.unroll(inputs, lived, reset).outputs)
        empty = clean._replace(slots=torch.full_like(clean.slots, poison))
        assert torch.equal(core.unroll(inputs, empty, reset).outputs, core.unroll(inputs, clean, reset).outputs)
        for way in STEPPING:
            assert torch.equal(fold(core, inputs, filled, reset, way)[0], fold(core, inputs, lived, reset, way)[0])
            assert torch.equal(fold(core, inputs, empty, reset, way)[0], fold(core, inputs, clean, reset, way)[0])


# Law 4: state is data


def test_state_does_not_grow_by_step_one_million(window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    reset[:] = False
    for name in WITH_SLOTS:
        core = build(name)
        young = lived_in_state(core)
        old = young._replace(clock=torch.tensor([1_000_000, 999_993, 1_000_017]), slots=torch.randn_like(young.slots))
        unrolled = core.unroll(inputs, old, reset)
        for way in STEPPING:
            stepped, state = fold(core, inputs, old, reset, way)
            close(stepped, unrolled.outputs)
            assert [leaf.shape for leaf in state] == [leaf.shape for leaf in young]


# Bad input


def test_arguments_that_do_not_fit_are_refused_by_name(core: Core) -> None:
    state, reset = core.initial_state(BATCH), torch.zeros(BATCH, dtype=torch.bool)
    inputs, acting = torch.randn(BATCH, INPUTS), core.acting(state)
    windows = torch.randn(BATCH, 2, INPUTS)
    for call, arguments, message in (
        (core.step, (inputs[:, :4], state, reset), r"inputs must be .*5.*got \(3, 4\)"),
        (core.step, (inputs.double(), state, reset), "inputs must be torch.float32.*float64"),
        (core.step, (inputs, state, reset.float()), r"reset must be bool of shape \(3,\).*float32"),
        (core.unroll, (windows, state, reset), r"reset must be bool of shape \(3, 2\).*\(3,\)"),
        (core.step, (inputs, core.initial_state(BATCH + 1), reset), r"state\..*\(3.*\(4"),
        (core.step, (inputs, tuple(state), reset), "state must be the .*State.*tuple"),
        (core.unroll, (windows[:, :0], state, reset[:, None][:, :0]), "no empty axis"),
        (core.step, (inputs.to("meta"), state, reset), "cpu.*meta"),
        (acting.step, (inputs[:2], reset[:2]), r"inputs must be .*got \(2, 5\)"),
        (acting.step, (inputs, reset.float()), "reset must be bool"),
        (core.acting, (tuple(state),), "state must be the .*State.*tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)


def test_a_plan_of_other_windows_or_of_another_core_is_refused(window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    core = build("compressive")
    state = core.initial_state(BATCH)
    with pytest.raises(ValueError, match=r"plan must be of the same windows, .*\(3, 22\) and reset \(3, 23\)"):
        core.unroll(inputs, state, reset, plan=core.plan(state, reset[:, 1:]))
    with pytest.raises(ValueError, match=r"plan must be of the same windows, .*\(2, 23\) and reset \(3, 23\)"):
        core.unroll(inputs, state, reset, plan=core.plan(core.initial_state(2), reset[:2]))
    with pytest.raises(ValueError, match="plan must be of the same windows.* with other resets"):
        core.unroll(inputs, state, reset, plan=core.plan(state, reset.flip(0)))
    with pytest.raises(ValueError, match="plan must be what .* of this core returned"):
        core.unroll(inputs, state, reset, plan=build("transformer_xl").plan(state, reset))


def test_dtype_is_that_of_weights_that_replace_others(core: Core) -> None:
    assert core.dtype == torch.float32
    weights = {
        name: value.double() if value.is_floating_point() else value for name, value in core.state_dict().items()
    }
    core.load_state_dict(weights, assign=True)
    assert core.dtype == torch.float64
    core.step(torch.randn(BATCH, INPUTS).double(), core.initial_state(BATCH), torch.ones(BATCH, dtype=torch.bool))


def test_unknown_cores_are_answered_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown core 'ltsm'.*'compressive'.*'lstm'"):
        ctrl.make_core("ltsm", 3)
    with pytest.raises(ValueError, match="input_size.*0"):
        ctrl.make_core("gru", 0)
