"""Checks of an exported graph: step by step against the policy, each with its own state."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor

from ctrl.agents.export.graph import PolicyGraph
from ctrl.agents.export.writing import require
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import PolicyState, policy_leaves

Step = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""One step of a graph: inputs by name to outputs by name."""
RESETS = 0.02
"""Probability that an env begins an episode at a step."""


@dataclass(frozen=True)
class Agreement:
    """Largest differences between a graph and its policy."""

    steps: int
    envs: int
    resets: int
    """Episodes that began after the first step."""
    other_actions: int
    """Actions that differ, which may happen only where two are nearly equally good, or differ by rounding."""
    largest: dict[str, float]
    """Largest difference by output, relative to 1 or to the output's size where that is more."""

    @property
    def worst(self) -> float:
        """The largest difference of all outputs but actions, which `other_actions` counts."""
        return max(difference for name, difference in self.largest.items() if name != "action")


def open_graph(path: str | os.PathLike[str], kind: str, *, threads: int = 1) -> Step:
    """Open an exported file, and return its step.

    :param kind: "onnx" or "torch"
    :param threads: CPU threads of onnxruntime
    """
    if kind == "torch":
        program = torch.export.load(path)
        return _torch_step(program.module(), path)
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    known = {given.name for given in session.get_inputs()}

    def step(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = session.run(names, {name: array for name, array in inputs.items() if name in known})
        return dict(zip(names, found, strict=True))

    return step


def _torch_step(module: Any, path: str | os.PathLike[str]) -> Step:
    described = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    names = [port["name"] for port in described["inputs"]], [port["name"] for port in described["outputs"]]

    def step(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = module(*(torch.from_numpy(inputs[name]) for name in names[0]))
        return dict(zip(names[1], (tensor.numpy() for tensor in found), strict=True))

    return step


def check_graph(policy: MemoryPolicy, step: Step, *, steps: int = 1000, envs: int = 3, seed: int = 0) -> Agreement:
    """Compare a graph with its policy over many steps, with resets at different times in each env.

    Observations are samples of the space. Each of the two keeps its own state of the core. The previous action is the
    policy's for both: where two actions are equally good, rounding may choose either, and the two would then part.

    :param policy: the policy that was exported
    :param step: of the graph, see `open_graph`
    :return: the largest differences
    """
    random = np.random.default_rng(seed)
    graph, resets, others, largest = PolicyGraph(policy), 0, 0, dict[str, float]()
    state = graph.policy.initial_state(envs)
    kept = {f"state_{name}": leaf.expand(envs, *leaf.shape[1:]).numpy() for name, leaf in graph.leaves}
    for t in range(steps):
        obs, reward = sample(graph.policy.observation_space, envs, random), random.normal(size=envs).astype(np.float32)
        reset = random.random(envs) < RESETS if t else np.ones(envs, dtype=bool)
        resets += int(reset.sum()) if t else 0
        found = step({**_named(obs), "reset": reset, "reward": reward, **kept})
        state = state._replace(previous_reward=graph.policy.encode_reward(reward))
        expected, state = policy_step(graph, obs, state, reset)
        for name, array in expected.items():
            largest[name] = max(largest.get(name, 0.0), apart(found[name], array))
        chosen = found["action"].reshape(envs, -1) != expected["action"].reshape(envs, -1)
        others += int(chosen.any(axis=1).sum())
        kept = {f"state_{name}": found[f"next_state_{name}"] for name, _ in graph.leaves}
        if "state_previous_action" in kept:
            kept["state_previous_action"] = expected["next_state_previous_action"]
    return Agreement(steps, envs, resets, others, largest)


def policy_step(
    graph: PolicyGraph, obs: Any, state: PolicyState, reset: np.ndarray
) -> tuple[dict[str, np.ndarray], PolicyState]:
    """Take a step of the policy itself: return what the graph should give, by name, and the next state."""
    policy = graph.policy
    with torch.no_grad():
        latent, after = policy.step(obs_as_tensor(obs, policy.device), state, torch.from_numpy(reset))
        actions, values, _ = policy.decide(latent, deterministic=True)
        parameters = policy.action_net(policy.mlp_extractor.forward_actor(latent))
        after = after._replace(previous_action=policy.encode_action(actions))
    leaves = dict(zip(graph.names, policy_leaves(after), strict=True))
    expected = {"action": policy.env_actions(actions), "action_parameters": parameters.numpy(), "value": values.numpy()}
    return {**expected, **{f"next_state_{name}": leaves[name].numpy() for name, _ in graph.leaves}}, after


def _named(obs: Any) -> dict[str, np.ndarray]:
    return {f"observation_{key}": part for key, part in obs.items()} if isinstance(obs, dict) else {"observation": obs}


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the expected number's size where that is above 1."""
    if found.shape != expected.shape:
        raise ValueError(f"the graph gives {found.shape}, the policy {expected.shape}")
    difference = np.abs(found.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    return float(difference.max()) if difference.size else 0.0


def sample(space: spaces.Space[Any], envs: int, random: np.random.Generator) -> Any:
    """Return observations [B, ...] drawn from a space."""
    if isinstance(space, spaces.Dict):
        return {key: sample(part, envs, random) for key, part in space.spaces.items()}
    space.seed(int(random.integers(2**31)))
    return np.stack([np.asarray(space.sample(), dtype=space.dtype) for _ in range(envs)])
