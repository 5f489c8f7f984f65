"""Shared tools of the tests of the agents: an env with given episodes, a core that keeps books, and a small agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from ctrl import MemoryCore, Tier, Unrolled
from ctrl.agents import GymnasiumVecEnv, MemoryPolicy, MemoryPPO
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.buffers import WindowBuffer

CORES: dict[str, dict[str, Any]] = {
    "compressive": {"width": 8, "heads": 2, "layers": 2, "memory": [Tier(3), Tier(3, 2, "conv")]},
    "transformer_xl": {"width": 8, "heads": 2, "layers": 1, "slots": 5},
    "gtrxl": {"width": 8, "heads": 2, "layers": 1, "slots": 5},
    "lstm": {"width": 6, "chrono_horizon": 8},
    "gru": {"width": 6, "chrono_horizon": 8},
    "mingru": {"width": 6, "chrono_horizon": 8},
    "feedforward": {"width": 6},
}
STAGGERED = ((5, 3, 11), (7,), (2, 19))
"""Lengths of episodes, one tuple per copy. They differ, so that copies seldom reset in the same step."""


class ToldEpisodes(gym.Env[np.ndarray, Any]):
    """Env with given lengths and ends of episodes. It observes (copy, episode, step); the reward is step + 1.

    :param lengths: lengths of the episodes, repeated
    :param ends: ends of the episodes, "terminated" or "truncated", repeated
    :param copy: number of the copy
    :param action_space: any space, since actions have no effect
    """

    observation_space = spaces.Box(-100.0, 100.0, (3,), np.float32)

    def __init__(
        self,
        lengths: Sequence[int] = (5,),
        ends: Sequence[str] = ("terminated", "truncated"),
        copy: int = 0,
        action_space: spaces.Space[Any] | None = None,
    ) -> None:
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.lengths, self.ends, self.copy = lengths, ends, copy
        self.episode, self.step_count = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.step_count = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.step_count += 1
        ended = self.step_count == self.lengths[self.episode % len(self.lengths)]
        end = self.ends[self.episode % len(self.ends)]
        terminated, truncated = ended and end == "terminated", ended and end == "truncated"
        info = {"is_success": end == "terminated"} if ended else {}
        return self.observe(), float(self.step_count), terminated, truncated, info

    def observe(self) -> np.ndarray:
        return np.array([self.copy, self.episode, self.step_count], dtype=np.float32)


class PairedEpisodes(ToldEpisodes):
    """`ToldEpisodes` that observes a Tuple: (copy, episode, step), and the step's parity."""

    observation_space = spaces.Tuple((ToldEpisodes.observation_space, spaces.Discrete(2)))  # type: ignore[assignment]

    def observe(self) -> Any:
        return super().observe(), self.step_count % 2


def makers(lengths: Sequence[Sequence[int]] = STAGGERED, **options: Any) -> list[Callable[[], ToldEpisodes]]:
    """Return one maker of `ToldEpisodes` per copy."""
    return [lambda copy=copy, told=told: ToldEpisodes(told, copy=copy, **options) for copy, told in enumerate(lengths)]  # type: ignore[misc]


def staggered_env(**options: Any) -> DummyVecEnv:
    return DummyVecEnv(makers(**options))  # type: ignore[arg-type]


def vectorized(makes: list[Callable[[], Any]], mode: AutoresetMode | None) -> DummyVecEnv | GymnasiumVecEnv:
    """Return an SB3 `DummyVecEnv` for None, else a gymnasium vector env with that autoreset mode."""
    if mode is None:
        return DummyVecEnv(makes)
    return GymnasiumVecEnv(SyncVectorEnv(makes, autoreset_mode=mode))


def make_model(env: Any, core: str = "compressive", *, policy: Any = "MlpMemoryPolicy", **options: Any) -> MemoryPPO:
    """Return a small agent: rollouts of 24 steps in windows of 8, minibatches of 3 windows.

    The learning rate is constant, so that an agent with a single update learns something.
    """
    small = {"core": core, "core_kwargs": CORES.get(core, {}), "encoder_arch": [8], "net_arch": [8]}
    options["policy_kwargs"] = {**small, **options.get("policy_kwargs", {})}
    sizes = {"n_steps": 24, "window": 8, "batch_size": 24, "n_epochs": 2}
    return MemoryPPO(policy, env, **{**sizes, "learning_rate": 3e-4, "seed": 0, "device": "cpu", **options})


