"""Actor process, started by `ctrl.agents.actors.pool.Actors`.

It owns a copy of the vector env and of the policy. For each window it reads the newest weights, acts, and copies the
window into a slot of shared memory. It announces the slot only when the window is complete, so the learner never sees
half of one. It acts only while it has a free slot, and the learner gives slots back: neither side can run away from the
other.

It ends when the learner closes its side of the connection, or dies.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ctrl.agents.actors.shared_memory import Layout, SharedArrays
from ctrl.agents.actors.shared_weights import SharedWeights
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import PolicyState, policy_leaves
from ctrl.agents.rollout import keep_step, take_step
from ctrl.agents.utils.nan_checks import NonFiniteError
from ctrl.agents.utils.normalisation import Moments, added_moments, running_moments
from ctrl.agents.vec_envs.checked_env import CheckedEnv
from ctrl.agents.vec_envs.env_contract import EnvContractError
from ctrl.agents.vec_envs.infos import episode_of

PATIENCE_AT_THE_END = 5.0
"""Seconds that an env may take to finish its step and close after the learner is gone."""
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Job:
    """Settings that all actors of a learner share; pickled once."""

    make_env: Any
    """Function that returns the `VecEnv`."""
    policy: MemoryPolicy
    window: int
    mask_size: int
    """Entries of an action mask; 0 where masks are not used."""
    gamma: float
    slots: int
    layout: Layout
    """Layout of the memory that the actor shares with the learner, see `memory_layout`."""


class EndedEpisode(NamedTuple):
    """End of an episode inside a window."""

    step: int
    """Step of the window."""
    env: int
    info: dict[str, Any]
    """The env's info, numbers and text only."""


class WindowDone(NamedTuple):
    """Message to the learner: a slot holds a complete window."""

    slot: int
    version: int
    """Version of the weights that acted."""
    ended: list[EndedEpisode]


class Failed(NamedTuple):
    """Message to the learner before the actor ends with an error."""

    reason: str
    """Traceback of the error."""
    fault: EnvContractError | NonFiniteError | None
    """The error itself where an env broke its contract: it would break it again after a restart."""


def memory_layout(buffer: WindowBuffer, state: PolicyState, moments: Layout, slots: int) -> Layout:
    """Return the layout of the memory that one actor shares with the learner.

    :param buffer: a buffer of one window, with the shapes to be stored
    :param state: a state of all envs, likewise
    :param moments: layout of the moments that an actor adds to the running normalisation
    :param slots: number of windows that the memory has room for
    """
    layout: Layout = dict.fromkeys(("started", "steps"), ((), "int64"))
    of_window = {name: (array.shape, array.dtype.str) for name, array in buffer.arrays().items()}
    of_state = {f"state/{n}": (leaf.shape, leaf.numpy().dtype.str) for n, leaf in enumerate(state_leaves(state))}
    of_moments = {f"moments/{name}": entry for name, entry in moments.items()}
    for slot in range(slots):
        for name, entry in {**of_window, **of_state, **of_moments}.items():
            layout[f"{slot}/{name}"] = entry
    return layout


def state_leaves(state: PolicyState) -> list[torch.Tensor]:
    """Return all tensors of a policy's state, on the CPU."""
    return [leaf.cpu() for leaf in policy_leaves(state)]


def ended_episodes(step: int, infos: list[dict[str, Any]], ends: np.ndarray) -> Iterator[EndedEpisode]:
    """Yield the episodes that end in a step. Infos are reduced to numbers, text and an `episode` of these."""
    for env, info in enumerate(infos):
        record = episode_of(info) if "episode" in info else None
        if ends[env] or record is not None:
            episode = {} if record is None else {"episode": _plain(record)}
            yield EndedEpisode(step, env, {**_plain(info), **episode})


def _plain(info: dict[Any, Any]) -> dict[str, Any]:
    """Keep only values of exactly these types: others, such as an enum of the main script, may not be unpickled."""
    return {
        key: value
        for key, value in info.items()
        if type(key) is str and (type(value) in _PLAIN or isinstance(value, np.number | np.bool_))
    }


