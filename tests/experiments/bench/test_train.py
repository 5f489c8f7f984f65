from __future__ import annotations

import builtins
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ctrl.experiments.bench import train as bench
from ctrl.experiments.bench.config import AGENTS, BenchTrain
from ctrl.experiments.bench.train import TrainResult, Turn, make_cartpole, measured, run_turn, train_table
from ctrl.experiments.errors import UserError


def turns(*speeds: float) -> list[Turn]:
    return [Turn(speed, 0.25, 0.75) for speed in speeds]


def test_velocities_are_hidden() -> None:
    env = make_cartpole(2)
    observation = env.reset()
    assert env.observation_space.shape == (2,)
    hidden = env.get_attr("unwrapped")
    assert observation == pytest.approx(np.array([[e.state[0], e.state[2]] for e in hidden]))
    env.close()


def test_the_report_has_ratios_to_both_references() -> None:
    counts = {"lstm": 10, "recurrent_ppo": 11, "matched_ppo": 12}
    speeds = {"lstm": turns(100, 50, 110), "recurrent_ppo": turns(50, 25, 50), "matched_ppo": turns(400, 200, 440)}
    lstm, recurrent, _ = (result.to_json() for result in measured(counts, 8, speeds))
    assert (lstm["agent"], lstm["num_envs"], lstm["parameters"]) == ("lstm", 8, 10)
    assert lstm["steps_per_second"] == {"median": 100, "range": [50, 110]}
    assert (lstm["ratio_to_recurrent_ppo"], lstm["ratio_to_matched_ppo"]) == (2.0, 0.25)
    assert recurrent["ratio_to_recurrent_ppo"] == 1.0
    assert [turn["steps_per_second"] for turn in lstm["turns"]] == [100, 50, 110]


def test_without_a_reference_there_is_no_ratio() -> None:
    (alone,) = measured({"gru": 3}, 8, {"gru": turns(100)})
    assert alone.ratios == {}
    assert cells([alone], "gru")[-2:] == ["–", "–"]


def test_the_table_compares_with_recurrent_ppo_and_the_mlp() -> None:
    counts = dict.fromkeys(("transformer_xl", "recurrent_ppo", "matched_ppo"), 123_456)
    speeds = {
        "transformer_xl": turns(10_400, 12_500),
        "recurrent_ppo": turns(5_200, 6_250),
        "matched_ppo": turns(20_800, 25_000),
    }
    results = measured(counts, 64, speeds)
    row = ["transformer_xl", "64", "123,456", "11,450", "10,400–12,500", "250", "750", "2.00", "0.50"]
    assert cells(results, "transformer_xl") == row
    assert cells(results, "RecurrentPPO")[-2:] == ["1.00", "0.25"]


def cells(results: list[TrainResult], name: str) -> list[str]:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(train_table(results, threads=1))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert "ratio of steps/s to RecurrentPPO" in text and "torch threads: 1" in text
    row = next(line for line in text.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}|(?<=\d) (?=\d)", row.strip())


def test_without_sb3_contrib_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sb3_contrib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "ctrl-memory\[bench\]"'):
        bench.agents(AGENTS)
    assert set(bench.agents(("default_ppo",))[0]) == {"default_ppo"}


def test_agents_have_equal_parameters() -> None:
    pytest.importorskip("sb3_contrib")
    builders, counts = bench.agents(AGENTS)
    assert list(builders) == list(counts) == list(AGENTS)
    target, smallest = counts["compressive"], counts.pop("default_ppo")
    assert all(count == pytest.approx(target, rel=0.1) for count in counts.values())
    assert smallest < target / 5


def test_agents_do_equal_work() -> None:
    pytest.importorskip("sb3_contrib")
    builders, _ = bench.agents(AGENTS)
    env = make_cartpole(12)
    for name, build in builders.items():
        model = build(env)
        assert (model.n_steps, model.n_epochs, model.n_envs, model.batch_size) == (128, 4, 12, 12 * 32), name
    env.close()


def test_a_turn_is_timed() -> None:
    turn = run_turn(partial(bench._plain_ppo, None), num_envs=4, updates=2)
    assert turn.acting_seconds > 0
    assert turn.learning_seconds > 0
    assert turn.steps_per_second == pytest.approx(512 / (turn.acting_seconds + turn.learning_seconds))


def test_each_number_of_envs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def fake(build: Any, num_envs: int, updates: int) -> Turn:
        asked.append((build, num_envs))
        return Turn(100.0 * num_envs, 0.5, 0.5)

    monkeypatch.setattr(bench, "agents", lambda names: ({n: n for n in names}, dict.fromkeys(names, 7)))
    monkeypatch.setattr(bench, "run_turn", fake)
    report = bench.run(BenchTrain(num_envs=(4, 8), agents=("lstm", "gru"), repeats=2), Console(quiet=True))
    assert asked == [(name, envs) for envs in (4, 8) for _ in range(2) for name in ("lstm", "gru")]
    speeds = {(each["agent"], each["num_envs"]): each["steps_per_second"]["median"] for each in report["agents"]}
    assert speeds == {("lstm", 4): 400, ("gru", 4): 400, ("lstm", 8): 800, ("gru", 8): 800}
