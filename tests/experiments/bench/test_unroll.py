from __future__ import annotations

import builtins
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from ctrl.experiments.bench import unroll as bench
from ctrl.experiments.bench.unroll import (
    MODELS,
    Options,
    Shape,
    build,
    flops_per_token,
    forward_multiply_adds,
    heads_of,
    memory_of,
    models_of,
    peak_turn,
    shapes,
    share_of_peak,
)
from ctrl.experiments.errors import UserError


def test_batches_have_equal_tokens_or_one_window() -> None:
    found = shapes(Options(lengths=(32, 48, 8192), widths=(64, 256)))
    assert [(shape.width, shape.length, shape.batch_size) for shape in found] == [
        *((64, 32, 128), (64, 48, 85), (64, 8192, 1)),
        *((256, 32, 128), (256, 48, 85), (256, 8192, 1)),
    ]
    assert found[1].tokens == 48 * 85


def test_heads_grow_with_the_width() -> None:
    assert [heads_of(width) for width in (32, 64, 128, 512)] == [4, 4, 8, 8]


def test_memory_is_what_the_package_asks_for() -> None:
    assert memory_of("compressive", 2048) == (32, 32)
    assert memory_of("package", 8) == memory_of("compressive_long", 8) == (32, 32)
    assert memory_of("package", 512) == memory_of("compressive_long", 512) == (512, 128)
    assert memory_of("lstm", 512) is None


def test_what_is_the_same_is_measured_once() -> None:
    assert models_of(MODELS, 32) == ["compressive", "lstm", "package"]
    assert models_of(MODELS, 128) == list(MODELS)
    assert models_of(("compressive_long",), 32) == ["compressive_long"]


def test_multiply_adds_of_an_lstm() -> None:
    assert forward_multiply_adds("lstm", Shape(10, 7, 1)) == 2 * 8 * 100
    assert flops_per_token("lstm", Shape(10, 7, 1)) == 3 * 2 * 1600
    assert flops_per_token("package", Shape(8, 32, 1)) is None


def test_multiply_adds_of_the_compressive_core_by_hand() -> None:
    # D = 8, T = 64, S = 64 + 32, m = 4, Q = 32: per layer 20 D² + 3 D² + D² + 1 D², attention, reconstruction.
    dense = (20 + 2 * 96 / 64 + 1 + 2 / 4 + 2 / 4) * 64
    attention = 2 * 96 * 8 + 2 * 32 * 8 + 2 * 8 * 8
    assert forward_multiply_adds("compressive_long", Shape(8, 64, 2)) == 64 + 2 * (dense + attention)


def test_multiply_adds_are_near_what_torch_counts() -> None:
    """Torch counts the matrix products that are really computed, slightly more than the necessary ones."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(64, 128, 2)
    work, _ = build("compressive", shape)
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    stated = (flops_per_token("compressive", shape) or 0) * shape.tokens
    assert 0.7 < counter.get_total_flops() / stated < 1.7


@pytest.mark.parametrize("model", ["compressive", "compressive_long", "lstm", "package"])
def test_models_are_unrolled_and_learn(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call gives every parameter a gradient, except those that the package freezes by itself."""
    if model == "package":
        pytest.importorskip("compressive_transformer_pytorch")
    built: list[nn.Module] = []
    real = bench._trainer
    monkeypatch.setattr(bench, "_trainer", lambda module, loss: built.append(module) or real(module, loss))
    work, parameters = build(model, Shape(16, 40, 2))
    (module,) = built
    assert parameters == sum(parameter.numel() for parameter in module.parameters())
    for _ in range(2):
        work()
        without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
        assert all("to_kv" in name for name in without) and (model == "package" or not without)


@pytest.mark.parametrize("model", MODELS)
def test_models_do_equal_work(model: str) -> None:
    """Each layer of each model maps all tokens of a batch exactly once in a call."""
    if model == "package":
        pytest.importorskip("compressive_transformer_pytorch")
    seen: list[int] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, _, outputs: seen.extend(rows(module, outputs)))
    work, _ = build(model, Shape(16, 40, 3))
    work()
    hook.remove()
    assert seen == [120] * (1 if model == "lstm" else 2)


def rows(module: nn.Module, outputs: Any) -> list[int]:
    """Return the number of tokens in a whole layer's outputs; torch's LSTM is one module for all layers."""
    names = {"GatedLayer": outputs, "LSTM": outputs, "FeedForward": (outputs,)}
    return [names[type(module).__name__][0][..., 0].numel()] if type(module).__name__ in names else []


def test_a_turn_counts_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "calls_per_second", lambda work, seconds: 4.0)
    assert bench.turn(lambda: None, tokens=10) == {"tokens_per_second": 40.0}


def test_the_peak_is_a_products_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert peak_turn(10)() == {"flops_per_second": 2 * 1000 / 0.5}


def test_the_share_is_taken_within_a_turn() -> None:
    turns = [{"tokens_per_second": speed} for speed in (100.0, 50.0)]
    peak = {"turns": [{"flops_per_second": flops} for flops in (1.92e6, 0.96e6)]}
    row = {"model": "lstm", "width": 10, "length": 40, "batch_size": 2, "turns": turns}
    assert share_of_peak(row, peak) == pytest.approx(9600 * 100 / 1.92e6)
    assert share_of_peak({**row, "model": "package"}, peak) is None


def test_without_the_package_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("compressive_transformer_pytorch"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(bench, "peak_turn", lambda size: pytest.fail("measured before it was checked"))
    with pytest.raises(UserError, match=r'pip install "ctrl-memory\[bench\]"'):
        bench.run(Options(), Console(quiet=True))


def test_the_report_has_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(bench, "PEAK_SIZE", 16)
    options = Options(lengths=(4, 8), widths=(8,), models=("compressive", "lstm"), tokens=16, repeats=2)
    report = bench.run(options, Console(quiet=True))
    found = [(each["model"], each["length"], each["batch_size"]) for each in report["models"]]
    assert found == [(model, length, 16 // length) for length in (4, 8) for model in ("compressive", "lstm")]
    assert [each["memory"] for each in report["models"]] == ["32,32x4", ""] * 2
    assert [each["ratio_to_lstm"] == 1.0 for each in report["models"]] == [False, True] * 2
    assert all(len(each["turns"]) == 2 and each["share_of_peak"] > 0 for each in report["models"])
    assert len(report["peak_flops_per_second"]["turns"]) == 4
