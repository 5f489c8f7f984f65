"""Five laws of a memory core (DESIGN 2), for every core, with distinct sizes and staggered episodes."""

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

BATCH, LENGTH, INPUTS = 3, 23, 5
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "compressive": ("compressive", {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3, "conv")]}),
    "compressive, three tiers, layers differ": (
        "compressive",
        {
            "width": 6,
            "heads": 3,
            "layers": 3,
            "memory": [[Tier(3), Tier(2, 2, "max"), Tier(2, 2, "conv")], [Tier(5)], [Tier(2), Tier(4, 1, "mean")]],
        },
    ),
    "compressive, learned compressors": (
        "compressive",
        {
            "width": 8,
            "heads": 2,
            "layers": 3,
            "memory": [
                [Tier(4), Tier(3, 3, "dilated_conv"), Tier(2, 2, "gru")],
                [Tier(3), Tier(5, 2, "attention")],
                [Tier(4), Tier(4, 2, "select")],
            ],
        },
    ),
    "compressive, auto-encoding": (
        "compressive",
        {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3, "conv")], "reconstruction": "auto_encoding"},
    ),
    "compressive, trained by the task": (
        "compressive",
        {
            "width": 8,
            "heads": 2,
            "memory": [Tier(4), Tier(3, 3, "conv"), Tier(2, 2, "attention")],
            "compression_gradient": "task",
        },
    ),
    "compressive, most used": (
        "compressive",
        {
            "width": 8,
            "heads": 2,
            "memory": [[Tier(5), Tier(3, 3, "most_used"), Tier(4, 2, "most_used")], [Tier(3), Tier(4, 2, "conv")]],
        },
    ),
    "compressive, most missed": (
        "compressive",
        {
            "width": 8,
            "heads": 2,
            "memory": [[Tier(5), Tier(3, 3, "most_missed"), Tier(4, 2, "most_missed")], [Tier(3), Tier(4, 2, "conv")]],
        },
    ),
    "adaptive": (
        "adaptive",
        {
            "width": 8,
            "heads": 2,
            "layers": 3,
            "memory": [[Tier(4), Tier(3, 2, "conv"), Tier(2, 2, "max")], [Tier(5)], [Tier(3), Tier(4, 2, "gru")]],
        },
    ),
    "transformer_xl": ("transformer_xl", {"width": 8, "heads": 4, "slots": 6}),
    "gtrxl": ("gtrxl", {"width": 6, "heads": 2, "slots": 7}),
    "the paper's": ("compressive", ctrl.paper_config(3, width=8, heads=2, slots=4, compressed_slots=5)),
    "sinusoidal, gated, three tiers, layers differ": (
        "compressive",
        {
            "width": 9,  # odd: a sine without its cosine
            "heads": 3,
            "memory": [[Tier(3), Tier(2, 2, "max"), Tier(2, 2, "conv")], [Tier(2), Tier(4, 1, "mean")]],
            "position": "sinusoidal",
            "residual": "gated",
        },
    ),
    "surprise": (
        "compressive",
        {"width": 8, "heads": 4, "memory": [[Tier(5), Tier(3, 3), Tier(4, 2)], [Tier(3), Tier(4, 2, "surprise")]]},
    ),
    "neither forgetting nor clock": (
        "compressive",
        {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3)], "forgetting": False, "clock": False},
    ),
    "one head, no clock": (
        "compressive",
        {"width": 8, "heads": 1, "memory": [Tier(4), Tier(3, 3, "most_used")], "clock": False},
    ),
    "by age, pre-norm": (
        "compressive",
        {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3, "conv")], "residual": "pre_norm", "forgetting": False},
    ),
    "by age, gated": (
        "compressive",
        {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3, "most_missed")], "residual": "gated"},
    ),
    "by age, post-norm": (
        "compressive",
        {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3, "conv")], "residual": "post_norm"},
    ),
    "sinusoidal, post-norm, most used": (
        "compressive",
        {
            "width": 8,
            "heads": 2,
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
ATTENTION = ("compressive", "adaptive", "transformer_xl", "gtrxl")
WITH_SLOTS = [name for name, (kind, _) in OPTIONS.items() if kind in ATTENTION]
Core = MemoryCore[Any]


def build(name: str) -> Core:
    torch.manual_seed(0)
    kind, options = OPTIONS[name]
    if name in WITH_SLOTS:
        options = {"layers": 2} | options
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


WAYS = ("step", "step with a graph", "acting")


def fold(core: Core, inputs: Tensor, state: Any, reset: Tensor, way: str = "step") -> tuple[Tensor, Any]:
    """Take one step after another, by `step` or by acting; return the outputs and the final state."""
    outputs = []
    with torch.set_grad_enabled(way == "step with a graph"):
        acting = core.acting(state)
        for t in range(inputs.shape[1]):
            if way == "acting":
                output = acting.step(inputs[:, t], reset[:, t])
            else:
                output, state = core.step(inputs[:, t], state, reset[:, t])
            outputs.append(output)
        return torch.stack(outputs, dim=1), acting.state() if way == "acting" else state


def assert_same_state(actual: Any, expected: Any) -> None:
    for name, left, right in zip(actual._fields, actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# Law 1: one meaning


@pytest.mark.parametrize("way", WAYS)
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
    torch.testing.assert_close(outputs, core.unroll(inputs, lived_in_state(core), reset).outputs, rtol=1e-4, atol=1e-5)


def test_each_env_is_as_if_alone(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    start = lived_in_state(core)
    together = core.unroll(inputs, start, reset).outputs
    for env in range(BATCH):
        own = type(start)(*(leaf[env : env + 1] for leaf in start))
        alone = core.unroll(inputs[env : env + 1], own, reset[env : env + 1]).outputs
        torch.testing.assert_close(together[env : env + 1], alone, rtol=1e-4, atol=1e-5)


def test_acting_gives_back_the_state_at_any_step(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    state = lived_in_state(core)
    acting = core.acting(state)
    with torch.no_grad():
        for t in range(LENGTH):
            output = acting.step(inputs[:, t], reset[:, t])
            expected, state = core.step(inputs[:, t], state, reset[:, t])
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            assert_same_state(acting.state(), state)
            some = acting.state(np.array([2, 0]))
            assert_same_state(some, type(state)(*(leaf[[2, 0]] for leaf in state)))


def test_acting_leaves_the_state_that_it_began_with_and_those_that_it_gave(
    core: Core, window: tuple[Tensor, Tensor]
) -> None:
    inputs, reset = window
    states = [lived_in_state(core)]
    acting = core.acting(states[0])
    clones = [[leaf.clone() for leaf in states[0]]]
    for t in range(LENGTH):
        acting.step(inputs[:, t], reset[:, t])
        states.append(acting.state())
        clones.append([leaf.clone() for leaf in states[-1]])
    for state, cloned in zip(states, clones, strict=True):
        assert all(torch.equal(leaf, kept) for leaf, kept in zip(state, cloned, strict=True))


def test_acting_keeps_its_state_when_that_which_it_began_with_is_overwritten(
    core: Core, window: tuple[Tensor, Tensor]
) -> None:
    start = lived_in_state(core)
    acting, kept = core.acting(start), core.acting(start)
    kept.step(window[0][:, 0], window[1][:, 1])
    for leaf in start:
        leaf.fill_(3)
    acting.step(window[0][:, 0], window[1][:, 1])
    assert_same_state(acting.state(), kept.state())


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
            torch.testing.assert_close(other.step(inputs[:, t], reset[:, t]), output, rtol=1e-4, atol=1e-5)
    assert_same_state(other.state(), acting.state())


def test_what_acting_returns_can_be_learned_from(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    acting = core.acting(core.initial_state(BATCH))
    weight = torch.ones(core.output_size, requires_grad=True)
    (acting.step(inputs[:, 0], reset[:, 0]) * weight).sum().backward()
    assert weight.grad is not None
    for state in (acting.state(), acting.state(np.array([2, 0, 1]))):
        core.unroll(inputs, state, reset).outputs.sum().backward()


@pytest.mark.parametrize("change", ["written to", "replaced", "loaded", "assigned", "trained", "trained, fused"])
def test_acting_follows_the_weights(core: Core, window: tuple[Tensor, Tensor], change: str) -> None:
    """Keys and values from before the change must be computed again."""
    inputs, reset = window
    acting, state = core.acting(core.initial_state(BATCH)), core.initial_state(BATCH)
    for t in range(LENGTH):
        if t == 15:
            weights = {
                name: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
                for name, value in core.state_dict().items()
            }
            for name, parameter in core.named_parameters():
                if change == "written to":
                    parameter.detach().copy_(weights[name])
                elif change == "replaced":
                    parameter.data = weights[name]
            if change in ("loaded", "assigned"):
                core.load_state_dict(weights, assign=change == "assigned")
            if change.startswith("trained"):
                for parameter in core.parameters():
                    parameter.grad = torch.randn_like(parameter)
                torch.optim.Adam(core.parameters(), lr=0.1, fused="fused" in change).step()
        with torch.no_grad():
            expected, state = core.step(inputs[:, t], state, reset[:, t])
        torch.testing.assert_close(acting.step(inputs[:, t], reset[:, t]), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_take_the_place_of_freed_ones_are_noticed() -> None:
    core = ctrl.make_core("compressive", INPUTS, width=16)
    acting = core.acting(core.initial_state(BATCH))
    weight = core.layers[0].attention.query.weight  # type: ignore[union-attr]
    seen = weight.data_ptr()
    for _ in range(100):  # as a rule the allocator hands out the same memory again
        weight.data = torch.randn(weight.shape)
        assert weight.data_ptr() != seen
    acting.step(torch.randn(BATCH, INPUTS), torch.ones(BATCH, dtype=torch.bool))


# Law 2: reset first


@pytest.mark.parametrize("size", [1.0, 1e9, 1e30])
def test_nothing_before_a_reset_reaches_anything_after_it(
    core: Core, window: tuple[Tensor, Tensor], size: float
) -> None:
    inputs, reset = window
    start = lived_in_state(core)
    outputs = core.unroll(inputs, start, reset).outputs
    other = inputs.clone()
    last = [int(row.nonzero().max()) for row in reset]
    for env, first in enumerate(last):
        other[env, :first] = size * torch.randn(first, INPUTS)
    replaced = core.unroll(other, core.initial_state(BATCH), reset).outputs
    for env, first in enumerate(last):
        assert torch.equal(outputs[env, first:], replaced[env, first:])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_nothing_seen_before_a_reset_is_acted_on_after_it(
    core: Core, window: tuple[Tensor, Tensor], poison: float
) -> None:
    inputs, reset = window
    last = [int(row.nonzero().max()) for row in reset]
    other = inputs.clone()
    for env, first in enumerate(last):
        other[env, :first] = poison
    clean, _ = fold(core, inputs, core.initial_state(BATCH), reset, "acting")
    poisoned, _ = fold(core, other, core.initial_state(BATCH), reset, "acting")
    for env, first in enumerate(last):
        assert torch.equal(clean[env, first:], poisoned[env, first:])


def test_a_state_full_of_nan_is_harmless_at_a_reset(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    reset[:, 0] = True
    clean = core.initial_state(BATCH)
    poisoned = type(clean)(*(torch.full_like(leaf, torch.nan) if leaf.is_floating_point() else leaf for leaf in clean))
    expected = core.unroll(inputs, clean, reset).outputs
    assert torch.equal(core.unroll(inputs, poisoned, reset).outputs, expected)
    for way in WAYS:
        stepped, _ = fold(core, inputs[:, :5], poisoned, reset[:, :5], way)
        assert torch.equal(stepped, fold(core, inputs[:, :5], clean, reset[:, :5], way)[0])
    loss = core.unroll(inputs, poisoned, reset)
    (loss.outputs.sum() + loss.reconstruction_loss).backward()
    assert all(bool(p.grad.isfinite().all()) for p in core.parameters() if p.grad is not None)


# Law 3: no leaks


def test_no_output_sees_the_future(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    start = lived_in_state(core)
    outputs = core.unroll(inputs, start, reset).outputs
    for cut in (1, 8, 20):
        later = inputs.clone()
        later[:, cut:] = 1e9
        assert torch.equal(core.unroll(later, start, reset).outputs[:, :cut], outputs[:, :cut])


def test_no_output_sees_another_env(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    start = lived_in_state(core)
    outputs = core.unroll(inputs, start, reset).outputs
    other = inputs.clone()
    other[1] = 1e9
    changed = core.unroll(other, start, reset).outputs
    assert torch.equal(changed[[0, 2]], outputs[[0, 2]])


@pytest.mark.parametrize("poison", [float("nan"), 1e9])
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
        for way in WAYS:
            assert torch.equal(fold(core, inputs, filled, reset, way)[0], fold(core, inputs, lived, reset, way)[0])
            assert torch.equal(fold(core, inputs, empty, reset, way)[0], fold(core, inputs, clean, reset, way)[0])


# Law 4: state is data


def test_state_is_plain_data_of_a_fixed_shape(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    first = core.initial_state(BATCH)
    unrolled = core.unroll(inputs, first, reset)
    stepped = core.step(inputs[:, 0], first, reset[:, 0])[1]
    for state in (first, unrolled.state, stepped):
        assert isinstance(state, tuple) and hasattr(state, "_fields")
        assert [(leaf.shape, leaf.dtype) for leaf in state] == [(leaf.shape, leaf.dtype) for leaf in first]
        assert all(leaf.shape[0] == BATCH and not leaf.requires_grad for leaf in state)
    again = pickle.loads(pickle.dumps(unrolled.state))
    assert_same_state(again, unrolled.state)
    assert core.state_bytes == sum(leaf.nbytes for leaf in first) // BATCH


def test_nothing_is_hidden_in_the_module(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    start = lived_in_state(core)
    expected = core.unroll(inputs, start, reset).outputs
    core.unroll(inputs.flip(1), core.initial_state(BATCH), reset)  # another stream in between
    core.eval()
    core.step(inputs[:, 0], core.initial_state(BATCH), reset[:, 0])
    assert torch.equal(core.unroll(inputs, start, reset).outputs, expected)


def test_state_does_not_grow_by_step_one_million(window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    reset[:] = False
    for name in WITH_SLOTS:
        core = build(name)
        young = lived_in_state(core)
        old = young._replace(clock=torch.tensor([1_000_000, 999_993, 1_000_017]), slots=torch.randn_like(young.slots))
        unrolled = core.unroll(inputs, old, reset)
        for way in WAYS:
            stepped, state = fold(core, inputs, old, reset, way)
            torch.testing.assert_close(unrolled.outputs, stepped, rtol=1e-4, atol=1e-5)
            assert [leaf.shape for leaf in state] == [leaf.shape for leaf in young]


# Law 5: gradients go where they should


def gradients(core: Core, loss: Tensor) -> dict[str, bool]:
    core.zero_grad()
    loss.backward()
    return {name: p.grad is not None and bool((p.grad != 0).any()) for name, p in core.named_parameters()}


def names_of(core: Core, parameters: list[torch.nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in core.named_parameters() if id(parameter) in wanted}


def test_parameter_groups_are_disjoint_and_complete(core: Core) -> None:
    compression, main = names_of(core, core.compression_parameters()), names_of(core, core.main_parameters())
    assert not compression & main
    assert compression | main == {name for name, _ in core.named_parameters()}
    assert len(core.compression_parameters()) == len(compression) and len(core.main_parameters()) == len(main)


def test_each_loss_reaches_its_own_parameters(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    compression, main = names_of(core, core.compression_parameters()), names_of(core, core.main_parameters())
    reset[1] = False  # long enough for the coarsest tier
    unrolled = core.unroll(inputs, lived_in_state(core), reset)
    projection = torch.randn_like(unrolled.outputs)
    if compression:
        reached = gradients(core, unrolled.reconstruction_loss)
        idle = names_of(core, core.idle_parameters())
        assert {name for name, hit in reached.items() if hit} == compression - idle
    unrolled = core.unroll(inputs, lived_in_state(core), reset)
    reached = gradients(core, (unrolled.outputs * projection).sum())
    # Torch's LSTM and GRU add two bias vectors; all else must be reached.
    assert {name for name, hit in reached.items() if hit} >= main - {name for name in main if "age_bias" in name}
    assert not {name for name, hit in reached.items() if hit} & compression
    assert all(reached[name] for name in main if "age_bias" in name)


def test_training_leaves_requires_grad_as_it_was(core: Core, window: tuple[Tensor, Tensor]) -> None:
    inputs, reset = window
    before = {name: parameter.requires_grad for name, parameter in core.named_parameters()}
    assert all(before.values())
    optimizer = torch.optim.SGD(core.parameters(), lr=0.05)  # moves a gate's bias by more than its rounding
    weights = {name: parameter.detach().clone() for name, parameter in core.named_parameters()}
    state = core.initial_state(BATCH)
    for _ in range(4):
        unrolled = core.unroll(inputs, state, reset)
        optimizer.zero_grad()
        (unrolled.outputs.square().mean() + unrolled.reconstruction_loss).backward()
        optimizer.step()
        state = unrolled.state
    assert {name: parameter.requires_grad for name, parameter in core.named_parameters()} == before
    moved = {name for name, parameter in core.named_parameters() if not torch.equal(weights[name], parameter)}
    assert moved == weights.keys() - names_of(core, core.idle_parameters())


# Bad input


def test_arguments_that_do_not_fit_are_refused_by_name(core: Core) -> None:
    state, reset = core.initial_state(BATCH), torch.zeros(BATCH, dtype=torch.bool)
    inputs = torch.randn(BATCH, INPUTS)
    with pytest.raises(ValueError, match=r"inputs must be .*5.*got \(3, 4\)"):
        core.step(inputs[:, :4], state, reset)
    with pytest.raises(ValueError, match="inputs must be torch.float32.*float64"):
        core.step(inputs.double(), state, reset)
    with pytest.raises(ValueError, match=r"reset must be bool of shape \(3,\).*float32"):
        core.step(inputs, state, reset.float())
    with pytest.raises(ValueError, match=r"reset must be bool of shape \(3, 2\).*\(3,\)"):
        core.unroll(torch.randn(BATCH, 2, INPUTS), state, reset)
    with pytest.raises(ValueError, match=r"state\..*\(3.*\(4"):
        core.step(inputs, core.initial_state(BATCH + 1), reset)
    with pytest.raises(ValueError, match="state must be the .*State.*tuple"):
        core.step(inputs, tuple(state), reset)
    with pytest.raises(ValueError, match="no empty axis"):
        core.unroll(torch.randn(BATCH, 0, INPUTS), state, torch.zeros(BATCH, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match="cpu.*meta"):
        core.step(inputs.to("meta"), state, reset)
    acting = core.acting(state)
    with pytest.raises(ValueError, match=r"inputs must be .*got \(2, 5\)"):
        acting.step(inputs[:2], reset[:2])
    with pytest.raises(ValueError, match="reset must be bool"):
        acting.step(inputs, reset.float())
    with pytest.raises(ValueError, match="state must be the .*State.*tuple"):
        core.acting(tuple(state))


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
