"""State of a training run beside weights and optimizers, so that a loaded model goes on as if it never stopped.

    data, arrays, pickles = training_state(model)         # as `model.save` writes them
    restore_training_state(model, data, arrays, pickles)  # as `load` does; the next `learn` takes it up

It holds the random generators, the memory of the acting policy, the last observations, the unfinished rollout and the
state of the envs. The last is plain data where the envs give it (see `ctrl.agents.vec_envs.env_state`) and a pickle
where they don't; pickles are read only with `trust`. Where the envs can't be put back, they begin new episodes, with a
warning, and all else goes on.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctrl.agents.policy.policy_data import Acted, policy_leaves
from ctrl.agents.resuming.buffer_state import buffer_state, policy_state, set_buffer_state
from ctrl.agents.resuming.random_state import random_state, set_random_state
from ctrl.agents.rollout import EnvStep
from ctrl.agents.saving.plain_data import Arrays, NotPlainError, decode, encode
from ctrl.agents.vec_envs.checked_env import EnvResult
from ctrl.agents.vec_envs.env_state import EnvStateError, env_state, set_env_state, set_normalisation

VERSION = 1
COUNTS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_n_updates", "_episode_num")
LARGEST_SEED = 2**30
"""Seeds of envs that begin new episodes are below this."""


@dataclass(frozen=True)
class SavedTraining:
    """State of training from a file, until `learn` takes it up."""

    state: dict[str, Any]
    """Decoded data of `training_state`."""
    trust: bool
    """Whether pickled states of envs may be loaded."""
    episodes: bool = True
    """False where the user has set another env, which begins new episodes."""
    random: bool = True
    """False where the user has seeded the generators anew."""

    def without_episodes(self) -> SavedTraining:
        """Return the state without episodes in progress."""
        return replace(self, episodes=False)

    def without_random_state(self) -> SavedTraining:
        """Return the state without random generators."""
        return replace(self, random=False)


# Saving


def training_state(model: Any) -> tuple[dict[str, Any], Arrays, dict[str, bytes]]:
    """Return the state of training as JSON, arrays and pickles, also in a callback.

    The pickles are states of envs that give no plain data. A model that was loaded and has not learned since gives back
    the state that it was loaded with.
    """
    saved = model._saved_state
    state = _present_state(model) if saved is None else saved.state
    arrays: Arrays = {}
    pickles = {f"env{place}": entry["pickle"] for place, entry in enumerate(state["envs"]) if "pickle" in entry}
    envs = [{**entry, "pickle": None} if "pickle" in entry else entry for entry in state["envs"]]
    return {"version": VERSION, "state": encode({**state, "envs": envs}, arrays)}, arrays, pickles


def _present_state(model: Any) -> dict[str, Any]:
    acting_here = getattr(model, "num_actors", 0) == 0
    env = model.env
    return {
        "counts": {name: getattr(model, name) for name in COUNTS},
        "progress": float(model._current_progress_remaining),
        "recent": [_recent(model.ep_info_buffer), _recent(model.ep_success_buffer)],
        "logged": _logged(model),
        "random": random_state(),
        "action_space": model.action_space._np_random,
        "n_envs": model.n_envs,
        "acting_here": acting_here,
        "envs": [] if env is None else env_state(env) if acting_here else _normalisation_alone(env),
        "acting": _acting(model) if acting_here else None,
    }


def _recent(entries: Any) -> list[Any] | None:
    """Return the recent episodes' records, without what is no plain data."""
    return None if entries is None else [_plain_part(entry) for entry in entries]


def _plain_part(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: value for key, value in entry.items() if _is_plain(value)}
    return entry if _is_plain(entry) else float(entry)


def _is_plain(value: Any) -> bool:
    try:
        encode(value, {})
    except NotPlainError:
        return False
    return True


def _logged(model: Any) -> dict[str, Any]:
    """Return the numbers that the logger has taken and not written yet, with the formats that leave them out."""
    logger = getattr(model, "_logger", None)
    if logger is None:
        return {}
    return {
        name: (float(value), tuple(logger.name_to_excluded.get(name) or ()))
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float | np.number)
    }


def _normalisation_alone(env: Any) -> list[Any]:
    return [layer for layer in env_state(env) if "moments" in (layer.get("state") or {})]


def _acting(model: Any) -> dict[str, Any] | None:
    """Return the state of the policy that acts, and of its rollout; None where no episode is in progress."""
    if model._last_obs is None:
        return None
    actor = model._actor
    return {
        "actor": None if actor is None else policy_leaves(actor.state()),
        "cache": [] if actor is None else actor.cache(),
        "last_obs": model._last_obs,
        "original_obs": model._last_original_obs,
        "starts": np.asarray(model._last_episode_starts),
        "in_flight": _in_flight(model),
        "in_rollout": model._in_rollout,
        "buffer": buffer_state(model.rollout_buffer, in_rollout=model._in_rollout),
    }