class ActorProcess:
    """Acting loop of one actor, until its connection is closed."""

    def __init__(self, job: Job, seed: int, memory: SharedArrays, weights_fd: int, connection: Connection) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - for envs that draw from the global generator
        self.job, self.memory, self.connection = job, memory, connection
        self.env: VecEnv = job.make_env()
        self.normalize = unwrap_vec_normalize(self.env)
        self.policy = job.policy
        self.policy.set_training_mode(False)
        self.shared_weights = SharedWeights(self.policy, self.normalize, weights_fd)
        self.version = self.shared_weights.read()
        with suppress(AttributeError, NotImplementedError):  # the learner has warned of an env that takes no seed
            self.env.seed(seed)
        self.checked_env = CheckedEnv(self.env)
        spaces = self.policy.observation_space, self.policy.action_space
        self.buffer = WindowBuffer(
            job.window, *spaces, n_envs=self.env.num_envs, window=job.window, mask_size=job.mask_size
        )
        self.actor = self.policy.actor(self.policy.initial_state(self.env.num_envs))
        self.before = self._moments()
        self.obs: Any = self.checked_env.reset(step=0)
        self.starts = np.ones(self.env.num_envs, dtype=bool)
        memory.arrays["started"][...] = 1

    def run(self) -> None:
        """Act until the learner closes the connection."""
        while (slot := self._free_slot()) is not None:
            if self.memory.arrays["steps"]:  # before the first step, reading would drop the first observations' moments
                self.version = self.shared_weights.read()
                self.before = self._moments()
            window = WindowDone(slot, self.version, self._window(slot))
            try:
                self.connection.send(window)
            except OSError:
                return

    def _free_slot(self) -> int | None:
        """Wait for a free slot from the learner; return None once the learner has left."""
        try:
            slot: int = self.connection.recv()
        except (EOFError, OSError):
            return None
        return slot

    def _moments(self) -> Moments:
        return {} if self.normalize is None else running_moments(self.normalize)

    def _window(self, slot: int) -> list[EndedEpisode]:
        """Act for a window, put it into `slot`, and return the episodes that ended."""
        self.buffer.reset()
        ended: list[EndedEpisode] = []
        for step in range(self.job.window):
            infos = self._step()
            ended += ended_episodes(step, infos, self.starts)
        self._store(slot, added_moments(self.before, self._moments()))
        return ended

    def _step(self) -> list[dict[str, Any]]:
        steps, num_envs = int(self.memory.arrays["steps"]), self.env.num_envs
        now = steps * num_envs
        step = take_step(self.actor, self.checked_env, self.buffer, self.obs, torch.as_tensor(self.starts), now)
        self.actor.tell_rewards(step.result.rewards)
        keep_step(step, self.starts, self.actor, self.buffer, self.job.gamma, now + num_envs)
        self.obs, self.starts = step.result.observations, step.result.ends
        self.memory.arrays["steps"][...] = steps + 1
        infos: list[dict[str, Any]] = step.result.infos
        return infos

    def _store(self, slot: int, added: Moments) -> None:
        arrays = self.memory.arrays
        for name, array in self.buffer.arrays().items():
            arrays[f"{slot}/{name}"][...] = array
        for number, leaf in enumerate(state_leaves(self.buffer.snapshots[0])):
            arrays[f"{slot}/state/{number}"][...] = leaf.numpy()
        for name, moments in added.items():
            arrays[f"{slot}/moments/{name}"][...] = moments


def _end_with_the_learner(lifeline: int) -> None:
    """Kill the process some seconds after the learner's end of the pipe is closed; until then it may end by itself.

    All processes that its env has started are killed too, since an actor leads a process group of its own.
    """
    os.read(lifeline, 1)
    threading.Event().wait(PATIENCE_AT_THE_END)
    os.killpg(os.getpid(), signal.SIGKILL)


def _job(fd: int) -> Job:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as whole:
        job: Job = pickle.loads(whole)
    return job


def _report(connection: Connection, error: BaseException) -> None:
    fault = error if isinstance(error, EnvContractError | NonFiniteError) else None
    with suppress(OSError):  # the learner has left
        connection.send(Failed("".join(traceback.format_exception(error)), fault))


def main(connection_fd: int, lifeline: int, job_fd: int, weights_fd: int, memory_fd: int, seed: int) -> int:
    """Act until the learner closes the connection; return 0, or 1 after an error, which is sent to the learner."""
    threading.Thread(target=_end_with_the_learner, args=[lifeline], daemon=True).start()
    connection = Connection(connection_fd)
    process: ActorProcess | None = None
    try:
        job = _job(job_fd)
        process = ActorProcess(job, seed, SharedArrays(job.layout, memory_fd), weights_fd, connection)
        process.run()
    except BaseException as error:
        _report(connection, error)
        return 1
    finally:
        if process is not None:
            process.env.close()
    return 0
