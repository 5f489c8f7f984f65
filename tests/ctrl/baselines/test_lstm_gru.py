"""Tests of the LSTM and GRU cores' own features, and of what minGRU shares with them; `test_laws.py` holds the laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctrl.baselines.lstm_gru import GRUCore, GRUState, LSTMCore, LSTMState
from ctrl.baselines.mingru import MinGRUCore, MinGRUState
from ctrl.core import State

Core = LSTMCore | GRUCore | MinGRUCore
STATES = {LSTMCore: LSTMState, GRUCore: GRUState, MinGRUCore: MinGRUState}
B, T, INPUT, WIDTH, LAYERS = 3, 11, 4, 5, 2
STAGGERED = {0: (0, 4), 1: (), 2: (4, 7, 10)}  # env -> reset times; distinct ones after 0: 4, 7, 10

both = pytest.mark.parametrize("core_class", [LSTMCore, GRUCore])
every = pytest.mark.parametrize("core_class", STATES)


def make(core_class: type[Core], dtype: torch.dtype = torch.float32, **options: Any) -> Core:
    torch.manual_seed(7)
    core = core_class(INPUT, **{"width": WIDTH, "layers": LAYERS, "chrono_horizon": 16, **options}).to(dtype)
    with torch.no_grad():
        for parameter in core.parameters():  # no bias is 0 and no two are equal, so that mixed-up gates show
            parameter.add_(0.1 * torch.randn_like(parameter))
    return core


def make_reset(times: dict[int, tuple[int, ...]]) -> Tensor:
    reset = torch.zeros(B, T, dtype=torch.bool)
    for env, steps in times.items():
        reset[env, list(steps)] = True
    return reset


def random_state(core: Core) -> Any:
    return core.make_state(torch.rand_like(leaf) - 0.5 for leaf in core.initial_state(B))


def random_inputs(core: Core) -> Tensor:
    return torch.randn(B, T, INPUT, dtype=core.dtype)


def fold(core: Core, inputs: Tensor, state: Any, reset: Tensor) -> tuple[Tensor, Any]:
    outputs = []
    for t in range(inputs.shape[1]):
        output, state = core.step(inputs[:, t], state, reset[:, t])
        outputs.append(output)
    return torch.stack(outputs, dim=1), state


# The slow reference: one env and one step at a time, with the gates written out as in torch's documentation.


def lstm_formula(x: Tensor, leaves: list[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    h, c = leaves
    w, u, b, d = (weights[name].chunk(4) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    i, f, o = (torch.sigmoid(w[k] @ x + b[k] + u[k] @ h + d[k]) for k in (0, 1, 3))
    c = f * c + i * torch.tanh(w[2] @ x + b[2] + u[2] @ h + d[2])
    return [o * torch.tanh(c), c]


def gru_formula(x: Tensor, leaves: list[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    (h,) = leaves
    w, u, b, d = (weights[name].chunk(3) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    r, z = (torch.sigmoid(w[k] @ x + b[k] + u[k] @ h + d[k]) for k in (0, 1))
    n = torch.tanh(w[2] @ x + b[2] + r * (u[2] @ h + d[2]))
    return [(1 - z) * n + z * h]


def mingru_formula(x: Tensor, leaves: list[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    """Compute the equations of the paper's section 3.1."""
    (w_z, w_h), (b_z, b_h) = weights["weight"].chunk(2), weights["bias"].chunk(2)
    z = torch.sigmoid(w_z @ x + b_z)
    return [(1 - z) * leaves[0] + z * (w_h @ x + b_h)]


FORMULAS = {LSTMCore: lstm_formula, GRUCore: gru_formula, MinGRUCore: mingru_formula}


def weights_by_layer(core: Core) -> list[dict[str, Tensor]]:
    if isinstance(core, MinGRUCore):
        return [dict(linear.named_parameters()) for linear in core.maps]
    named = dict(core.rnn.named_parameters())
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [{kind: named[f"{kind}_l{layer}"] for kind in kinds} for layer in range(core.layers)]