def _in_flight(model: Any) -> dict[str, Any] | None:
    if model._step_in_flight is None:
        return None
    step, starts = model._step_in_flight
    infos = [_plain_part(info) for info in step.result.infos]
    result = {**step.result._asdict(), "infos": infos}
    return {**step._asdict(), "acted": tuple(step.acted), "result": result, "starts": starts}


# Loading


def restore_training_state(
    model: Any,
    data: dict[str, Any],
    arrays: Mapping[str, Any],
    pickles: Mapping[str, bytes],
    *,
    trust: bool = False,
) -> None:
    """Give a loaded model its state of training, which `learn(reset_num_timesteps=False)` takes up.

    The running statistics of a `VecNormalize` are set at once, for `predict` and evaluations.

    :param pickles: empty where the file is not trusted
    :param trust: whether pickled states of envs may be loaded
    :raises ValueError: where the data are damaged
    """
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise ValueError(f"the state of training has version {VERSION}, got {str(data)[:60]}")
    state = decode(data.get("state"), arrays)
    _check(state)
    for place, entry in enumerate(state["envs"]):
        if "pickle" in entry:
            entry["pickle"] = pickles.get(f"env{place}", b"")
    model._saved_state = SavedTraining(state, trust)
    if model.env is not None and not set_normalisation(model.env, state["envs"]):
        _warn("the model was trained in a VecNormalize, and the env that it was loaded with has none")


def _check(state: Any) -> None:
    expected = {"counts", "progress", "recent", "logged", "random", "action_space", "n_envs", "acting_here", "envs"}
    if not isinstance(state, dict) or set(state) != {*expected, "acting"}:
        raise ValueError("the state of training is damaged")
    counts = state["counts"]
    if set(counts) != set(COUNTS) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError(f"the state of training has counts {str(counts)[:100]}")
    envs = state["envs"]
    if not isinstance(state["progress"], float) or not isinstance(envs, list) or not all(map(_is_entry, envs)):
        raise ValueError("the state of training is damaged")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("kind"), str)


def take_up(model: Any, saved: SavedTraining) -> None:
    """Put a loaded model, and its envs, where training ended.

    :raises ValueError: where the state is damaged
    """
    try:
        _take_up(model, saved)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"the state of training is damaged: {type(error).__name__}: {error}") from error


def _take_up(model: Any, saved: SavedTraining) -> None:
    state = saved.state
    for name in COUNTS:
        setattr(model, name, state["counts"][name])
    model._current_progress_remaining = state["progress"]
    for name, entries in zip(("ep_info_buffer", "ep_success_buffer"), state["recent"], strict=True):
        if entries is not None:
            setattr(model, name, deque(entries, maxlen=model._stats_window_size))
    model._logged_before = state["logged"]
    model._last_obs = None
    if saved.episodes:
        _take_up_episodes(model, saved)
    if saved.random:
        set_random_state(state["random"])
        model.action_space._np_random = state["action_space"]


def _take_up_episodes(model: Any, saved: SavedTraining) -> None:
    """Go on with the episodes in progress; where the envs can't be put back, warn, and seed them for new ones."""
    state = saved.state
    if not state["acting_here"]:
        _warn("episodes begin anew: those of actor processes end with them")
        return
    if state["acting"] is None:
        _seed_new_episodes(model)
        return
    try:
        if model.n_envs != state["n_envs"]:
            raise EnvStateError(f"it was saved with {state['n_envs']} envs, now there are {model.n_envs}")
        assert model.env is not None
        set_env_state(model.env, state["envs"], trust=saved.trust)
    except EnvStateError as reason:
        _warn(f"episodes begin anew: {reason}")
        _seed_new_episodes(model)
        return
    _set_acting(model, state["acting"])


def _seed_new_episodes(model: Any) -> None:
    """Seed the envs so that they do not play the same episodes as at the start of training."""
    if model.seed is not None and model.env is not None:
        entropy = (model.seed, model.num_timesteps)
        model.env.seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]) % LARGEST_SEED)


def _set_acting(model: Any, acting: dict[str, Any]) -> None:
    set_buffer_state(model.rollout_buffer, acting["buffer"], model.policy)
    model._actor = None
    if acting["actor"] is not None:
        model._actor = model.policy.actor(policy_state(model.policy, acting["actor"], model.n_envs))
        model._actor.set_cache(acting["cache"])
    model._last_obs, model._last_original_obs = acting["last_obs"], acting["original_obs"]
    model._last_episode_starts = acting["starts"]
    model._in_rollout = True  # the buffer is as the next rollout, or the rest of one, needs it
    if acting["in_flight"] is not None:
        model._step_in_flight = _step_of(acting["in_flight"], model)
        model._finish_step()


def _step_of(in_flight: dict[str, Any], model: Any) -> tuple[EnvStep, np.ndarray]:
    fields = {name: in_flight[name] for name in EnvStep._fields}
    acted = Acted(*(part.to(model.device) for part in fields["acted"]))
    return EnvStep(**{**fields, "acted": acted, "result": EnvResult(**fields["result"])}), in_flight["starts"]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
