from __future__ import annotations

import builtins
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest

from ctrl.agents import MemoryPPO
from ctrl.experiments.bench.subjects.agents import (
    DEFAULT,
    DEFAULTS,
    PAPER,
    agents,
    closest_size,
    fresh_agent,
    make_cartpole,
    target_of,
)
from ctrl.experiments.bench.train import AGENTS
from ctrl.experiments.errors import UserError


def test_velocities_are_hidden() -> None:
    with closing(make_cartpole(2)) as env:
        observation = env.reset()
        assert env.observation_space.shape == (2,)
        hidden = env.get_attr("unwrapped")
        assert observation == pytest.approx(np.array([[e.state[0], e.state[2]] for e in hidden]))


def test_without_sb3_contrib_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sb3_contrib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("recurrent_ppo", "default_recurrent_ppo"):
        with pytest.raises(UserError, match=r'pip install "ctrl-memory\[bench\]"'):
            agents((name,))
    assert set(agents(("default_ppo",))[0]) == {"default_ppo"}


def test_agents_have_equal_parameters_and_do_equal_work() -> None:
    pytest.importorskip("sb3_contrib")
    builders, counts = agents(AGENTS)
    assert list(builders) == list(counts) == list(AGENTS)
    matched = {name: count for name, count in counts.items() if name not in DEFAULTS}
    assert all(count == pytest.approx(counts[PAPER], rel=0.1) for count in matched.values())
    assert counts["default_ppo"] < counts[PAPER] / 5
    with closing(make_cartpole(12)) as env:
        assert counts[PAPER] == target_of(PAPER, env)
        for name, build in builders.items():
            model = build(env)
            assert (model.n_steps, model.n_epochs, model.n_envs, model.batch_size) == (128, 4, 12, 12 * 32), name


def test_the_default_agents_are_those_of_their_packages() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    builders, counts = agents(DEFAULTS)
    with closing(make_cartpole(4)) as env:
        own = {
            "default_memory": MemoryPPO("MlpMemoryPolicy", env),
            "default_recurrent_ppo": contrib.RecurrentPPO("MlpLstmPolicy", env),
        }
        for name, model in own.items():
            assert str(builders[name](env).policy) == str(model.policy), name
            assert counts[name] == sum(parameter.numel() for parameter in model.policy.parameters())


def test_all_can_be_matched_to_the_default_memory() -> None:
    _, counts = agents(("compressive", "lstm", "matched_ppo", DEFAULT), match=DEFAULT)
    assert all(count == pytest.approx(counts[DEFAULT], rel=0.1) for count in counts.values())


def test_a_size_that_comes_close_to_nothing_is_refused() -> None:
    assert closest_size(lambda size: 10 * size, 104) == 10
    with pytest.raises(UserError, match="no size comes within 10% of 30 parameters; the closest has 100"):
        closest_size(lambda size: 100 * size, 30)


def test_envs_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    with suppress(RuntimeError), fresh_agent(agents(("default_ppo",))[0]["default_ppo"], 4) as model:
        monkeypatch.setattr(model.env, "close", lambda: closed.append(True))
        raise RuntimeError
    assert closed == [True]
