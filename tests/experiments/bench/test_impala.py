from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ctrl.experiments.bench import impala as bench
from ctrl.experiments.bench.impala import AGENTS, Options, configs, envs_of_a_process, rllib_turn
from ctrl.experiments.bench.subjects.rllib_impala import INSTALL
from ctrl.experiments.cli import main
from ctrl.experiments.errors import UserError


def test_all_agents_have_as_many_parameters_and_the_algorithms_their_own_windows() -> None:
    found, _ = configs(Options(actors=3, num_envs=4))
    assert list(found) == list(AGENTS[:-1])
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
    asked = Options(actors=3, num_envs=4)
    found = {agent: envs_of_a_process(agent, asked) for agent in asked.agents}
    assert found == {"impala_compressive": 4, "impala_lstm": 4, "ppo_compressive": 12, "ppo_lstm": 12}


def test_agents_are_timed_between_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_UP", 0.2)
    out = tmp_path / "impala.json"
    options = ["--actors", "1", "--num-envs", "4", "--seconds", "0.3", "--repeats", "2", "--threads", "1"]
    assert main(["bench", "impala", *options, "--agents", "impala_lstm", "ppo_lstm", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert [agent["agent"] for agent in told["agents"]] == ["impala_lstm", "ppo_lstm"]
    for agent in told["agents"]:
        assert len(agent["turns"]) == 2
        assert all(turn["steps_per_second"] > 0 for turn in agent["turns"])
    impala, ppo = told["agents"]
    assert impala["policy_lag"]["median"] >= 0 and "policy_lag" not in ppo
    assert impala["ratio_to_last"] > 0 and ppo["ratio_to_last"] == 1.0
    (table,) = bench.tables(told)
    lags = [column.cell(ppo) for column in table.columns if column.head == "lag"]
    assert lags == ["–"]


def test_the_report_keeps_the_version_of_ray(tmp_path: Path) -> None:
    """A script takes the place of Python with ray. It prints a line as ray may do, and then the tool's output."""
    python = tmp_path / "python"
    told = {"steps_per_second": 5.0, "parameters": 7, "lstm_cell_size": 3, "ray": "2.60.0"}
    python.write_text(f"#!/bin/sh\necho ray is old\necho '{json.dumps(told)}'\n")
    python.chmod(0o755)
    asked = Options(agents=("rllib_lstm",), rllib=python, repeats=1, num_envs=4)
    report = bench.run(asked, Console(width=100, quiet=True))
    assert report["agents"][0]["turns"] == [{"steps_per_second": 5.0, "parameters": 7, "ray": "2.60.0"}]


def test_an_environment_without_rllib_is_told_the_install_command() -> None:
    asked = Options(agents=("rllib_lstm",), rllib=Path(sys.executable), seconds=1.0)
    with pytest.raises(UserError, match="--rllib .* failed:\nRLlib is missing: ") as caught:
        rllib_turn(asked, parameters=1000)
    assert str(caught.value).endswith(INSTALL)
