from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from ctrl.experiments.compare import compare, demo
from ctrl.experiments.config import DemoConfig
from ctrl.experiments.options import MemoryOptions, PPOOptions
from ctrl.experiments.runs.build import build_model, parameter_count
from ctrl.experiments.runs.tasks import make_task


def test_the_answer_has_to_come_through_compressed_slots() -> None:
    config = demo.demo_config(DemoConfig())
    assert config.memory.memory is None  # the default, which `tiers` is then
    (raw, _), *compressed = config.memory.tiers
    layers = config.memory.layers or 1
    length = config.task.env_arguments["length"]
    assert length > 2 * layers * raw  # raw slots of stacked layers reach further together
    reach, span = raw, 1
    for slots, rate in compressed:
        span *= rate
        reach += slots * span
    assert length <= reach


def test_the_lstm_is_treated_fairly() -> None:
    """It has the same number of steps, more parameters, its own learning rate, and an initialisation for the task."""
    config = demo.demo_config(DemoConfig())
    length = config.task.env_arguments["length"]
    ours, lstm = compare.plan(config, Console(file=io.StringIO()))[:2]
    env = make_task(replace(config.task, num_envs=1), seed=0, training=True)
    counts = [parameter_count(build_model(run, env)) for run in (ours, lstm)]
    env.close()
    assert (ours.core, lstm.core, config.seeds) == ("compressive", "lstm", 3)
    assert counts[1] > counts[0]
    assert replace(ours.run, steps=lstm.run.steps) == lstm.run and ours.run.steps == lstm.run.steps == demo.STEPS
    assert lstm.ppo == replace(ours.ppo, learning_rate=demo.LEARNING_RATES["lstm"])
    assert lstm.memory.chrono_horizon is not None and lstm.memory.chrono_horizon >= length


def test_ours_is_what_the_command_line_has_by_default() -> None:
    ours = compare.plan(demo.demo_config(DemoConfig()), Console(file=io.StringIO()))[0]
    assert (ours.memory, ours.ppo, ours.algorithm) == (MemoryOptions(), PPOOptions(), "ppo")


def test_the_picture_s_title_names_length_and_number_of_cues() -> None:
    assert (
        demo.demo_config(DemoConfig()).task.title == f"ctrl/Recall-v0 (length={demo.LENGTH}, num_cues={demo.NUM_CUES})"
    )


def test_the_demo_replaces_its_own_results_only() -> None:
    config = demo.demo_config(DemoConfig())
    assert config.overwrite
    assert config.out == DemoConfig().out
