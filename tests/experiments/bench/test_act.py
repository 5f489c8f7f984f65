from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.console import Console

from ctrl import Tier
from ctrl.experiments.bench import act as bench
from ctrl.experiments.bench.act import CORES, REFERENCE, models, predict_turn, predictors, step_turn, stepper
from ctrl.experiments.bench.subjects.cores import WARM_UP, parameters_of


def test_models_are_what_the_page_says_and_have_equal_parameters() -> None:
    built: Any = models()
    assert built["compressive"].tiers == [(Tier(32, compressor="conv"), Tier(32, 4, "conv"))] * 2
    counts = {name: parameters_of(model) for name, model in built.items()}
    assert set(counts) == {"compressive", "lstm", REFERENCE}
    assert all(number == pytest.approx(counts["compressive"], rel=0.1) for number in counts.values())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_models_do_equal_work(batch_size: int) -> None:
    """Each step of each model consumes one observation of every env, without a graph."""
    built = models()
    read: list[torch.Tensor] = []
    built[REFERENCE].register_forward_hook(lambda _, inputs, outputs: read.append(outputs[0][0]))
    for name, model in built.items():
        step = stepper(model, batch_size)
        results: Any = [step() for _ in range(3)]
        for outputs in read if name == REFERENCE else results:
            assert outputs.shape == (batch_size, getattr(model, "output_size", outputs.shape[1]))
            assert not outputs.requires_grad
    assert len(read) == 3


def test_lstms_compute_the_same() -> None:
    """With the same weights and inputs, the timed code of both computes the same sequence of states."""
    built = models()
    reference: Any = built[REFERENCE]
    core: Any = built["lstm"]
    core.rnn.load_state_dict(reference.state_dict())
    expected, _ = reference(torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0)).expand(3, 2, 64))
    step = stepper(core, 2)
    assert torch.allclose(torch.stack([step() for _ in range(3)]), expected, atol=1e-6)  # type: ignore[misc]


def test_a_turn_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    made, steps = [], []
    monkeypatch.setattr(bench, "stepper", lambda model, size: made.append(size) or (lambda: steps.append(size)))
    for _ in range(2):
        step_turn(torch.nn.LSTM(2, 3), 5, 6)
    assert made == [5, 5] and len(steps) == 2 * (WARM_UP + 6)


def test_overhead_is_taken_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def taking(seconds: float) -> Any:
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    turn = predict_turn(taking(3.0), taking(1.0), 4)
    assert turn == {"predict_seconds": 3.0, "core_step_seconds": 1.0, "overhead_seconds": 2.0}


@pytest.mark.parametrize("core", CORES)
def test_predict_and_core_start_from_the_same_state(core: str) -> None:
    predict, core_step = predictors(core)
    action, state = predict()  # type: ignore[misc]
    outputs, after = core_step()  # type: ignore[misc]
    assert action.shape == (1,) and not outputs.requires_grad
    assert len(state) == len(after) + 2
    if core == "compressive":
        assert state[0] == after.clock.numpy() > 160


def test_the_report_has_every_batch_size() -> None:
    report = bench.run(bench.Options(batch_sizes=(1, 3), steps=2, repeats=2), Console(quiet=True))
    measured = {(each["model"], each["batch_size"]): each for each in report["steps"]}
    assert set(measured) == {(model, size) for size in (1, 3) for model in ("compressive", "lstm", REFERENCE)}
    assert all(len(each["turns"]) == 2 and each["seconds_per_step"]["range"][0] > 0 for each in measured.values())
    assert [measured[REFERENCE, size]["ratio"] for size in (1, 3)] == [1.0, 1.0]
    assert [each["core"] for each in report["predict"]] == list(CORES)
    assert report["reference"] == REFERENCE