UNIT = 2.0
"""Scale of values that `set_units` sets."""


def set_units(policy: MemoryPolicy) -> None:
    """Set units of the value head that differ from the rewards' units, as if it had counted returns of that scale."""
    policy.value_normalisation.mean.fill_(1.0)
    policy.value_normalisation.scale.fill_(UNIT)


def say_values(policy: MemoryPolicy, weight: Sequence[float]) -> None:
    """Set the value head so that values are `weight` times its input, exactly if those are sums of powers of two."""
    set_units(policy)
    with torch.no_grad():
        policy.value_net.weight[:] = torch.tensor(weight) / UNIT
        policy.value_net.bias[:] = -1.0 / UNIT


def weights_of(model: MemoryAlgorithm) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.policy.state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


MODES = pytest.mark.parametrize("mode", [None, *AutoresetMode], ids=lambda mode: getattr(mode, "name", "dummy"))
"""All modes that `vectorized` takes."""


class StopAfter(BaseCallback):
    """Callback that ends learning after some steps."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def _on_step(self) -> bool:
        return self.n_calls < self.calls


class AtRolloutEnd(BaseCallback):
    """Callback that calls a function with the model after each rollout, before the update."""

    def __init__(self, call: Callable[[Any], None]) -> None:
        super().__init__()
        self.call = call
        self.rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        self.call(self.model)


def fill_once(model: Any) -> None:
    """Let a model that acts in this process fill its buffer, without learning."""
    callback = AtRolloutEnd(lambda model: None)
    if model.ep_info_buffer is None:
        model._setup_learn(0)
    callback.init_callback(model)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def states_of_the_next_env(buffer: WindowBuffer) -> None:
    for number, snapshot in list(buffer.snapshots.items()):
        core = type(snapshot.core)(*(leaf.roll(1, dims=0) for leaf in snapshot.core))
        buffer.snapshots[number] = snapshot._replace(core=core)


def late_resets(buffer: WindowBuffer) -> None:
    buffer.episode_starts = np.roll(buffer.episode_starts, 1, axis=0)


class Scalars(KVWriter):
    """Writer for SB3's logger that keeps every value."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for key, value in key_values.items():
            self.values.setdefault(key, []).append(value)

    def close(self) -> None:
        pass


class Books(NamedTuple):
    """State of a `BookkeepingCore`."""

    count: Tensor
    """[B] int64, steps since the reset."""
    total: Tensor
    """[B, I] sum of the inputs since the reset."""
    last: Tensor
    """[B, I] the last input."""


class BookkeepingCore(MemoryCore[Books]):
    """Core that counts steps and sums up inputs. Its outputs (count, total) can be checked by hand."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, 1 + input_size)

    def initial_state(self, batch_size: int) -> Books:
        zeros = torch.zeros(batch_size, self.input_size)
        return Books(torch.zeros(batch_size, dtype=torch.int64), zeros, zeros.clone())

    def _step(self, inputs: Tensor, state: Books) -> tuple[Tensor, Books]:
        state = Books(state.count + 1, (state.total + inputs).detach(), inputs.detach())
        return torch.cat([state.count[:, None].float(), state.total], dim=1), state

    def _unroll(self, inputs: Tensor, state: Books, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        outputs = []
        for t in range(inputs.shape[1]):
            output, state = self._step(inputs[:, t], self.reset_state(state, reset[:, t]))
            outputs.append(output)
        return Unrolled(torch.stack(outputs, dim=1), state, inputs.new_zeros(()), {})


TRANSPARENT: dict[str, Any] = {"encoder_arch": [], "net_arch": [], "core_kwargs": {}}
"""Policy options that give the raw features to the core, and the core's raw output to the heads."""
