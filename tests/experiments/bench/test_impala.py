from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctrl.experiments.bench import impala as bench_impala
from ctrl.experiments.bench.config import IMPALA_AGENTS, BenchImpala
from ctrl.experiments.bench.impala import Turn, configs, envs_of_a_process, impala_table, run_rllib
from ctrl.experiments.cli import main
from ctrl.experiments.errors import UserError


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"actors": 0}, "--actors must be at least 1, got 0"),
        ({"num_envs": 6}, "--num-envs must be multiples of 4, got 6"),
        ({"seconds": 0.0}, "--seconds must be above 0, got 0.0"),
        ({"agents": ("impala_gru",)}, "unknown agent 'impala_gru'"),
        ({"agents": ("rllib_lstm",)}, "--agents rllib_lstm needs --rllib PYTHON"),
        ({"rllib": Path("no/python")}, "--rllib must be a Python that can be run, got no/python"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        BenchImpala(**wrong)
    assert told in str(caught.value)


def test_all_agents_have_as_many_parameters_and_the_algorithms_their_own_windows() -> None:
    found = configs(BenchImpala(actors=3, num_envs=4))
    assert list(found) == list(IMPALA_AGENTS[:-1])
    assert {name: config.algorithm for name, config in found.items()} == {
        "impala_compressive": "impala",
        "impala_lstm": "impala",
        "ppo_compressive": "ppo",
        "ppo_lstm": "ppo",
    }
    assert found["impala_lstm"].memory.width == found["ppo_lstm"].memory.width != found["ppo_compressive"].memory.width
    assert (found["impala_lstm"].ppo.n_steps, found["ppo_lstm"].ppo.n_steps) == (64, 128)
    assert found["impala_lstm"].impala.num_actors == 3


def test_all_agents_have_as_many_envs_in_total() -> None:
    asked = BenchImpala(actors=3, num_envs=4)
    found = {agent: envs_of_a_process(agent, asked) for agent in asked.agents}
    assert found == {"impala_compressive": 4, "impala_lstm": 4, "ppo_compressive": 12, "ppo_lstm": 12}


def test_agents_are_timed_between_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_impala, "WARM_UP", 0.2)
    out = tmp_path / "impala.json"
    options = ["--actors", "1", "--num-envs", "4", "--seconds", "0.3", "--repeats", "2", "--threads", "1"]
    assert main(["bench", "impala", *options, "--agents", "impala_lstm", "ppo_lstm", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert [agent["agent"] for agent in told["agents"]] == ["impala_lstm", "ppo_lstm"]
    for agent in told["agents"]:
        assert len(agent["turns"]) == 2
        assert all(turn["steps_per_second"] > 0 for turn in agent["turns"])
    lags = [turn["policy_lag"] for agent in told["agents"] for turn in agent["turns"]]
    assert lags[0] >= 0 and lags[2:] == [None, None]


def test_the_table_has_ratios_to_the_last_agent() -> None:
    turns = {
        "impala_lstm": [Turn(300.0, 99, 1.0), Turn(500.0, 99, 2.0)],
        "rllib_lstm": [Turn(100.0, 98), Turn(250.0, 98)],
    }
    asked = BenchImpala(agents=("impala_lstm", "rllib_lstm"), rllib=Path(sys.executable), repeats=2)
    console = Console(width=100, record=True)
    console.print(impala_table(turns, asked, threads=1))
    lines = console.export_text().splitlines()
    assert [line.split() for line in lines if "lstm" in line] == [
        ["MemoryImpala", "lstm", "99", "400", "300–500", "1.5", "2.50"],
        ["RLlib", "IMPALA", "lstm", "98", "175", "100–250", "–", "1.00"],
    ]


def test_the_report_keeps_the_version_of_ray(tmp_path: Path) -> None:
    """A script takes the place of Python with ray. It prints a line as ray may do, and then the tool's output."""
    python = tmp_path / "python"
    told = {"steps_per_second": 5.0, "parameters": 7, "lstm_cell_size": 3, "ray": "2.60.0"}
    python.write_text(f"#!/bin/sh\necho ray is old\necho '{json.dumps(told)}'\n")
    python.chmod(0o755)
    asked = BenchImpala(agents=("rllib_lstm",), rllib=python, repeats=1, num_envs=4)
    report = bench_impala.run(asked, Console(width=100, quiet=True))
    assert report["agents"][0]["turns"] == [
        {"steps_per_second": 5.0, "parameters": 7, "policy_lag": None, "ray": "2.60.0"}
    ]


def test_an_environment_without_rllib_says_so() -> None:
    asked = BenchImpala(agents=("rllib_lstm",), rllib=Path(sys.executable), seconds=1.0)
    with pytest.raises(UserError, match="--rllib .* failed:(.|\n)*No module named 'ray'"):
        run_rllib(asked, parameters=1000)
