"""The two forms of a memory task, a single env and a native vector env, from one set of rules.

A task states its dynamics once, for a batch of copies, in a `Rules` dataclass: its fields are the task's arguments, its
methods are pure. `TaskEnv` runs a batch of one, `TaskVectorEnv` runs all copies in one numpy step; so env i of
`vector.reset(seed=s)` plays exactly the episodes of `single.reset(seed=s + i)`.

Shapes: B is the number of copies; each leaf of a task's state has it first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ctrl.envs.randomness import Bits, derive, seed_keys
from ctrl.envs.scores import Scores

Observations = npt.NDArray[Any]
Actions = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]

State = tuple[npt.NDArray[Any], ...]
StateT = TypeVar("StateT", bound=State)

RENDER_MODES = ["ansi", "rgb_array"]


class Outcome(NamedTuple):
    """What one step of all copies leads to. An episode ends in one way only: never terminated and truncated."""

    state: Any
    """The task's state after the step, before any reset."""
    rewards: npt.NDArray[np.float64]
    """[B]"""
    terminated: Bools
    """[B] the task itself ended the episode with this step."""
    truncated: Bools
    """[B] the time limit, which is not seen, cut the episode off after this step."""
    success: Bools
    """[B] the episode was a success; read where it ended."""


class Rules(ABC, Generic[StateT]):
    """A task's dynamics for a batch of copies. Its state is a NamedTuple of arrays; nothing is kept in `self`."""

    return_is_success: bool = False
    """Whether an episode's return is 1 for a success and 0 for a failure, so that the scores are success rates."""
    group_names: tuple[str, ...] = ()
    """Kinds of episodes whose success is worth telling apart; `group` says which one an episode was."""

    def __post_init__(self) -> None:
        """Make numpy's numbers Python's: a uint8 would stay one, and overflow, in all that is derived from it.

        A task's own goes on with the checks.
        """
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())

    @property
    @abstractmethod
    def observation_space(self) -> spaces.Box[Any]:
        """The space of one copy's observations."""

    @property
    @abstractmethod
    def action_space(self) -> spaces.Discrete:
        """The space of one copy's actions."""

    @property
    @abstractmethod
    def scores(self) -> Scores:
        """The expected returns of an episode that a score is measured against."""

    @property
    @abstractmethod
    def memory_steps(self) -> int:
        """How many steps back the oldest observation lies that a decision depends on.

        Where the distance is random, it covers 99 of 100 decisions.
        """

    @property
    @abstractmethod
    def max_episode_steps(self) -> int:
        """Decisions in the longest episode."""

    @abstractmethod
    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> StateT:
        """Return new arrays with the state at step 0 of the episodes that `keys` [B] name.

        :param phase: [B] in [0, 1), the fraction of the episode's idle part to leave out; 0 except to stagger.
        """

    @abstractmethod
    def observe(self, state: StateT) -> Observations:
        """Return new arrays [B, …]: what is seen in `state`, also in a state after the end."""

    @abstractmethod
    def advance(self, state: StateT, actions: Actions) -> Outcome:
        """Take one step; `state` is left as it is. After the end any outcome will do."""

    @abstractmethod
    def text(self, state: StateT, row: int) -> str:
        """Return one line that shows copy `row` to a human."""

    @abstractmethod
    def picture(self, state: StateT, row: int) -> Picture:
        """Return a small picture [height, width, 3] that shows copy `row` to a human."""

    def group(self, state: StateT) -> npt.NDArray[np.int64]:
        """Return [B] indices into `group_names`; only called where there are groups."""
        raise NotImplementedError

    def facts(self, state: StateT, success: Bools) -> dict[str, npt.NDArray[Any]]:
        """Return what an ended episode's info holds, each an array [B]."""
        return {"is_success": success, **({"group": self.group(state)} if self.group_names else {})}

    def show(self, state: StateT, row: int, render_mode: str) -> str | Picture:
        """Return the text or the picture of copy `row`."""
        return self.text(state, row) if render_mode == "ansi" else self.picture(state, row)