def reference(core: Core, inputs: Tensor, state: State, reset: Tensor) -> tuple[Tensor, list[Tensor]]:
    formula, weights = FORMULAS[type(core)], weights_by_layer(core)
    outputs, finals = [], []
    for env in range(inputs.shape[0]):
        memory = [[leaf[env, layer] for leaf in state] for layer in range(core.layers)]
        for t in range(inputs.shape[1]):
            if reset[env, t]:
                memory = [[torch.zeros_like(leaf) for leaf in leaves] for leaves in memory]
            x = inputs[env, t]
            for layer in range(core.layers):
                memory[layer] = formula(x, memory[layer], weights[layer])
                x = memory[layer][0]
            outputs.append(x)
        finals.append([torch.stack(leaf) for leaf in zip(*memory, strict=True)])
    shaped = torch.stack(outputs).view(*inputs.shape[:2], core.output_size)
    return shaped, [torch.stack(leaf) for leaf in zip(*finals, strict=True)]


class TestReference:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
    @pytest.mark.parametrize("times", [{}, STAGGERED, {1: tuple(range(T))}])
    @every
    def test_unroll(
        self, core_class: type[Core], times: dict[int, tuple[int, ...]], dtype: torch.dtype, tolerance: float
    ) -> None:
        core = make(core_class, dtype)
        inputs, state, reset = random_inputs(core), random_state(core), make_reset(times)
        outputs, leaves = reference(core, inputs, state, reset)
        unrolled = core.unroll(inputs, state, reset)
        torch.testing.assert_close(unrolled.outputs, outputs, atol=tolerance, rtol=0)
        for leaf, expected in zip(unrolled.state, leaves, strict=True):
            torch.testing.assert_close(leaf, expected, atol=tolerance, rtol=0)
            assert leaf.is_contiguous()

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
    @every
    def test_gradients(self, core_class: type[Core], dtype: torch.dtype, tolerance: float) -> None:
        core = make(core_class, dtype)
        inputs, state, reset = random_inputs(core).requires_grad_(), random_state(core), make_reset(STAGGERED)
        weight = torch.randn(B, T, WIDTH, dtype=dtype)
        wrt = [inputs, *core.parameters()]
        slow = torch.autograd.grad((reference(core, inputs, state, reset)[0] * weight).sum(), wrt)
        fast = torch.autograd.grad((core.unroll(inputs, state, reset).outputs * weight).sum(), wrt)
        for name, mine, expected in zip(["inputs", *dict(core.named_parameters())], fast, slow, strict=True):
            assert expected.abs().max() > 1e-3, name
            torch.testing.assert_close(mine, expected, atol=tolerance, rtol=0, msg=name)

    @pytest.mark.parametrize("learning", [True, False])  # torch has other kernels where no gradient is needed
    @every
    def test_step_equals_unroll(self, core_class: type[Core], learning: bool) -> None:
        core = make(core_class)
        inputs, state, reset = random_inputs(core), random_state(core), make_reset(STAGGERED)
        with torch.set_grad_enabled(learning):
            outputs, final = fold(core, inputs, state, reset)
            unrolled = core.unroll(inputs, state, reset)
        torch.testing.assert_close(unrolled.outputs, outputs, atol=1e-6, rtol=0)
        for mine, expected in zip(unrolled.state, final, strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)


