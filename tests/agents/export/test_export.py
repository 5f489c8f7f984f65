"""Exported policies: the graph gives what the policy gives, step by step, in every kind of env and with every core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import make_impala
from agent_toys import CORES, ToldEpisodes, make_model, staggered_env
from gymnasium import spaces
from torch import Tensor

import ctrl
from ctrl import MemoryCore, Tier
from ctrl.agents.export.checking import check_graph, open_graph
from ctrl.agents.export.graph import PolicyGraph
from ctrl.agents.export.writing import export_policy
from ctrl.agents.policy.memory_policy import MemoryPolicy

NEAR = 1e-4


class Seen(ToldEpisodes):
    """Env with any observations."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> None:
        super().__init__(action_space=action_space)
        self.observation_space = observation_space

    def observe(self) -> Any:
        return self.observation_space.sample()


def assert_agrees(policy: MemoryPolicy, step: Any, steps: int, envs: int = 3) -> None:
    agreement = check_graph(policy, step, steps=steps, envs=envs)
    assert agreement.worst < NEAR and agreement.resets > 0
    assert agreement.other_actions <= steps * envs // 50


def trained(core: str = "lstm", make: Any = make_model, **options: Any) -> Any:
    """Return an agent with weights far from their initial values."""
    model = make(staggered_env(), core, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.policy.value_normalisation.scale.fill_(2.0)
    model.policy.core.adapt({"longest_time": 30.0})
    return model


BOX = spaces.Box(-np.array([1, 2], dtype=np.float32), np.array([1, 2], dtype=np.float32))
KINDS: dict[str, tuple[spaces.Space[Any], spaces.Space[Any], str]] = {
    "vectors, continuous": (spaces.Box(-3, 3, (2, 3), np.float64), BOX, "MlpMemoryPolicy"),
    "numbers and choices that start elsewhere": (
        spaces.Discrete(4, start=-2),
        spaces.MultiDiscrete([3, 2], start=[5, -1]),
        "MlpMemoryPolicy",
    ),
    "numbers, several choices": (spaces.Discrete(5), spaces.MultiDiscrete([3, 2]), "MlpMemoryPolicy"),
    "several numbers, bits": (spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3), "MlpMemoryPolicy"),
    "bits, choices": (spaces.MultiBinary(4), spaces.Discrete(3), "MlpMemoryPolicy"),
    "images": (spaces.Box(0, 255, (3, 36, 40), np.uint8), spaces.Discrete(3), "CnnMemoryPolicy"),
    "several": (
        spaces.Dict({"seen": spaces.Box(-1, 1, (2,)), "told": spaces.Discrete(3)}),
        spaces.Discrete(2),
        "MultiInputMemoryPolicy",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_every_kind_of_space_is_the_policy(kind: str) -> None:
    """Without a file: the module that is traced."""
    seen, actions, policy = KINDS[kind]
    model = make_model(Seen(seen, actions), "gru", policy=policy)
    assert_agrees(model.policy, as_step(PolicyGraph(model.policy)), steps=60)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_space_can_be_traced(kind: str, tmp_path: Path) -> None:
    seen, actions, policy = KINDS[kind]
    model = make_model(Seen(seen, actions), "gru", policy=policy)
    step, _ = exported(model.policy, tmp_path / "agent.pt2", "torch")
    assert_agrees(model.policy, step, steps=40)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("options", [{}, {"previous_reward": True}, {"previous_action": False}], ids=str)
def test_the_graph_of_every_core_is_the_policy(core: str, options: dict[str, Any]) -> None:
    policy = trained(core, policy_kwargs=options).policy
    assert_agrees(policy, as_step(PolicyGraph(policy)), steps=60)


def as_step(graph: PolicyGraph) -> Any:
    """Return the step of a graph in torch."""

    def step(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = graph(*(torch.from_numpy(np.array(inputs[port.name])) for port in graph.inputs()))
        return {port.name: tensor.numpy() for port, tensor in zip(graph.outputs(), found, strict=True)}

    return step


def exported(policy: MemoryPolicy, path: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    described = export_policy(policy, path, kind=kind)
    assert described == path.with_suffix(".json")
    return open_graph(path, kind), json.loads(described.read_text())


def test_onnx_of_an_lstm_agrees_for_a_thousand_steps(tmp_path: Path) -> None:
    policy = trained("lstm", policy_kwargs={"previous_reward": True}).policy
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    step, described = exported(policy, tmp_path / "agent.onnx", "onnx")
    assert_agrees(policy, step, steps=1000)
    assert_agrees(policy, step, steps=120, envs=1)  # the batch is not fixed
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
    assert policy.optimizer.param_groups[0]["params"][0].requires_grad
    assert [port["name"] for port in described["inputs"]] == [
        *("observation", "reset", "reward", "state_hidden", "state_cell", "state_previous_action")
    ]
    assert described["inputs"][3]["shape"] == ["batch", 1, 6] and described["inputs"][1]["dtype"] == "bool"
    assert [port["name"] for port in described["outputs"]] == [
        *("action", "action_parameters", "value", "next_state_hidden", "next_state_cell", "next_state_previous_action")
    ]
    assert described["action_space"] == {"kind": "Discrete", "shape": [], "dtype": "int64", "n": 3}
    assert (described["format"], described["core"], described["version"]) == ("onnx", "lstm", 1)


@pytest.mark.parametrize("core", ["gru", "transformer_xl"])
def test_torch_export_agrees(core: str, tmp_path: Path) -> None:
    policy = trained(core, make_impala).policy
    step, _ = exported(policy, tmp_path / "agent.pt2", "torch")
    assert_agrees(policy, step, steps=200)
    assert_agrees(policy, step, steps=120, envs=1)


ALL_COMPRESSORS = {
    "ranked": [Tier(4), Tier(3, 2, "most_missed"), Tier(3, 2, "select")],
    "learned": [Tier(4), Tier(3, 2, "conv"), Tier(3, 3, "attention")],
    "recurrent": [Tier(4), Tier(3, 3, "gru"), Tier(2, 2, "dilated_conv")],
    "plain": [Tier(4), Tier(3, 2, "surprise"), Tier(2, 2, "max")],
}


def test_onnx_of_compressive_memory_agrees_for_a_thousand_steps(tmp_path: Path) -> None:
    kwargs = {"core_kwargs": {"width": 8, "memory": [Tier(4), Tier(3, 2), Tier(2, 2, "conv")]}}
    policy = trained("compressive", policy_kwargs=kwargs).policy
    step, described = exported(policy, tmp_path / "agent.onnx", "onnx")
    assert_agrees(policy, step, steps=1000)
    assert "state_importance" not in [port["name"] for port in described["inputs"]], "it has no numbers"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("core", CORES)
def test_files_of_every_core_agree_for_a_thousand_steps(core: str, kind: str, tmp_path: Path) -> None:
    policy = trained(core).policy
    step, _ = exported(policy, tmp_path / "agent.graph", kind)
    assert_agrees(policy, step, steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ALL_COMPRESSORS)
def test_files_of_every_compressor_agree_for_a_thousand_steps(memory: str, tmp_path: Path) -> None:
    kwargs = {"core_kwargs": {"width": 8, "heads": 4, "memory": ALL_COMPRESSORS[memory], "residual": "gated"}}
    policy = trained("compressive", policy_kwargs=kwargs).policy
    step, _ = exported(policy, tmp_path / "agent.onnx", "onnx")
    assert_agrees(policy, step, steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_of_space_agree(kind: str, tmp_path: Path) -> None:
    seen, actions, policy = KINDS[kind]
    model = make_model(Seen(seen, actions), "gru", policy=policy)
    step, _ = exported(model.policy, tmp_path / "agent.onnx", "onnx")
    assert_agrees(model.policy, step, steps=200)


def test_a_graph_that_forgets_resets_is_noticed() -> None:
    policy = trained("gru").policy
    right = as_step(PolicyGraph(policy))
    agreement = check_graph(policy, lambda inputs: right({**inputs, "reset": np.zeros_like(inputs["reset"])}), steps=60)
    assert agreement.worst > 100 * NEAR


class CountState(NamedTuple):
    seen: Tensor
    """[B, I]"""


class LookingCore(MemoryCore[CountState]):
    """Core whose step looks at numbers, so no graph can follow it."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, input_size)
        self.weight = torch.nn.Parameter(torch.ones(input_size))

    def initial_state(self, batch_size: int) -> CountState:
        return CountState(torch.zeros(batch_size, self.input_size))

    def _step(self, inputs: Tensor, state: CountState) -> tuple[Tensor, CountState]:
        seen = inputs if float(inputs.sum()) > 0 else state.seen
        return seen * self.weight, CountState(seen.detach())

    def _unroll(self, *_: Any) -> Any:
        raise NotImplementedError


def test_a_core_that_cannot_be_traced_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ctrl._CORES, "looking", LookingCore)
    policy = make_model(gym.make("CartPole-v1"), "looking").policy
    with pytest.raises(ValueError, match="policy with core LookingCore cannot be exported, since its step is no fixed"):
        export_policy(policy, tmp_path / "agent.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    policy = trained("gru").policy
    with pytest.raises(ValueError, match="kind must be one of onnx, torch, got 'tflite'"):
        export_policy(policy, tmp_path / "agent.onnx", kind="tflite")
    with pytest.raises(ValueError, match=r"path must not end in .json"):
        export_policy(policy, tmp_path / "agent.json")


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx: pip install 'ctrl-memory\[export\]'"):
        export_policy(trained("gru").policy, tmp_path / "agent.onnx")