class TaskEnv(gym.Env[Observations, np.int64], Generic[StateT]):
    """One copy of a task. After `reset(seed=s)`, `reset()` moves on to the next episode of seed s.

    :param render_mode: "ansi", "rgb_array" or None.
    :param arguments: the fields of the task's `Rules`, by name.
    :raises ValueError: if an argument is out of range.
    """

    rules_class: ClassVar[Callable[..., Rules[Any]]]
    """Set by each task: its `Rules` dataclass, whose fields are the env's arguments."""
    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 8}

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        self.rules = self.rules_class(**arguments)
        self.observation_space = self.rules.observation_space
        self.action_space = self.rules.action_space
        self.render_mode = _known_render_mode(render_mode)
        self._key: Bits | None = None
        self._episode = 0
        self._state: StateT | None = None
        self._ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start the first episode of `seed`, or without a seed the next episode. `options` are not used."""
        super().reset(seed=seed)
        if seed is not None:
            self._key, self._episode = seed_keys(seed, 1), 0
        elif self._key is None:
            self._key, self._episode = _random_keys(self.np_random, 1), 0
        else:
            self._episode += 1
        self._state = self.rules.begin(derive(self._key, np.array([self._episode])), np.zeros(1))
        self._ended = False
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Take one step; on an episode's last step `info` says whether it was a success ("is_success")."""
        if self._state is None or self._ended:
            raise gym.error.ResetNeeded("step() needs a running episode: call reset() first.")
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in {self.action_space}, got {action!r}.")
        outcome = self.rules.advance(self._state, np.array([action], dtype=np.int64))
        self._state = outcome.state
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        self._ended = terminated or truncated
        info = {}
        if self._ended:
            facts = self.rules.facts(outcome.state, outcome.success)
            info = {name: values[0].item() for name, values in facts.items()}
        return self._observe(), float(outcome.rewards[0]), terminated, truncated, info

    def render(self) -> Any:
        """Return a line of text ("ansi") or a picture [height, width, 3] ("rgb_array") of the current step."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render mode, for example gym.make(..., render_mode='rgb_array').")
            return None
        if self._state is None:
            raise gym.error.ResetNeeded("render() needs a running episode: call reset() first.")
        return self.rules.show(self._state, 0, self.render_mode)

    def _observe(self) -> Observations:
        assert self._state is not None
        return cast(Observations, self.rules.observe(self._state)[0])


class TaskVectorEnv(VectorEnv[Observations, Actions, npt.NDArray[Any]], Generic[StateT]):
    """`num_envs` copies of a task in one numpy step, with the returns and infos of gymnasium's own vector envs.

    With `SAME_STEP` a copy restarts in the step that ends its episode: `infos["final_obs"]` (an object array) holds the
    last observation and `infos["final_info"]` what the single env's info would, each with its mask `_…`. With
    `NEXT_STEP` the last observation is returned as any other, and the next step restarts the copy, whatever its action.

    :param num_envs: number of copies.
    :param stagger: copies that begin together may end together for good. With `stagger`, the first episode of copy i
        after `reset` lacks the first `i / num_envs` of its idle part, so that the ends spread over time. Later episodes
        are complete.
    :param autoreset_mode: `SAME_STEP` or `NEXT_STEP`.
    :param render_mode: "ansi", "rgb_array" or None.
    :param arguments: the fields of the task's `Rules`, by name.
    :raises ValueError: if an argument is out of range.
    """

    rules_class: ClassVar[Callable[..., Rules[Any]]]
    """Set by each task: its `Rules` dataclass, whose fields are the env's arguments."""
    metadata: dict[str, Any] = {
        "render_modes": RENDER_MODES,
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        stagger: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self.rules = self.rules_class(**arguments)
        self.num_envs = checked_integer("num_envs", num_envs, at_least=1)
        self.stagger = stagger
        self.single_observation_space = self.rules.observation_space
        self.single_action_space = self.rules.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.render_mode = _known_render_mode(render_mode)
        self.metadata = {**self.metadata, "autoreset_mode": _known_autoreset_mode(autoreset_mode)}
        self._keys: Bits | None = None
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._state: StateT | None = None
        self._waiting = np.zeros(self.num_envs, dtype=np.bool_)  # NEXT_STEP: ended, to restart with the next step

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start the first episodes of the seeds `seed`, `seed + 1`, …, or without a seed each copy's next episode.

        :param options: `{"reset_mask": mask}` with a [B] bool array restarts only these copies; the first reset starts
            all.
        """
        super().reset(seed=seed)
        mask = self._checked_mask((options or {}).get("reset_mask"))
        if seed is None and self._keys is not None:
            self._episodes[mask] += 1
        else:
            keys = _random_keys(self.np_random, self.num_envs) if seed is None else seed_keys(seed, self.num_envs)
            self._keys = keys if self._keys is None else np.where(mask, keys, self._keys)
            self._episodes[mask] = 0
        self._waiting &= ~mask
        self._begin(mask, self._phase())
        assert self._state is not None
        return self.rules.observe(self._state), {}

    def step(self, actions: Actions) -> tuple[Observations, npt.NDArray[Any], Bools, Bools, dict[str, Any]]:
        """Take one step in all copies."""
        if self._state is None:
            raise gym.error.ResetNeeded("step() needs running episodes: call reset() first.")
        outcome = self.rules.advance(self._state, self._checked_actions(actions))
        self._state = outcome.state
        infos = self._same_step(outcome) if self._restarts_in_the_same_step else self._next_step(outcome)
        return self.rules.observe(self._state), outcome.rewards, outcome.terminated, outcome.truncated, infos

    @property
    def _restarts_in_the_same_step(self) -> bool:
        return self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP

    def _same_step(self, outcome: Outcome) -> dict[str, Any]:
        """Restart the copies whose episode ended; return their final infos."""
        ended = outcome.terminated | outcome.truncated
        if not ended.any():
            return {}
        infos = self._final(outcome, ended)
        self._restart(ended)
        return infos

    def _next_step(self, outcome: Outcome) -> dict[str, Any]:
        """Restart the copies whose episode ended a step ago: for them this step was none. Return the others' infos."""
        waiting = self._waiting
        if waiting.any():
            self._restart(waiting)
            for array in outcome[1:]:
                array[waiting] = 0
        self._waiting = outcome.terminated | outcome.truncated
        return self._facts(outcome, self._waiting) if self._waiting.any() else {}

    def _restart(self, mask: Bools) -> None:
        """Start the next episodes of the copies in `mask`."""
        self._episodes[mask] += 1
        self._begin(mask, np.zeros(self.num_envs))

    def render(self) -> tuple[Any, ...] | None:
        """Return a line of text ("ansi") or a picture ("rgb_array") for each copy."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render mode, for example gym.make_vec(..., render_mode='rgb_array').")
            return None
        if self._state is None:
            raise gym.error.ResetNeeded("render() needs running episodes: call reset() first.")
        return tuple(self.rules.show(self._state, row, self.render_mode) for row in range(self.num_envs))

    def _begin(self, mask: Bools, phase: npt.NDArray[np.float64]) -> None:
        """Start the episodes `self._episodes` of the copies in `mask`."""
        assert self._keys is not None
        fresh = self.rules.begin(derive(self._keys[mask], self._episodes[mask]), phase[mask])
        if self._state is None or mask.all():
            self._state = fresh
            return
        for leaf, rows in zip(self._state, fresh, strict=True):
            leaf[mask] = rows

    def _final(self, outcome: Outcome, ended: Bools) -> dict[str, Any]:
        """Return the infos of the copies whose episode ended, in gymnasium's SAME_STEP form."""
        ended_state = take(outcome.state, ended)
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_obs[ended] = np.fromiter(self.rules.observe(ended_state), dtype=object, count=int(ended.sum()))
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": self._facts(outcome, ended),
            "_final_info": ended.copy(),
        }

    def _facts(self, outcome: Outcome, ended: Bools) -> dict[str, Any]:
        """Return what the single env's infos hold at the end; zero in the copies that go on."""
        infos: dict[str, Any] = {}
        for name, values in self.rules.facts(outcome.state, outcome.success).items():
            infos |= {name: np.where(ended, values, values.dtype.type(0)), f"_{name}": ended.copy()}
        return infos

    def _phase(self) -> npt.NDArray[np.float64]:
        phase = np.arange(self.num_envs) / self.num_envs
        return phase if self.stagger else np.zeros(self.num_envs)

    def _checked_actions(self, actions: npt.ArrayLike) -> Actions:
        array = np.asarray(actions)
        count = int(self.rules.action_space.n)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape ({self.num_envs},), got {array.dtype} of shape {array.shape}."
            )
        if ((array < 0) | (array >= count)).any():
            raise ValueError(f"actions must be in [0, {count}), got values from {array.min()} to {array.max()}.")
        return array.astype(np.int64, copy=False)

    def _checked_mask(self, mask: Any) -> Bools:
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        if mask is None:
            return everywhere
        array = np.asarray(mask)
        if array.shape != (self.num_envs,) or array.dtype != np.bool_:
            raise ValueError(
                f"reset_mask must be bool of shape ({self.num_envs},), got {array.dtype} of shape {array.shape}."
            )
        return everywhere if self._state is None else cast(Bools, array)


def take(state: StateT, rows: Any) -> StateT:
    """Return the state of some copies: `rows` is a slice, a mask or indices."""
    return type(state)(*(leaf[rows] for leaf in state))


def checked_integer(name: str, value: Any, *, at_least: int) -> int:
    """Return `value` as an int, or raise a ValueError that names the argument and the value."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}.")
    return int(value)


def checked_fraction(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1], or raise a ValueError that names the argument and the value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")
    return float(value)


def checked_number(name: str, value: Any, *, at_least: float) -> float:
    """Return `value` as a finite float, or raise a ValueError that names the argument and the value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not at_least <= value < float("inf"):
        raise ValueError(f"{name} must be a number of at least {at_least}, got {value!r}.")
    return float(value)


def _known_render_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}.")
    return render_mode


def _known_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        known = AutoresetMode(mode)
    except ValueError:
        known = AutoresetMode.DISABLED
    if known is AutoresetMode.DISABLED:
        raise ValueError(f"autoreset_mode must be SAME_STEP or NEXT_STEP, got {mode!r}.")
    return known


def _random_keys(generator: np.random.Generator, count: int) -> Bits:
    return generator.integers(0, 2**64, size=count, dtype=np.uint64)