class TestResetsInside:
    @pytest.mark.parametrize(
        ("times", "longer"),
        [
            ({}, 0),
            ({0: (0,), 1: (0,), 2: (0,)}, 0),  # the window's first step costs nothing
            ({1: (5,)}, 1),
            ({0: (5,), 2: (7,)}, 1),  # one reset in each of two envs
            (STAGGERED, 3),
            ({0: (T - 1,)}, 1),
            ({0: tuple(range(T))}, T - 1),
        ],
    )
    @both
    def test_a_window_is_one_fused_call_per_layer_longer_by_the_most_resets(
        self, core_class: type[Core], times: dict[int, tuple[int, ...]], longer: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        core = make(core_class)
        lengths: list[int] = []
        fused = core._fused
        monkeypatch.setattr(
            core, "_fused", lambda inputs, *rest: (lengths.append(inputs.shape[1]), fused(inputs, *rest))[1]
        )
        core.unroll(random_inputs(core), core.initial_state(B), make_reset(times))
        assert lengths == [T + longer] * LAYERS

    @pytest.mark.parametrize("size", [0.0, 1.0, 1e20])
    @every
    def test_the_memory_is_exactly_empty_at_a_reset(self, core_class: type[Core], size: float) -> None:
        core = make(core_class)
        inputs, reset = random_inputs(core), make_reset(dict.fromkeys(range(B), (6,)))
        before = inputs.clone()
        before[:, :6] = size * torch.randn(B, 6, INPUT)
        expected = core.unroll(inputs[:, 6:], core.initial_state(B), reset[:, 6:])
        found = core.unroll(before, random_state(core), reset)
        torch.testing.assert_close(found.outputs[:, 6:], expected.outputs, atol=1e-6, rtol=0)
        for leaf, fresh in zip(found.state, expected.state, strict=True):
            torch.testing.assert_close(leaf, fresh, atol=1e-6, rtol=0)

    @every
    def test_an_env_that_does_not_reset_is_not_disturbed(self, core_class: type[Core]) -> None:
        core = make(core_class, torch.float64)
        inputs, state = random_inputs(core), random_state(core)
        alone = core.unroll(inputs, state, make_reset({})).outputs
        beside = core.unroll(inputs, state, make_reset(STAGGERED)).outputs
        torch.testing.assert_close(beside[1], alone[1], atol=1e-14, rtol=0)
        assert (beside[0] - alone[0]).abs().max() > 1e-3

    @every
    def test_gradients_stop_at_a_reset_and_only_there(self, core_class: type[Core]) -> None:
        core = make(core_class)
        inputs = random_inputs(core).requires_grad_()
        outputs = core.unroll(inputs, random_state(core), make_reset({0: (6,), 2: (3,)})).outputs
        (gradient,) = torch.autograd.grad(outputs[:, 8].sum(), inputs)
        reached = gradient.abs().amax(dim=2) > 0  # [B, T]
        assert reached.tolist() == [[start <= t <= 8 for t in range(T)] for start in (6, 0, 3)]


class TestReset:
    @pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e9])
    @every
    def test_a_poisoned_state_is_harmless(self, core_class: type[Core], poison: float) -> None:
        core = make(core_class)
        inputs, clean = random_inputs(core), random_state(core)
        reset = make_reset({0: (0,), 2: (0, 5)})
        stored = core.make_state(leaf.clone() for leaf in clean)
        for leaf in stored:
            leaf[[0, 2]] = poison
        expected, unrolled = core.unroll(inputs, clean, reset), core.unroll(inputs, stored, reset)
        assert torch.equal(unrolled.outputs, expected.outputs)
        assert all(torch.equal(mine, leaf) for mine, leaf in zip(unrolled.state, expected.state, strict=True))
        assert torch.equal(
            core.step(inputs[:, 0], stored, reset[:, 0])[0], core.step(inputs[:, 0], clean, reset[:, 0])[0]
        )

        gradients = torch.autograd.grad(unrolled.outputs.sum(), list(core.parameters()))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)

    @pytest.mark.parametrize("scale", [1.0, 1e4, 1e9])
    @every
    def test_nothing_before_a_reset_reaches_what_follows(self, core_class: type[Core], scale: float) -> None:
        core = make(core_class)
        inputs, state, reset = random_inputs(core), random_state(core), make_reset({0: (6,), 2: (3,)})
        other = inputs.clone()
        other[0, :6], other[2, :3] = scale * torch.randn(6, INPUT), scale * torch.randn(3, INPUT)
        replaced = core.make_state(leaf.clone() for leaf in state)
        for leaf in replaced:
            leaf[[0, 2]] = scale * torch.randn(2, LAYERS, WIDTH)
        mine, theirs = core.unroll(inputs, state, reset), core.unroll(other, replaced, reset)
        for env, start in ((0, 6), (1, 0), (2, 3)):
            assert torch.equal(mine.outputs[env, start:], theirs.outputs[env, start:])
            assert not start or not torch.equal(mine.outputs[env, :start], theirs.outputs[env, :start])
        assert all(torch.equal(left, right) for left, right in zip(mine.state, theirs.state, strict=True))


