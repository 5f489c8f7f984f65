"""Special properties of the minGRU core; `test_laws.py` tests the laws that every core obeys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ctrl
from ctrl.baselines.mingru import MinGRUCore, MinGRUState, gated_scan

B, T, INPUT, WIDTH, LAYERS = 3, 11, 4, 5, 2
STAGGERED = {0: (0, 4), 1: (), 2: (4, 7, 10)}  # env -> reset times


def make(dtype: torch.dtype = torch.float32, **options: Any) -> MinGRUCore:
    torch.manual_seed(7)
    core = MinGRUCore(INPUT, **{"width": WIDTH, "layers": LAYERS, "chrono_horizon": 16, **options}).to(dtype)
    with torch.no_grad():
        for parameter in core.parameters():  # no bias is 0 and none equal, so that mixed-up gates show
            parameter.add_(0.1 * torch.randn_like(parameter))
    return core


def make_reset(times: dict[int, tuple[int, ...]]) -> Tensor:
    reset = torch.zeros(B, T, dtype=torch.bool)
    for env, steps in times.items():
        reset[env, list(steps)] = True
    return reset


def random_state(core: MinGRUCore) -> MinGRUState:
    return MinGRUState(torch.randn(B, core.layers, core.width, dtype=core.dtype))


def linears(core: MinGRUCore) -> list[nn.Linear]:
    return [linear for linear in core.maps if isinstance(linear, nn.Linear)]


class TestScan:
    def test_by_hand(self) -> None:
        update, candidate = torch.tensor([0.5, 0.25, 0.25, 1.0]), torch.tensor([2.0, 8.0, 4.0, 7.0])
        reset = torch.tensor([False, False, True, False])
        found = gated_scan(update[:, None, None], candidate[:, None, None], torch.tensor([[6.0]]), reset[:, None])
        assert found.flatten().tolist() == [4.0, 5.0, 1.0, 7.0]

    @pytest.mark.parametrize("length", [1, 2, 9])
    def test_gradient_is_that_of_finite_differences(self, length: int) -> None:
        torch.manual_seed(3)
        update = torch.rand(length, B, WIDTH, dtype=torch.float64, requires_grad=True)
        candidate = torch.randn(length, B, WIDTH, dtype=torch.float64, requires_grad=True)
        hidden, reset = torch.randn(B, WIDTH, dtype=torch.float64), torch.rand(length, B) < 0.3
        assert torch.autograd.gradcheck(lambda z, c: gated_scan(z, c, hidden, reset), (update, candidate))

    def test_the_gradient_that_comes_in_stays_as_it_is(self) -> None:
        update, candidate = torch.rand(T, B, WIDTH, requires_grad=True), torch.randn(T, B, WIDTH)
        incoming = torch.randn(T, B, WIDTH)
        kept = incoming.clone()
        gated_scan(update, candidate, torch.randn(B, WIDTH), make_reset(STAGGERED).t()).backward(incoming)
        assert torch.equal(incoming, kept)

    @pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e38])
    def test_a_reset_selects_so_that_nothing_before_it_counts(self, poison: float) -> None:
        torch.manual_seed(4)
        update, candidate, hidden = torch.rand(T, B, WIDTH), torch.randn(T, B, WIDTH), torch.randn(B, WIDTH)
        reset = make_reset({0: (4, 6), 1: (0,), 2: (9,)}).t()
        poisoned = candidate.clone()
        poisoned[:6, 0], poisoned[:9, 2] = poison, -poison
        found = []
        for values, start in ((candidate, hidden), (poisoned, torch.full_like(hidden, poison))):
            leaves = [update.clone().requires_grad_(), values.requires_grad_()]
            outputs = gated_scan(*leaves, start, reset)
            kept = torch.cat([outputs[6:, 0], outputs[:, 1], outputs[9:, 2]])
            gradients = torch.autograd.grad(kept.square().sum(), leaves)
            found.append([kept, *(part for g in gradients for part in (g[6:, 0], g[:, 1], g[9:, 2]))])
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def exact_scan(update: Tensor, candidate: Tensor, hidden: Tensor, reset: Tensor) -> Tensor:
    """Compute the scan by a plain loop in float64."""
    h, outputs = hidden.double(), []
    for t in range(len(update)):
        h = (1 - update[t]) * h.masked_fill(reset[t, :, None], 0.0) + update[t] * candidate[t]
        outputs.append(h)
    return torch.stack(outputs)


class TestLongWindows:
    LENGTH = 2048

    @pytest.mark.parametrize("logit", [-1e30, -100.0, -16.0, -8.0, 0.0, 8.0, 100.0, 1e30])
    def test_are_exact_whatever_the_gate(self, logit: float) -> None:
        """Outputs and gradients in float32 are compared with float64; z goes from 0 over 1e-7 to 1."""
        torch.manual_seed(5)
        update = torch.sigmoid(logit + torch.randn(self.LENGTH, B, WIDTH)).requires_grad_()
        candidate = torch.randn(self.LENGTH, B, WIDTH).requires_grad_()
        hidden, reset = torch.randn(B, WIDTH), torch.rand(self.LENGTH, B) < 1e-3
        weight = torch.randn(self.LENGTH, B, WIDTH) / self.LENGTH**0.5
        outputs = gated_scan(update, candidate, hidden, reset)
        found = torch.autograd.grad((outputs * weight).sum(), (update, candidate))
        doubles = [leaf.detach().double().requires_grad_() for leaf in (update, candidate)]
        exact = exact_scan(*doubles, hidden, reset)
        torch.testing.assert_close(outputs, exact.float(), atol=1e-5, rtol=1e-5)
        for mine, expected in zip(found, torch.autograd.grad((exact * weight).sum(), doubles), strict=True):
            torch.testing.assert_close(mine, expected.float(), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("bias", [-12.0, -5.0, 12.0])
    def test_mean_the_same_as_steps(self, bias: float) -> None:
        core = make()
        with torch.no_grad():
            for linear in linears(core):
                linear.bias[:WIDTH] = bias
        inputs, reset = torch.randn(B, self.LENGTH, INPUT), torch.rand(B, self.LENGTH) < 1e-3
        state = random_state(core)
        with torch.no_grad():
            unrolled = core.unroll(inputs, state, reset)
            for t in range(self.LENGTH):
                output, state = core.step(inputs[:, t], state, reset[:, t])
                torch.testing.assert_close(output, unrolled.outputs[:, t], atol=1e-5, rtol=0)
        torch.testing.assert_close(state, unrolled.state, atol=1e-5, rtol=0)

    def test_a_shut_gate_keeps_exactly_and_an_open_one_replaces(self) -> None:
        update = torch.tensor([0.0, 1.0]).expand(self.LENGTH, B, 2)
        candidate, hidden = torch.randn(self.LENGTH, B, 2), torch.randn(B, 2)
        outputs = gated_scan(update, candidate, hidden, torch.zeros(self.LENGTH, B, dtype=torch.bool))
        assert torch.equal(outputs[-1, :, 0], hidden[:, 0])
        assert torch.equal(outputs[..., 1], candidate[..., 1])


class TestState:
    def test_shapes_names_and_size(self) -> None:
        core = ctrl.make_core("mingru", INPUT, width=WIDTH, layers=LAYERS)
        state = core.initial_state(B)
        assert type(core) is MinGRUCore and type(state) is MinGRUState and core.state_fields == ("hidden",)
        assert state.hidden.shape == (B, LAYERS, WIDTH) and not state.hidden.any()
        assert (core.output_size, core.state_bytes) == (WIDTH, LAYERS * WIDTH * 4)
        assert sum(parameter.numel() for parameter in core.parameters()) == 2 * WIDTH * (INPUT + 1 + WIDTH + 1)


class TestChrono:
    @pytest.mark.parametrize("horizon", [3, 20, 1000])
    def test_time_constants_are_uniform_over_the_horizon(self, horizon: int) -> None:
        torch.manual_seed(3)
        width = 2000
        core = MinGRUCore(1, width=width, layers=2, chrono_horizon=horizon)
        spans = [1 / torch.sigmoid(linear.bias[:width].detach()).sort(descending=True).values for linear in core.maps]  # type: ignore[index,union-attr]
        for span in spans:
            assert span[0] >= 2 - 1e-5 and span[-1] <= horizon * (1 + 1e-5)
            assert (span - torch.linspace(2, horizon, width)).abs().max() < 0.05 * (horizon - 2)
        assert not torch.equal(*spans)

    @pytest.mark.parametrize("horizon", [None, 128])
    def test_touches_biases_only_and_nothing_when_off(self, horizon: int | None) -> None:
        torch.manual_seed(5)
        core = MinGRUCore(INPUT, width=WIDTH, layers=1, chrono_horizon=horizon)
        torch.manual_seed(5)
        plain, (linear,) = nn.Linear(INPUT, 2 * WIDTH), linears(core)
        assert torch.equal(linear.weight, plain.weight)
        assert torch.equal(linear.bias, plain.bias) == (horizon is None)
        assert linear.bias[WIDTH:].any() == (horizon is None)


class TestBadArguments:
    def test_an_option_that_it_does_not_have(self) -> None:
        with pytest.raises(ValueError, match=r"core 'mingru' does not take heads; its options are width, layers"):
            ctrl.make_core("mingru", INPUT, heads=2)

    def test_a_state_of_another_core(self) -> None:
        state = ctrl.make_core("gru", INPUT, width=WIDTH).initial_state(B)
        with pytest.raises(ValueError, match="MinGRUState of MinGRUCore, got GRUState"):
            MinGRUCore(INPUT, width=WIDTH).step(torch.zeros(B, INPUT), state, torch.zeros(B, dtype=torch.bool))
