from __future__ import annotations

from ctrl.experiments import demo
from ctrl.experiments.config import DemoConfig


def test_the_answer_has_to_come_through_compressed_slots() -> None:
    config = demo.demo_config(DemoConfig())
    (raw, _), *compressed = config.memory.tiers
    layers = config.memory.layers or 2
    length = config.task.env_arguments["length"]
    assert length >= layers * raw  # raw slots of stacked layers reach further together
    reach, span = raw, 1
    for slots, rate in compressed:
        span *= rate
        reach += slots * span
    assert length <= reach


def test_the_lstm_is_treated_fairly() -> None:
    config = demo.demo_config(DemoConfig())
    assert config.match_parameters
    assert set(config.rates) == set(config.cores)
    assert config.memory.chrono_horizon is not None
    assert config.memory.chrono_horizon >= config.task.env_arguments["length"]
    assert config.seeds == 3


def test_the_demo_replaces_its_own_results_only() -> None:
    config = demo.demo_config(DemoConfig())
    assert config.overwrite
    assert config.out == DemoConfig().out
