"""Single env and native vector env of a memory task, both made from one set of rules.

A task states its dynamics once, for a batch of copies, in a `Rules` dataclass. The fields of the dataclass are the
task's arguments; its methods are pure. `TaskEnv` runs a batch of one. `TaskVectorEnv` runs all copies in one numpy
step. So env i of `vector.reset(seed=s)` plays exactly the episodes of `single.reset(seed=s + i)`.

Shapes: B is the number of copies, the first axis of each array in a task's state.
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

from ctrl.envs.arguments import checked_integer
from ctrl.envs.randomness import Bits, derive, seed_keys
from ctrl.envs.saved_state import SavedState
from ctrl.envs.scores import Scores

Observations = npt.NDArray[Any]
Actions = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]

State = tuple[npt.NDArray[Any], ...]
StateT = TypeVar("StateT", bound=State)

RENDER_MODES = ["ansi", "rgb_array"]


class Outcome(NamedTuple):
    """Result of one step of all copies. An episode is never both terminated and truncated."""

    state: Any
    """The task's state after the step, before any reset."""
    rewards: npt.NDArray[np.float64]
    """[B] reward of the step."""
    terminated: Bools
    """[B] True where the task itself ended the episode with this step."""
    truncated: Bools
    """[B] True where a limit, which observations don't show, cut the episode off after this step."""
    success: Bools
    """[B] True where the episode was a success; only read where it ended."""


class Rules(ABC, Generic[StateT]):
    """Dynamics of a task for a batch of copies. The state is a NamedTuple of arrays; `self` stores nothing."""

    return_is_success: bool = False
    """True if an episode's return is 1 for a success and 0 for a failure, so that the scores are success rates."""
    group_names: tuple[str, ...] = ()
    """Names of the kinds of episodes whose success is reported separately; `group` returns an episode's kind."""

    def __post_init__(self) -> None:
        """Convert the arguments that are numpy scalars to Python numbers.

        Otherwise a uint8 argument would make all numbers derived from it uint8, and these could overflow. A task that
        overrides this method calls it first and then checks its arguments.
        """
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())

    @property
    @abstractmethod
    def observation_space(self) -> spaces.Box[Any]:
        """Observation space of one copy."""

    @property
    @abstractmethod
    def action_space(self) -> spaces.Discrete:
        """Action space of one copy."""

    @property
    @abstractmethod
    def scores(self) -> Scores:
        """Expected returns of the random, the memoryless and the perfect agent in one episode."""

    @property
    @abstractmethod
    def memory_steps(self) -> int:
        """Largest number of steps between a decision and an observation that it depends on.

        If the distance is random, the number covers 99 of 100 decisions.
        """

    @property
    @abstractmethod
    def max_episode_steps(self) -> int:
        """Number of decisions in the longest episode."""

    @abstractmethod
    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> StateT:
        """Return the state at step 0 of new episodes, in new arrays.

        :param keys: [B] the key of each episode, from which all its random numbers are derived.
        :param phase: [B] in [0, 1), the fraction of the episode's idle part to leave out; 0 except to stagger.
        """

    @abstractmethod
    def observe(self, state: StateT) -> Observations:
        """Return the observations [B, …] of `state`, in new arrays; a state after the episode's end has one too."""

    @abstractmethod
    def advance(self, state: StateT, actions: Actions) -> Outcome:
        """Return the outcome of one step; `state` is not changed. After an episode's end any outcome will do."""

    @abstractmethod
    def text(self, state: StateT, row: int) -> str:
        """Return one line of text that describes copy `row` to a human."""

    @abstractmethod
    def picture(self, state: StateT, row: int) -> Picture:
        """Return a small picture [height, width, 3] that shows copy `row` to a human."""

    def group(self, state: StateT) -> npt.NDArray[np.int64]:
        """Return the kind of each episode as an index into `group_names`, [B]; only called if there are any."""
        raise NotImplementedError

    def facts(self, state: StateT, success: Bools) -> dict[str, npt.NDArray[Any]]:
        """Return the entries of an ended episode's info, each an array [B]."""
        return {"is_success": success, **({"group": self.group(state)} if self.group_names else {})}

    def show(self, state: StateT, row: int, render_mode: str) -> str | Picture:
        """Return the text ("ansi") or the picture ("rgb_array") of copy `row`."""
        return self.text(state, row) if render_mode == "ansi" else self.picture(state, row)


