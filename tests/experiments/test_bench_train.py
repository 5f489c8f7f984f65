from __future__ import annotations

import builtins
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ctrl.experiments import bench_train as bench
from ctrl.experiments.bench_train import Measured, Turn, bench_table, make_cartpole, ratio, run_turn
from ctrl.experiments.errors import UserError
from ctrl.experiments.models import parameter_count


def measured(agent: str, *speeds: float) -> Measured:
    return Measured(agent, 1000, [Turn(speed, 0.25, 0.75) for speed in speeds])


def test_velocities_are_hidden() -> None:
    env = make_cartpole(2)
    observation = env.reset()
    assert env.observation_space.shape == (2,)
    hidden = env.get_attr("unwrapped")
    assert observation == pytest.approx(np.array([[e.state[0], e.state[2]] for e in hidden]))
    env.close()


def test_ratios_are_taken_within_a_turn() -> None:
    # Turn 2 met a busy machine; both were slowed down.
    assert ratio(measured("a", 100, 50, 110), measured("b", 50, 25, 50)) == 2.0


def test_the_report_names_its_reference() -> None:
    fast, slow = measured("fast", 100, 300, 200), measured("slow", 50, 100, 100)
    data = fast.to_json(slow)
    assert data["median_steps_per_second"] == 200
    assert data["range_steps_per_second"] == [100, 300]
    assert data["ratio_to_slow"] == 2.0


def test_the_table_compares_with_recurrent_ppo() -> None:
    results = [measured("MemoryPPO lstm", 400.0, 500.0), measured("sb3-contrib RecurrentPPO", 200.0, 250.0)]
    results.append(measured("MemoryPPO compressive", 10_400.0, 12_500.0))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(bench_table(results, threads=1))
    text = captured.get()
    assert "ratio of steps/s to sb3-contrib RecurrentPPO" in text
    (row,) = (line for line in text.splitlines() if "MemoryPPO lstm" in line)
    cells = re.split(r"\s{2,}", row.strip())
    assert cells == ["MemoryPPO lstm", "1,000", "450", "400–500", "250", "750", "2.00"]
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text


def test_without_sb3_contrib_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sb3_contrib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "ctrl-memory\[bench\]"'):
        bench.agents()


def test_agents_with_memory_have_equal_parameters() -> None:
    pytest.importorskip("sb3_contrib")
    builders = bench.agents()
    env = make_cartpole(bench.NUM_ENVS)
    counts = {name: parameter_count(build(env)) for name, build in builders.items() if "no memory" not in name}
    env.close()
    assert len(counts) == 3
    target = counts["MemoryPPO compressive"]
    assert all(count == pytest.approx(target, rel=0.1) for count in counts.values())


def test_a_turn_is_timed() -> None:
    turn = run_turn(bench._plain_ppo, updates=2)
    assert turn.acting_seconds > 0
    assert turn.learning_seconds > 0
    assert turn.steps_per_second == pytest.approx(1024 / (turn.acting_seconds + turn.learning_seconds))
