"""One step of a whole policy as a module of plain tensors: preprocessing, encoder, core and heads.

Its inputs are observation, reset and state; its outputs are the likeliest action, what it was chosen from, the value
and the next state. Every tensor has a name and the batch as its first axis. Leaves of the state without numbers, such
as the previous action of a policy that does not see it, are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import PolicyState, policy_leaves
from ctrl.agents.utils.spaces import first_values


@dataclass(frozen=True)
class Port:
    """An input or output of the graph."""

    name: str
    shape: list[int | str]
    """The first entry is "batch"."""
    dtype: str
    meaning: str

    @classmethod
    def of(cls, name: str, tensor: Tensor, meaning: str) -> Port:
        """Describe a tensor."""
        return cls(name, ["batch", *tensor.shape[1:]], str(tensor.dtype).removeprefix("torch."), meaning)

    def to_json(self) -> dict[str, Any]:
        """Return the port as plain data."""
        return asdict(self)


class PolicyGraph(nn.Module):
    """One step of a policy, see the module's docstring. It holds a copy of the policy, on the CPU.

    :param policy: the policy
    """

    def __init__(self, policy: MemoryPolicy) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).to("cpu")
        self.policy.set_training_mode(False)
        self.policy.requires_grad_(False)
        space = policy.observation_space
        self._action_dtype = empty_batch(policy.action_space).dtype
        self._keys = list(space.spaces) if isinstance(space, spaces.Dict) else None
        self.names = [*self.policy.core.state_fields, *PolicyState._fields[1:]]
        """Names of all leaves of the state."""
        leaves = zip(self.names, policy_leaves(self.policy.initial_state(1)), strict=True)
        self.leaves = [(name, leaf) for name, leaf in leaves if leaf.numel()]
        """Names of the state's leaves, and the leaves [1, ...] at the beginning, without the empty ones."""
        self.sees_rewards = any(name == "previous_reward" for name, _ in self.leaves)
        if self.sees_rewards:  # it is an input of its own, not something that the graph hands on
            self.leaves = [(name, leaf) for name, leaf in self.leaves if name != "previous_reward"]

    def inputs(self) -> list[Port]:
        """Describe the inputs, in the order of `forward`."""
        space = self.policy.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        observations = [
            Port.of(f"observation_{key}" if key else "observation", empty_batch(part), str(part))
            for key, part in parts.items()
        ]
        reset = Port.of("reset", torch.zeros(1, dtype=torch.bool), "true where the observation begins an episode")
        reward = [Port.of("reward", torch.zeros(1), "of the last action; ignored at a reset")] * self.sees_rewards
        states = [Port.of(f"state_{name}", leaf, "0 at first, then the output next_…") for name, leaf in self.leaves]
        return [*observations, reset, *reward, *states]

    def outputs(self) -> list[Port]:
        """Describe the outputs of `forward`."""
        with torch.no_grad():
            action, parameters, value, *_ = self(*self.example(1))
        return [
            Port.of("action", action, f"the likeliest, as the env takes it: {self.policy.action_space}"),
            Port.of("action_parameters", parameters, "logits of discrete actions, means of others, to sample from"),
            Port.of("value", value, "in the rewards' units"),
            *(Port.of(f"next_state_{name}", leaf, f"to be passed as state_{name}") for name, leaf in self.leaves),
        ]

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Return inputs of a first step, for `batch` envs: zeros, and a reset."""
        shapes = [(port.shape[1:], getattr(torch, port.dtype), port.name) for port in self.inputs()]
        return tuple(
            torch.ones(batch, dtype=torch.bool)
            if name == "reset"
            else torch.zeros(batch, *cast(Any, shape), dtype=dtype)
            for shape, dtype, name in shapes
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take a step; inputs and outputs as `inputs()` and `outputs()` say."""
        rest = list(inputs)
        count = 1 if self._keys is None else len(self._keys)
        observations, (reset, *rest) = rest[:count], rest[count:]
        obs: Any = observations[0] if self._keys is None else dict(zip(self._keys, observations, strict=True))
        before = self._state(rest, reset)
        inputs_of_core = self.policy.embed(obs, before.previous_action, before.previous_reward)
        latent, core_state = self.policy.core.graph_step(inputs_of_core, before.core, reset)
        actions, values, _ = self.policy.decide(latent, deterministic=True)
        parameters = self.policy.action_net(self.policy.mlp_extractor.forward_actor(latent))
        after = PolicyState(core_state, self.policy.encode_action(actions), before.previous_reward)
        named = dict(zip(self.names, policy_leaves(after), strict=True))
        return self._for_env(actions), parameters, values, *(named[name] for name, _ in self.leaves)

    def _state(self, inputs: Sequence[Tensor], reset: Tensor) -> PolicyState:
        """Return the state before the step, with previous action and reward 0 at a reset."""
        named = dict(
            zip([*["previous_reward"] * self.sees_rewards, *(name for name, _ in self.leaves)], inputs, strict=True)
        )
        if self.sees_rewards:
            named["previous_reward"] = named["previous_reward"][:, None]
        empty = policy_leaves(self.policy.initial_state(1))
        leaves = [
            named[name] if name in named else leaf.new_zeros(reset.shape[0], *leaf.shape[1:])
            for name, leaf in zip(self.names, empty, strict=True)
        ]
        previous = (torch.where(reset[:, None], 0, leaf) for leaf in leaves[-2:])
        return PolicyState(self.policy.core.make_state(leaves[:-2]), *previous)

    def _for_env(self, actions: Tensor) -> Tensor:
        """Return actions as the env takes them: in the space's shape and dtype, within its bounds."""
        space = self.policy.action_space
        actions = actions.reshape(-1, *cast("tuple[int, ...]", space.shape))
        if isinstance(space, spaces.Box):
            actions = actions.clamp(*(torch.as_tensor(bound, dtype=actions.dtype) for bound in (space.low, space.high)))
        starts = first_values(space)
        shifted = actions + torch.as_tensor(starts) if np.any(starts) else actions
        return shifted.to(self._action_dtype)


def empty_batch(space: spaces.Space[Any]) -> Tensor:
    """Return a tensor [0, ...] with the shape and dtype of a space's elements."""
    return torch.as_tensor(np.zeros((0, *cast("tuple[int, ...]", space.shape)), dtype=space.dtype))
