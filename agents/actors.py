"""The learner's side of its actor processes: start and hear them, notice when one is gone, leave nothing behind."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize

from ctrl.agents.actor_process import PATIENCE_AT_THE_END, Failed, Job, WindowDone, memory_layout
from ctrl.agents.finite import NonFiniteError
from ctrl.agents.normalisation import Moments, add_moments, running_moments
from ctrl.agents.packing import packed
from ctrl.agents.policies import MemoryPolicy, PolicyState
from ctrl.agents.published import Published
from ctrl.agents.shared_memory import SharedArrays, anonymous_file, layout_of
from ctrl.agents.trajectories import Arrays, TrajectoryBuffer

POLL_SECONDS = 0.5
"""How often the learner looks after its actors while it waits for them. One that died is noticed within that time."""
ENTRY = "import sys; from ctrl.agents.actor_process import main; sys.exit(main(*map(int, sys.argv[1:])))"


class ActorError(RuntimeError):
    """Actors failed too often. The message has the last one's own traceback, or says how it ended."""


@dataclass
class Window:
    """A whole window of one actor, still in its shared memory; to be given back with `Actors.release`."""

    actor: _Actor
    slot: int
    arrays: Arrays
    """As `TrajectoryBuffer.load` takes them."""
    state: PolicyState
    """Before the window."""
    moments: Moments
    """What the actor adds to the running normalisation."""
    version: int
    """Of the weights that acted."""
    infos: list[tuple[int, int, dict[str, Any]]]
    """(step, env, info) of each episode that ended."""


class Actors:
    """Processes that act for one learner.

    :param num_actors: how many
    :param policy: whose weights they act with, and whose copy they hold
    :param make_env: returns a `VecEnv`; called in each process
    :param normalize: the learner's own, to which what actors see is added; None where nothing is normalised
    :param buffer: of one window, as actors fill it
    :param gamma: discount, for what a time limit cuts
    :param slots: whole windows that an actor may have waiting
    :param seed: of everything random; each start of each actor draws another one from it
    :param timeout: seconds that a step of all of an actor's envs may take, or its start; then it counts as hung
    :param max_restarts: how often actors are restarted, all together, before training stops
    :raises ValueError: where env or policy cannot be sent to another process
    """

    def __init__(
        self,
        num_actors: int,
        policy: MemoryPolicy,
        make_env: Any,
        normalize: VecNormalize | None,
        buffer: TrajectoryBuffer,
        *,
        gamma: float,
        slots: int,
        seed: int | None,
        timeout: float,
        max_restarts: int,
    ) -> None:
        self.policy, self.normalize = policy, normalize
        self.timeout, self.max_restarts = timeout, max_restarts
        self.restarts = 0
        self.reasons: list[str] = []
        """Why actors were restarted, in order."""
        self.version = 0
        self._entropy = np.random.SeedSequence(seed).entropy
        self._ready: deque[Window] = deque()
        self._actors: list[_Actor] = []
        self._published = Published(policy, normalize)
        self._published.write(self.version)
        state = policy.initial_state(buffer.n_envs)
        moments = {} if normalize is None else layout_of(running_moments(normalize))
        layout = memory_layout(buffer, state, moments, slots)
        self._job = Job(make_env, _copy_to_act(policy), buffer.window, gamma, slots, layout)
        self._job_fd = anonymous_file(_packed_job(self._job))
        try:
            for index in range(num_actors):
                self._actors.append(self._start(index, starts=0))
        except BaseException:
            self.close()
            raise

    def publish(self) -> None:
        """Let actors go on with the policy as it is; if one still reads the weights before the last ones, next time."""
        self.version += 1
        self._published.write(self.version)

    def receive(self) -> Window:
        """Return the next whole window; wait for it, and look after the actors meanwhile.

        :raises ActorError: where actors have failed too often
        :raises NonFiniteError: where an env gave what is not a finite number
        """
        self._listen(0.0)
        while not self._ready:
            self._listen(POLL_SECONDS)
        window = self._ready.popleft()
        if self.normalize is not None:
            add_moments(self.normalize, window.moments)
        return window

    def release(self, window: Window) -> None:
        """Give a window's slot back to its actor, who may be gone by now."""
        if window.actor in self._actors:
            window.actor.free(window.slot)

    def close(self) -> None:
        """End all actors: they may finish their step and close their envs, for a few seconds."""
        for actor in self._actors:
            actor.let_go()
        deadline = time.monotonic() + PATIENCE_AT_THE_END
        for actor in self._actors:
            actor.end(deadline)
        self._actors.clear()
        self._ready.clear()
        self._published.close()
        os.close(self._job_fd)

    def _listen(self, seconds: float) -> None:
        """Take what actors have to say, for which there is a time to wait, and restart those that are gone or stuck."""
        connections: dict[Any, _Actor] = {actor.connection: actor for actor in self._actors}
        for connection in wait(list(connections), seconds):
            self._hear(connections[connection])
        for actor in list(self._actors):
            self._look_after(actor)

    def _hear(self, actor: _Actor) -> None:
        try:
            told = actor.connection.recv()
        except (EOFError, OSError):
            self._replace(actor, actor.how_it_ended())
            return
        if isinstance(told, WindowDone):
            self._ready.append(self._window(actor, told))
        elif isinstance(told, Failed):
            if told.not_finite:
                raise NonFiniteError(told.not_finite)
            self._replace(actor, told.reason)

    def _look_after(self, actor: _Actor) -> None:
        if actor.process.poll() is not None and not actor.connection.poll():
            self._replace(actor, actor.how_it_ended())
        elif actor.seconds_without_a_step() > self.timeout:
            self._replace(actor, f"an actor has not finished a step of its envs for {self.timeout:g} s")

    def _replace(self, actor: _Actor, reason: str) -> None:
        """End an actor at once and start another one in its place. Its whole windows stay, half of one is lost."""
        actor.kill()
        place = self._actors.index(actor)
        del self._actors[place]
        self.restarts += 1
        self.reasons.append(reason)
        if self.restarts > self.max_restarts:
            raise ActorError(
                f"actors failed {self.restarts} times, more often than max_restarts = {self.max_restarts}; "
                f"the last time:\n{reason}"
            )
        self._actors.insert(place, self._start(actor.index, actor.starts + 1))

    def _start(self, index: int, starts: int) -> _Actor:
        seed = int(np.random.SeedSequence(self._entropy, spawn_key=(index, starts)).generate_state(1)[0])
        # Large seeds are left for those who evaluate.
        return _Actor(index, starts, seed % 2**29, self._job, self._job_fd, self._published.fd)

    def _window(self, actor: _Actor, told: WindowDone) -> Window:
        prefix = f"{told.slot}/"
        mine = {
            name.removeprefix(prefix): array for name, array in actor.memory.arrays.items() if name.startswith(prefix)
        }
        moments = {
            name.removeprefix("moments/"): mine.pop(name).copy() for name in list(mine) if name.startswith("moments/")
        }
        leaves = [torch.from_numpy(mine.pop(name).copy()) for name in list(mine) if name.startswith("state/")]
        device = self.policy.device
        *core, action, reward = (leaf.to(device) for leaf in leaves)
        state = PolicyState(self.policy.core.make_state(core), action, reward)
        return Window(actor, told.slot, mine, state, moments, told.version, told.infos)


