"""Adapter of gymnasium's `VectorEnv` to stable-baselines3, without a Python loop over envs in the usual step.

    envs = gym.make_vec("ctrl.envs:ctrl/Recall-v0", num_envs=256)
    model = PPO("MlpPolicy", GymnasiumVecEnv(envs))

SB3 expects the first observation of the next episode in the step that ends an episode, and the last observation in
`info["terminal_observation"]`. The way to get them depends on the env's `metadata["autoreset_mode"]`:

- SAME_STEP: the env itself does this; the last observation comes from `infos["final_obs"]`.
- DISABLED: the adapter resets the ended envs with `options={"reset_mask": done}` in the same step.
- NEXT_STEP: the env spends a whole step on the reset, in which the action is ignored and the reward is 0. The other
  envs must not wait, so *the end is reported one step late*. At the end `done` is False and the observation is the last
  one. In the next step `done` is True, the reward is 0, the observation is the new episode's first, and info has
  `"reset_step": True`. A learner may mask such steps out of its loss, since the action had no effect. At the end
  itself, info has `"NextStep.terminated": True` if the episode was terminated: the observation's value must not count.
  `reset_steps` and `ended_unreported` say the same for all envs; the agents go by these, since an env may put the same
  keys into its own info.

Episode returns and lengths are recorded in `info["episode"]`, as by SB3's `Monitor`; reset steps are not counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ctrl.agents.utils.nan_checks import check_finite, check_observations
from ctrl.agents.utils.spaces import check_spaces
from ctrl.agents.utils.validation import check_env, gymnasium_env
from ctrl.agents.vec_envs.action_masks import METHOD
from ctrl.agents.vec_envs.env_access import _access
from ctrl.agents.vec_envs.env_contract import (
    EnvContractError,
    check_batch,
    check_flags,
    check_observation,
    check_rewards,
)
from ctrl.agents.vec_envs.env_state import gymnasium_state, set_gymnasium_state
from ctrl.agents.vec_envs.env_watch import EnvWatch
from ctrl.agents.vec_envs.episode_monitor import EpisodeMonitor
from ctrl.agents.vec_envs.infos import episode_of
from ctrl.agents.vec_envs.nested import FlatVecEnv, flat_env, flat_observation, flat_space, is_nested

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Info = dict[str, Any]


class _Step(NamedTuple):
    """Result of one step of a gymnasium vector env, in arrays that the env does not reuse."""

    observations: Any
    """[B, …], or a dict of such."""
    rewards: npt.NDArray[np.float32]
    """[B]"""
    ended: Bools
    """[B] terminated or truncated."""
    cut: Bools
    """[B] truncated and not terminated."""
    infos: Mapping[str, Any]


class GymnasiumVecEnv(VecEnv):
    """A gymnasium vector env (native, `SyncVectorEnv` or `AsyncVectorEnv`) as an SB3 `VecEnv`.

    :param env: the vector env; it is closed with this one.
    :raises ValueError: if the autoreset mode or a space is not supported.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.env = env
        self.autoreset_mode = _autoreset_mode(env)
        check_spaces(env.single_observation_space, env.single_action_space)
        observation_space = flat_space(env.single_observation_space)
        self._access = _access(env)
        super().__init__(env.num_envs, observation_space, env.single_action_space)
        self._monitor = EpisodeMonitor(env.num_envs)
        self._actions: npt.NDArray[Any] | None = None
        self._late = np.zeros(env.num_envs, dtype=np.bool_)  # NEXT_STEP: ended in the last step, not yet reported
        self._late_infos: dict[int, Info] = {}  # the infos to report for them
        self.reset_steps: Bools = np.zeros(env.num_envs, dtype=np.bool_)
        """[B] true where the last step was spent on a reset."""
        self.ended_unreported: Bools = np.zeros(env.num_envs, dtype=np.bool_)
        """[B] true where the last step terminated an episode whose end is reported by the next one."""
        self.refuses_nan = False
        """If true, observations and rewards that are not finite raise a `NonFiniteError`."""
        self._watch: EnvWatch | None = None

    def reset(self) -> VecEnvObs:
        """Reset all envs with the seed of `seed()` and the options of `set_options()`; both are used only once."""
        self._watch = EnvWatch(self.env)
        with self._watch.watching():
            observations, infos = self.env.reset(seed=self._seeds[0], options=self._common_options())
        self._reset_seeds()
        self._reset_options()
        self._monitor.restart()
        self._late, self.reset_steps, self.ended_unreported = (
            np.zeros(self.num_envs, dtype=np.bool_) for _ in range(3)
        )
        self._late_infos.clear()
        self._set_reset_infos(infos, np.ones(self.num_envs, dtype=np.bool_))
        return cast(VecEnvObs, self._copied(self._checked(observations)))

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions [B, …] for `step_wait`, in the action space's dtype."""
        array = np.asarray(actions, dtype=self.action_space.dtype)
        expected = (self.num_envs, *(self.action_space.shape or ()))
        if array.shape != expected:
            raise ValueError(f"actions must be of shape {expected} for {self.action_space}, got {array.shape}.")
        self._actions = array

    def step_wait(self) -> VecEnvStepReturn:
        """Step all envs; the module's docstring explains the `dones` of a NEXT_STEP env."""
        if self._actions is None:
            raise RuntimeError("step_wait() needs actions: call step_async() first.")
        if self._watch is None:
            raise RuntimeError("step_wait() needs envs that have begun: call reset() first.")
        with self._watch.watching():
            observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        self._actions = None
        if not isinstance(infos, Mapping):
            raise EnvContractError(
                f"infos must be a dict of arrays, got {type(infos).__name__}; remove DictInfoToList."
            )
        rewards = check_rewards(rewards, self.num_envs)
        over = check_flags(terminated, self.num_envs, "terminated")
        cut = check_flags(truncated, self.num_envs, "truncated")
        self._monitor.count(rewards, counted=~self._late)
        copied = self._copied(self._checked(observations))
        step = _Step(copied, np.array(rewards, dtype=np.float32), over | cut, cut & ~over, infos)
        if self.refuses_nan:
            check_observations(step.observations, "observation", None)
            check_finite(step.rewards, "reward", None)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            return self._after_same_step(step)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            return self._after_next_step(step)
        return self._after_disabled(step)

    def _after_same_step(self, step: _Step) -> VecEnvStepReturn:
        """Convert a step of a SAME_STEP env.

        The last observation and info are in `final_obs` and `final_info`; the rest belongs to the new episode.
        """
        infos = self._new_infos()
        running = {
            key: value for key, value in step.infos.items() if key.lstrip("_") not in ("final_obs", "final_info")
        }
        if not step.ended.any():
            _spread(running, infos, ~step.ended)
            return step.observations, step.rewards, step.ended, infos
        _spread(running, infos, ~step.ended)
        _spread(step.infos.get("final_info", running), infos, step.ended)
        self._set_reset_infos(running, step.ended)
        for i in _where(step.ended):
            self._finish(infos[i], i, self._copied(_final_observation(step.infos, i)), step.cut)
        return step.observations, step.rewards, step.ended, infos

    def _after_disabled(self, step: _Step) -> VecEnvStepReturn:
        """Convert a step of a DISABLED env: its observation is the last one, and the ended envs are reset here."""
        infos = self._new_infos()
        _spread(step.infos, infos, ~np.zeros_like(step.ended))
        if step.ended.any():
            for i in _where(step.ended):
                self._finish(infos[i], i, self._copied(_row(step.observations, i)), step.cut)
            with cast(EnvWatch, self._watch).watching():
                fresh, reset_infos = self.env.reset(options={"reset_mask": step.ended.copy()})
            self._set_reset_infos(reset_infos, step.ended)
            _assign(step.observations, step.ended, self._checked(fresh))
        return step.observations, step.rewards, step.ended, infos

    def _after_next_step(self, step: _Step) -> VecEnvStepReturn:
        """Convert a step of a NEXT_STEP env: report the ends of the last step, keep those of this one for the next."""
        late, ended = self._late, step.ended
        infos = self._new_infos()
        _spread(step.infos, infos, ~late)
        step.rewards[late] = 0.0
        if late.any():
            self._set_reset_infos(step.infos, late)
            for i in _where(late):
                infos[i] = self._late_infos.pop(i)
        for i in _where(ended):
            self._late_infos[i] = {**infos[i], "reset_step": True}
            self._finish(self._late_infos[i], i, self._copied(_row(step.observations, i)), step.cut)
            infos[i].pop("episode", None)  # SB3 would count it now, although `done` is False
            if not step.cut[i]:
                infos[i]["NextStep.terminated"] = True
        self.reset_steps, self.ended_unreported = late, ended & ~step.cut
        self._late = ended
        return step.observations, step.rewards, late, infos

    def _finish(self, info: Info, index: int, terminal_observation: Any, cut: Bools) -> None:
        """Add SB3's entries to the info of an episode's end. An "episode" by a Monitor inside the env has priority."""
        check_observation(terminal_observation, self.observation_space, f"terminal_observation of env {index}")
        info["terminal_observation"] = terminal_observation
        info["TimeLimit.truncated"] = bool(cut[index])
        episode = self._monitor.take(index)
        if episode_of(info) is None:
            info["episode"] = episode

    def _new_infos(self) -> list[Info]:
        return [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]

    def _set_reset_infos(self, infos: Mapping[str, Any], mask: Bools) -> None:
        for i in _where(mask):
            self.reset_infos[i] = {}
        _spread(infos, self.reset_infos, mask)

    def _common_options(self) -> dict[str, Any] | None:
        """Return the options for all envs: a gymnasium vector env takes one dict."""
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"a gymnasium vector env takes the same options for all envs, got {self._options}.")
        return dict(self._options[0]) or None

    def _checked(self, observations: Any) -> Any:
        return check_batch(flat_observation(observations), self.observation_space, self.num_envs)

    def _copied(self, observation: Any) -> Any:
        """Return a copy of a batch or row of observations, in the space's dtype; envs may reuse their arrays."""
        if isinstance(self.observation_space, spaces.Dict):
            parts, observation = self.observation_space.spaces.items(), flat_observation(observation)
            return {key: np.array(observation[key], dtype=space.dtype) for key, space in parts}
        return np.array(observation, dtype=self.observation_space.dtype)

    def get_state(self) -> dict[str, Any]:
        """Return the state of all envs, in mid-episode, as plain data; see `ctrl.agents.vec_envs.env_state`.

        :raises NotPlainError: if the vector env, or one in it, has no `get_state`.
        """
        return {
            "env": gymnasium_state(self.env),
            "monitor": self._monitor.get_state(),
            "late": self._late.copy(),
            "late_infos": dict(self._late_infos),
            "reset_infos": [dict(info) for info in self.reset_infos],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue the episodes of a `get_state`, in envs that were built in the same way."""
        set_gymnasium_state(self.env, state["env"])
        self._monitor.set_state(state["monitor"])
        self._late, self._late_infos, self.reset_infos = state["late"], state["late_infos"], state["reset_infos"]
        self._actions, self._watch = None, EnvWatch(self.env)

    def close(self) -> None:
        """Close the vector env."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """Return a picture of each env, or None for each if the render mode is not "rgb_array"."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"Pictures need the render mode 'rgb_array', got {self.render_mode!r}.", stacklevel=2)
            return [None] * self.num_envs
        frames: Any = self.env.render() or [None] * self.num_envs
        return list(frames)

    def has_attr(self, attr_name: str) -> bool:
        """Return True if every env has the attribute; unlike `get_attr`, without a copy of it from other processes."""
        return self._access.has(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of each of these envs; a native vector env has one value for all.

        :raises AttributeError: if there is no such attribute.
        """
        chosen = list(self._get_indices(indices))
        if attr_name == "render_mode":
            return [self.env.render_mode] * len(chosen)
        return self._access.get(attr_name, chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of these envs.

        :raises NotImplementedError: if only some envs are meant and they can't be reached one by one.
        """
        self._access.set(attr_name, value, list(self._get_indices(indices)))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Call the method of these envs. A native vector env's own method must return an entry for each env, or None.

        :raises AttributeError: if there is no such method.
        :raises NotImplementedError: if only some envs are meant and they can't be reached one by one.
        """
        chosen = list(self._get_indices(indices))
        answers = self._access.call(method_name, chosen, *method_args, **method_kwargs)
        if method_name == METHOD:  # an env that is about to be reset ignores the action, and may allow none
            return [np.ones_like(mask) if self._late[i] else mask for i, mask in zip(chosen, answers, strict=True)]
        return answers

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> Any:
        """Return for each of these envs if it has this wrapper; always True for `Monitor`, whose work is done here."""
        chosen = list(self._get_indices(indices))
        return [wrapper_class is Monitor or self._access.is_wrapped(wrapper_class, i) for i in chosen]


def as_vec_env(env: Any, *, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
    """Return a gymnasium env, a gymnasium `VectorEnv` or a `VecEnv` as an SB3 `VecEnv`, images with channels first.

    :param monitor_wrapper: whether a single env without a `Monitor` gets one
    :raises ValueError: where `env` is no env, or a space is not supported
    """
    if isinstance(env, VectorEnv):
        env = GymnasiumVecEnv(env)
    check_env(env)
    if not isinstance(env, VecEnv):
        env = gymnasium_env(env)
    check_spaces(env.observation_space, env.action_space)
    if isinstance(env, gym.Env):
        env = flat_env(env)
    elif is_nested(env.observation_space):
        env = FlatVecEnv(env)
    return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)


def _autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    if not isinstance(env, VectorEnv):
        raise ValueError(f"env must be a gymnasium VectorEnv, got {type(env).__name__}.")
    found = env.metadata.get("autoreset_mode", "no entry")
    try:
        return AutoresetMode(found)
    except ValueError:
        known = [str(mode) for mode in AutoresetMode]
        raise ValueError(f"metadata['autoreset_mode'] of {env} must be one of {known}, got {found!r}.") from None


def _spread(infos: Mapping[str, Any], rows: Sequence[Info], where: Bools) -> None:
    """Write gymnasium's dict of arrays into SB3's list of dicts, for the envs in `where` [B].

    `infos["_key"]` [B] tells which envs have `key`; without it, all envs have it. A value has one entry per env, or is
    shared by all.
    """
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        indices = _where(where & np.asarray(infos.get(f"_{key}", True)))
        if isinstance(value, Mapping):
            children: list[Info] = [{}] * len(rows)
            for i in indices:
                children[i] = rows[i][key] = {}
            mask = np.zeros_like(where)
            mask[indices] = True
            _spread(value, children, mask)
        else:
            each = hasattr(value, "__len__") and not isinstance(value, str) and len(value) == len(rows)
            for i in indices:
                rows[i][key] = _plain(value[i]) if each else value


def _plain(value: Any) -> Any:
    """Return a Python number for a numpy one, and a copy of an array."""
    if isinstance(value, np.number | np.bool_):
        return value.item()
    return value.copy() if isinstance(value, np.ndarray) else value


def _final_observation(infos: Mapping[str, Any], index: int) -> Any:
    """Return an env's last observation from `final_obs`: an object array, a batch, or a dict of batches."""
    final, mask = infos.get("final_obs"), infos.get("_final_obs")
    if final is None or (mask is not None and not mask[index]):
        raise ValueError(f"a SAME_STEP env must give the last observation of env {index} in infos['final_obs'].")
    return _row(final, index)


def _where(mask: Bools) -> list[int]:
    indices: list[int] = np.flatnonzero(mask).tolist()
    return indices


def _row(batch: Any, index: int) -> Any:
    """Return one env's part of a batch, or its entry in an array of objects."""
    if isinstance(batch, Mapping):
        return {key: _row(part, index) for key, part in batch.items()}
    return tuple(_row(part, index) for part in batch) if isinstance(batch, tuple) else batch[index]


def _assign(batch: Any, mask: Bools, source: Any) -> None:
    """Replace the rows in `mask` by those of `source`."""
    if isinstance(batch, dict):
        for key, part in batch.items():
            part[mask] = source[key][mask]
    else:
        batch[mask] = source[mask]