class TestState:
    @every
    def test_shapes_names_and_size(self, core_class: type[Core]) -> None:
        core = core_class(INPUT, width=WIDTH, layers=LAYERS)
        state = core.initial_state(B)
        assert type(state) is STATES[core_class]
        assert all(leaf.shape == (B, LAYERS, WIDTH) and not leaf.any() for leaf in state)
        assert core.output_size == WIDTH
        assert core.state_bytes == len(state) * LAYERS * WIDTH * 4

    @every
    def test_carries_no_graph_while_outputs_do(self, core_class: type[Core]) -> None:
        core = make(core_class)
        inputs, reset = random_inputs(core).requires_grad_(), make_reset(STAGGERED)
        unrolled = core.unroll(inputs, core.initial_state(B), reset)
        outputs, state = core.step(inputs[:, 0], core.initial_state(B), reset[:, 0])
        assert unrolled.outputs.requires_grad and outputs.requires_grad
        assert not any(leaf.requires_grad for leaf in (*unrolled.state, *state))

    @pytest.mark.parametrize("layers", [1, 3])
    @every
    def test_is_not_overwritten_through_the_outputs_or_another_leaf(self, core_class: type[Core], layers: int) -> None:
        core = make(core_class, layers=layers)
        with torch.no_grad():
            unrolled = core.unroll(random_inputs(core), core.initial_state(B), make_reset({}))
            outputs, state = core.step(random_inputs(core)[:, 0], core.initial_state(B), make_reset({})[:, 0])
        tensors = [unrolled.outputs, *unrolled.state, outputs, *state, *core.initial_state(B)]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)

    @every
    def test_main_parameters_are_all(self, core_class: type[Core]) -> None:
        core = make(core_class)
        assert core.compression_parameters() == []
        assert [id(p) for p in core.main_parameters()] == [id(p) for p in core.parameters()]
        assert core.unroll(random_inputs(core), core.initial_state(B), make_reset({})).reconstruction_loss == 0


def biases(core: Core) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Return each layer's `bias_ih` by gate, and its `bias_hh`."""
    gates = 4 if isinstance(core, LSTMCore) else 3
    return [(weights[2].detach().chunk(gates), weights[3].detach()) for weights in core.rnn.all_weights]


