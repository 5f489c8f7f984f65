from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from rich.console import Console

from ctrl import Tier
from ctrl.experiments.bench import act as bench
from ctrl.experiments.bench.act import REFERENCE, WARM_UP, Prediction, measured, models, predictors, run_turn, stepper
from ctrl.experiments.bench.config import BenchAct
from ctrl.experiments.bench.turns import count


def test_models_have_equal_parameters() -> None:
    counts = {name: count(model) for name, model in models().items()}
    assert set(counts) == {"compressive", "lstm", REFERENCE}
    assert all(number == pytest.approx(counts["compressive"], rel=0.1) for number in counts.values())


def test_the_compressive_model_is_what_the_page_says() -> None:
    core: Any = models()["compressive"]
    assert core.tiers == [(Tier(32, compressor="conv"), Tier(32, 4, "conv"))] * 2


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


def test_a_turn_starts_afresh_and_leaves_its_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made, steps = [0.0], [], [0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def step() -> None:
        steps[0] += 1
        clock[0] += 1.0 if steps[0] <= WARM_UP else 0.5

    def make() -> Any:
        made.append(True)
        return step

    assert run_turn(make, 6) == 0.5
    assert len(made) == 1 and steps == [WARM_UP + 6]


def test_ratios_are_of_time_to_torchs_lstm() -> None:
    turns = {"compressive": [4.0, 8.0], REFERENCE: [2.0, 4.0]}
    core, reference = measured({"compressive": 10, REFERENCE: 11}, 16, turns)
    assert (core.ratio, reference.ratio) == (2.0, 1.0)
    data = core.to_json()
    assert data["seconds_per_step"] == {"median": 6.0, "range": [4.0, 8.0]}
    assert (data["seconds"], data["batch_size"], data["parameters"]) == ([4.0, 8.0], 16, 10)


def test_overhead_is_taken_within_a_turn() -> None:
    prediction = Prediction("lstm", predict=[3.0, 10.0, 4.0], core_step=[1.0, 9.0, 1.0])
    assert prediction.overhead == 2.0
    assert prediction.to_json()["overhead_seconds"] == 2.0


@pytest.mark.parametrize("core", bench.CORES)
def test_predict_and_core_start_from_the_same_state(core: str) -> None:
    made = {name: make() for name, make in predictors(core).items()}
    action, state = made["predict"]()  # type: ignore[misc]
    outputs, after = made["core.step"]()  # type: ignore[misc]
    assert action.shape == (1,) and not outputs.requires_grad
    assert len(state) == len(after) + 2
    if core == "compressive":
        assert state[0] == after.clock.numpy() > 160


def test_tables_say_what_they_refer_to() -> None:
    turns = {"compressive": [0.0123, 0.0123], "lstm": [0.001, 0.003], REFERENCE: [0.002, 0.002]}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(bench.steps_table(measured(dict.fromkeys(turns, 203_664), 256, turns), threads=1))
        console.print(bench.predictions_table([Prediction("lstm", [0.004], [0.001])], threads=1))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert ["compressive", "256", "203,664", "12.3", "12.3–12.3", "20,813", "6.15"] in rows
    assert ["lstm", "4", "4–4", "1", "1–1", "3"] in rows
    assert any("ratio of ms to torch.nn.LSTM" in line for line in lines)


def test_the_report_has_every_batch_size() -> None:
    report = bench.run(BenchAct(batch_sizes=(1, 3), steps=2, repeats=2), Console(quiet=True))
    measured = {(each["model"], each["batch_size"]): each["seconds"] for each in report["steps"]}
    assert set(measured) == {(model, size) for size in (1, 3) for model in ("compressive", "lstm", REFERENCE)}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in measured.values())
    assert [each["core"] for each in report["predict"]] == list(bench.CORES)
    assert report["reference"] == REFERENCE and report["torch_threads"] >= 1