class _Actor:
    """One process, its connection and its memory."""

    def __init__(self, index: int, starts: int, seed: int, job: Job, job_fd: int, published_fd: int) -> None:
        self.index, self.starts = index, starts
        self.memory = SharedArrays(job.layout)
        self.connection, its_end = Pipe()
        its_lifeline, self._lifeline = os.pipe()
        fds = [its_end.fileno(), its_lifeline, job_fd, published_fd, self.memory.fd]
        try:
            # A session of its own: Ctrl-C reaches the learner alone, and whatever the env starts can be ended with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", ENTRY, *map(str, fds), str(seed)],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                start_new_session=True,
            )
        finally:
            its_end.close()
            os.close(its_lifeline)
            self.memory.close()
        self._last_steps, self._last_moved = -1, time.monotonic()
        for slot in range(job.slots):
            self.free(slot)

    def free(self, slot: int) -> None:
        """Tell the process that it may fill a slot; one that is gone will be noticed elsewhere."""
        with suppress(OSError):
            self.connection.send(slot)

    def seconds_without_a_step(self) -> float:
        """Return how long all its envs have been in one step, or its start has taken; 0 while it waits for a slot."""
        steps, now = int(self.memory.arrays["steps"]), time.monotonic()
        if steps != self._last_steps or int(self.memory.arrays["waiting"]):
            self._last_steps, self._last_moved = steps, now
        return now - self._last_moved

    def how_it_ended(self) -> str:
        """Say how a process ended that did not say so itself."""
        code = self.process.wait()
        if code < 0:
            return f"an actor was killed by {signal.Signals(-code).name}"
        return f"an actor ended with exit code {code}"

    def let_go(self) -> None:
        """Let the process end by itself."""
        self.connection.close()
        with suppress(OSError):
            os.close(self._lifeline)
        self._lifeline = -1

    def end(self, deadline: float) -> None:
        """Wait for the end until `deadline`, then kill."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._lifeline >= 0:
            self.let_go()


def _copy_to_act(policy: MemoryPolicy) -> MemoryPolicy:
    """Return a copy on the CPU that cannot learn."""
    shallow: dict[int, Any] = {
        id(policy.action_dist): copy.copy(policy.action_dist)
    }  # it may hold tensors with a graph
    shallow.update({id(optimizer): None for optimizer in (policy.optimizer, policy.memory_optimizer)})
    acting: MemoryPolicy = copy.deepcopy(policy, shallow).to("cpu")
    return acting


def _packed_job(job: Job) -> bytes:
    try:
        return pickle.dumps((sys.path, packed(job)))
    except Exception as error:
        raise ValueError(
            f"the env or the policy cannot be sent to actor processes ({type(error).__name__}: {error}); give a "
            "function that returns the env, or num_actors=0, which acts in this process"
        ) from error


@contextmanager
def closing(actors: Actors) -> Iterator[Actors]:
    """Close them, whatever happens."""
    try:
        yield actors
    finally:
        actors.close()