class TestChrono:
    @pytest.mark.parametrize("horizon", [3, 20, 1000])
    @both
    def test_keep_biases_are_log_uniform_over_the_horizon(self, core_class: type[Core], horizon: int) -> None:
        torch.manual_seed(3)
        width = 2000
        core = core_class(1, width=width, layers=2, chrono_horizon=horizon)
        for gates, _ in biases(core):
            spans = gates[1].exp().sort().values  # uniform in [1, horizon - 1]
            assert spans[0] >= 1 - 1e-5 and spans[-1] <= (horizon - 1) * (1 + 1e-5)
            expected = torch.linspace(1, horizon - 1, width)
            assert (spans - expected).abs().max() < 0.05 * (horizon - 2)  # Kolmogorov-Smirnov: 0.05 is p < 1e-4

    @both
    def test_layers_and_units_differ(self, core_class: type[Core]) -> None:
        first, second = (gates[1] for gates, _ in biases(core_class(1, width=64, layers=2)))
        assert len(set(first.tolist())) > 60 and not torch.equal(first, second)

    @pytest.mark.parametrize("layers", [1, 3])
    def test_other_lstm_biases(self, layers: int) -> None:
        for (input_gate, forget, candidate, output), bias_hh in biases(LSTMCore(INPUT, width=WIDTH, layers=layers)):
            assert torch.equal(input_gate, -forget)
            assert not candidate.any() and not output.any() and not bias_hh.any()

    @pytest.mark.parametrize("layers", [1, 3])
    def test_other_gru_biases(self, layers: int) -> None:
        for (reset_gate, _, candidate), bias_hh in biases(GRUCore(INPUT, width=WIDTH, layers=layers)):
            assert not reset_gate.any() and not candidate.any() and not bias_hh.any()

    @pytest.mark.parametrize("horizon", [None, 128])
    @both
    def test_touches_biases_only_and_nothing_when_off(self, core_class: type[Core], horizon: int | None) -> None:
        torch.manual_seed(5)
        core = core_class(INPUT, width=WIDTH, layers=LAYERS, chrono_horizon=horizon)
        torch.manual_seed(5)
        rnn_class = nn.LSTM if core_class is LSTMCore else nn.GRU
        plain = dict(rnn_class(INPUT, WIDTH, LAYERS).named_parameters())
        for name, parameter in core.rnn.named_parameters():
            assert torch.equal(parameter, plain[name]) == (horizon is None or "weight" in name), name

    @every
    def test_is_on_by_default(self, core_class: type[Core]) -> None:
        torch.manual_seed(1)
        default = core_class(INPUT).state_dict()
        torch.manual_seed(1)
        stated = core_class(INPUT, chrono_horizon=128).state_dict()
        assert all(torch.equal(default[name], stated[name]) for name in stated)

    @both
    def test_at_horizon_2_a_memory_halves_each_step(self, core_class: type[Core]) -> None:
        core = core_class(INPUT, width=WIDTH, chrono_horizon=2)
        with torch.no_grad():
            for weight in core.rnn.all_weights[0][:2]:
                weight.zero_()
            ones = core.make_state(torch.ones_like(leaf) for leaf in core.initial_state(B))
            state = core.unroll(torch.zeros(B, 4, INPUT), ones, torch.zeros(B, 4, dtype=torch.bool)).state
        torch.testing.assert_close(state[-1], torch.full((B, 1, WIDTH), 0.5**4))  # LSTM: cell; GRU: hidden

    @every
    def test_remembers_over_the_horizon(self, core_class: type[Core]) -> None:
        """Two states must still differ after the same noise for the length of the horizon."""
        horizon = 60

        def kept(chrono_horizon: int | None) -> float:
            torch.manual_seed(2)
            core = core_class(INPUT, width=64, chrono_horizon=chrono_horizon)
            noise, reset = torch.randn(B, horizon, INPUT), torch.zeros(B, horizon, dtype=torch.bool)
            zeros = core.initial_state(B)
            ones = core.make_state(torch.ones_like(leaf) for leaf in zeros)
            with torch.no_grad():
                left, right = (core.unroll(noise, state, reset).state[-1] for state in (ones, zeros))
            return float((left - right).abs().mean())

        assert kept(horizon) > 0.05
        assert kept(None) < 0.001


class TestBadArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input_size": 0}, "input_size .* got 0"),
            ({"width": 0}, "width .* got 0"),
            ({"width": 2.5}, "width .* got 2.5"),
            ({"layers": -1}, "layers .* got -1"),
            ({"layers": True}, "layers .* got True"),
            ({"chrono_horizon": 1}, "chrono_horizon .* at least 2, got 1"),
            ({"chrono_horizon": 64.0}, "chrono_horizon .* got 64.0"),
            ({"chrono_horizon": True}, "chrono_horizon .* got True"),
        ],
    )
    @every
    def test_are_named_with_their_value(self, core_class: type[Core], options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            core_class(**{"input_size": INPUT, **options})

    def test_a_state_of_the_other_core(self) -> None:
        lstm, gru = LSTMCore(INPUT), GRUCore(INPUT)
        with pytest.raises(ValueError, match="LSTMState of LSTMCore, got GRUState"):
            lstm.step(torch.zeros(B, INPUT), gru.initial_state(B), torch.zeros(B, dtype=torch.bool))  # type: ignore[arg-type]