class TaskEnv(SavedState, gym.Env[Observations, np.int64], Generic[StateT]):
    """Single env: one copy of a task. After `reset(seed=s)`, each `reset()` starts the next episode of seed s.

    :param render_mode: "ansi", "rgb_array" or None.
    :param arguments: the fields of the task's `Rules`, by name.
    :raises ValueError: if an argument is out of range.
    """

    rules_class: ClassVar[Callable[..., Rules[Any]]]
    """The task's `Rules` dataclass, set by each subclass. Its fields are the env's arguments."""
    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 8}
    KEPT = ("_key", "_episode", "_ended")

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
        """Start the first episode of `seed`; without a seed, the next episode. `options` are not used."""
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
        """Take one step. On an episode's last step, `info["is_success"]` says whether it was a success."""
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


class TaskVectorEnv(SavedState, VectorEnv[Observations, Actions, npt.NDArray[Any]], Generic[StateT]):
    """Native vector env: `num_envs` copies of a task in one numpy step.

    Its methods return the same values and infos as gymnasium's own vector envs. With `SAME_STEP`, a copy restarts in
    the step that ends its episode. Then `infos["final_obs"]` (an object array) holds the last observation, and
    `infos["final_info"]` the entries of the single env's info; each has its mask, named with a leading `_`. With
    `NEXT_STEP`, the last observation is returned like any other. The next step restarts the copy and ignores its
    action.

    :param num_envs: number of copies.
    :param stagger: spread the ends of episodes over time. Without it, copies that begin together may end together in
        every episode. With it, the first episode of copy i after `reset` leaves out the first `i / num_envs` of its
        idle part. Later episodes are complete.
    :param autoreset_mode: `SAME_STEP` or `NEXT_STEP`.
    :param render_mode: "ansi", "rgb_array" or None.
    :param arguments: the fields of the task's `Rules`, by name.
    :raises ValueError: if an argument is out of range.
    """

    rules_class: ClassVar[Callable[..., Rules[Any]]]
    """The task's `Rules` dataclass, set by each subclass. Its fields are the env's arguments."""
    metadata: dict[str, Any] = {
        "render_modes": RENDER_MODES,
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    KEPT = ("_keys", "_episodes", "_waiting")

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
        self._waiting = np.zeros(self.num_envs, dtype=np.bool_)  # NEXT_STEP: ended, restarts next step

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start the first episodes of the seeds `seed`, `seed + 1`, …; without a seed, each copy's next episode.

        :param options: `{"reset_mask": mask}` with a [B] bool array restarts only these copies. The first reset always
            starts all copies.
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
        phase = np.arange(self.num_envs) / self.num_envs
        self._begin(mask, phase if self.stagger else np.zeros(self.num_envs))
        assert self._state is not None
        return self.rules.observe(self._state), {}

    def step(self, actions: Actions) -> tuple[Observations, npt.NDArray[Any], Bools, Bools, dict[str, Any]]:
        """Take one step in all copies."""
        if self._state is None:
            raise gym.error.ResetNeeded("step() needs running episodes: call reset() first.")
        outcome = self.rules.advance(self._state, self._checked_actions(actions))
        self._state = outcome.state
        same_step = self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        infos = self._same_step(outcome) if same_step else self._next_step(outcome)
        return self.rules.observe(self._state), outcome.rewards, outcome.terminated, outcome.truncated, infos

    def _same_step(self, outcome: Outcome) -> dict[str, Any]:
        """Restart the copies whose episode ended, and return their final infos."""
        ended = outcome.terminated | outcome.truncated
        if not ended.any():
            return {}
        infos = self._final(outcome, ended)
        self._restart(ended)
        return infos

    def _next_step(self, outcome: Outcome) -> dict[str, Any]:
        """Restart the copies whose episode ended one step ago, and return the infos of episodes that end now.

        In a restarted copy the step is only a reset: the reward is 0 and the flags are False.
        """
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
        """Start the episodes with the numbers `self._episodes` in the copies of `mask`."""
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
        """Return the infos of the copies whose episode ended, with 0 and a False mask in the others."""
        infos: dict[str, Any] = {}
        for name, values in self.rules.facts(outcome.state, outcome.success).items():
            infos |= {name: np.where(ended, values, values.dtype.type(0)), f"_{name}": ended.copy()}
        return infos

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
    """Return the state of some copies; `rows` is a slice, a mask or an array of indices."""
    return type(state)(*(leaf[rows] for leaf in state))


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
