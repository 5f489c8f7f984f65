"""State of a rollout buffer as plain data: an unfinished rollout, and what the next one's burn-in needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ctrl.agents.buffers import Truncation, WindowBuffer, _last, _Steps
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import PolicyState, policy_leaves

State = dict[str, Any]


def buffer_state(buffer: WindowBuffer, *, in_rollout: bool) -> State:
    """Return what the buffer holds that is still of use.

    :param in_rollout: whether the rollout in it will be continued; if not, it is learned from already
    """
    before, snapshots = buffer._before, buffer.snapshots
    if not in_rollout:
        before = _last(buffer._steps(), buffer.burn_in) if buffer.full else None
        snapshots = buffer._snapshots_ahead() if buffer.full else {}
    stored = {name: array[: _filled(buffer, name)] for name, array in buffer.arrays().items()} if in_rollout else {}
    return {
        "pos": buffer.pos if in_rollout else 0,
        "stored": stored,
        "before": None if before is None or not buffer.burn_in else tuple(before),
        "snapshots": {step: policy_leaves(state) for step, state in snapshots.items()},
        "truncations": [_truncation(each) for each in buffer.truncations] if in_rollout else [],
    }


def _filled(buffer: WindowBuffer, name: str) -> int:
    """Return the number of rows of a stored array that are filled: one a step, or one a window."""
    return buffer.pos // buffer.window if name.startswith("following") else buffer.pos


def _truncation(truncation: Truncation) -> State:
    leaves, observations = policy_leaves(truncation.state), truncation.observations
    return {"step": truncation.step, "envs": list(truncation.envs), "leaves": leaves, "observations": observations}


def set_buffer_state(buffer: WindowBuffer, state: State, policy: MemoryPolicy) -> None:
    """Put an empty buffer into a state of `buffer_state`; the next rollout then goes on in it.

    :raises ValueError: where the state does not fit the buffer
    """
    buffer.full = False
    buffer.reset()
    buffer.pos = _from_0_to(buffer.buffer_size, state["pos"])
    for name, array in buffer.arrays().items():
        rows = _filled(buffer, name)
        if rows:
            _fill(name, array[:rows], state["stored"][name])
    buffer._before = None if state["before"] is None else _Steps(*state["before"])
    buffer.snapshots = {
        int(step): policy_state(policy, leaves, buffer.n_envs) for step, leaves in state["snapshots"].items()
    }
    buffer.truncations = [
        Truncation(
            _from_0_to(buffer.buffer_size, each["step"]),
            each["envs"],
            policy_state(policy, each["leaves"], len(each["envs"])),
            _on_device(each["observations"], policy.device),
        )
        for each in state["truncations"]
    ]
    buffer.full = buffer.pos == buffer.buffer_size


def policy_state(policy: MemoryPolicy, leaves: list[torch.Tensor], batch_size: int) -> PolicyState:
    """Return the leaves of a policy's state as the state.

    :raises ValueError: where they don't fit the policy, or are not finite
    """
    expected = policy_leaves(policy.initial_state(batch_size))
    found = [leaf.to(policy.device) for leaf in leaves]
    if [(leaf.shape, leaf.dtype) for leaf in found] != [(leaf.shape, leaf.dtype) for leaf in expected]:
        raise ValueError("the saved memory does not fit the policy")
    if not all(bool(torch.isfinite(leaf).all()) for leaf in found):
        raise ValueError("the saved memory is not finite")
    return PolicyState(policy.core.make_state(found[:-2]), *found[-2:])


def _from_0_to(most: int, number: Any) -> int:
    if type(number) is not int or not 0 <= number <= most:
        raise ValueError(f"a saved rollout has a step from 0 to {most}, got {number!r}")
    return number


def _fill(name: str, rows: np.ndarray, saved: np.ndarray) -> None:
    if saved.shape != rows.shape or saved.dtype != rows.dtype:
        raise ValueError(f"the saved rollout has {name} of shape {saved.shape}, expected {rows.shape}")
    rows[...] = saved


def _on_device(observations: Any, device: torch.device) -> Any:
    if isinstance(observations, dict):
        return {key: part.to(device) for key, part in observations.items()}
    return observations.to(device)
