"""Pool of actor processes on the learner's side: starts them, receives windows, restarts failed ones, cleans up."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize

from ctrl.agents.actors.inbox import Inbox
from ctrl.agents.actors.pickling import packed
from ctrl.agents.actors.process import PATIENCE_AT_THE_END, EndedEpisode, Failed, Job, WindowDone, memory_layout
from ctrl.agents.actors.shared_memory import SharedArrays, anonymous_file, layout_of
from ctrl.agents.actors.shared_weights import SharedWeights
from ctrl.agents.buffers import Arrays, WindowBuffer
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import PolicyState
from ctrl.agents.utils.normalisation import Moments, add_moments, running_moments

POLL_SECONDS = 0.5
"""Interval in seconds at which the waiting learner checks its actors. A dead one is noticed within that time."""
START_SECONDS = 60.0
"""Seconds by which an actor's start may exceed a step's timeout: it imports all that the learner has imported."""
ENTRY = """import sys
sys.path[:] = sys.argv.pop().split('\\n')  # the learner's: what its script can import can be unpickled
from ctrl.agents.actors.process import main
sys.exit(main(*map(int, sys.argv[1:])))"""


class ActorError(RuntimeError):
    """Error for actors that failed too often. The message has the last one's traceback, or says how it ended."""


@dataclass
class Window:
    """Complete window of one actor, still in its shared memory; to be given back with `Actors.release`."""

    actor: _Actor
    slot: int
    arrays: Arrays
    """Arrays as `WindowBuffer.load` takes them."""
    state: PolicyState
    """State before the window."""
    moments: Moments
    """Moments of the actor's data, to be merged into the running normalisation."""
    version: int
    """Version of the weights that acted."""
    ended: list[EndedEpisode]


class Actors:
    """Pool of actor processes for one learner.

    :param num_actors: number of processes
    :param policy: the learner's policy; each actor holds a copy and acts with its published weights
    :param make_env: function that returns a `VecEnv`; called in each process
    :param normalize: the learner's normalisation, which the actors' data updates; None where nothing is normalised
    :param buffer: a buffer of one window, as actors fill it
    :param gamma: discount factor of bootstrap values
    :param slots: whole windows of an actor that may wait for the learner
    :param seed: seed of all random numbers; each start of each actor draws another one from it
    :param timeout: seconds that a step of all of an actor's envs may take, and its start `START_SECONDS` more; an actor
        that takes longer counts as hung
    :param max_restarts: restarts of all actors together before training stops
    :raises ValueError: where env or policy cannot be sent to another process
    """

    def __init__(
        self,
        num_actors: int,
        policy: MemoryPolicy,
        make_env: Any,
        normalize: VecNormalize | None,
        buffer: WindowBuffer,
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
        """Reasons of the restarts, in order."""
        self.version = 0
        self._entropy = np.random.SeedSequence(seed).entropy
        self._ready: deque[Window] = deque()
        self._actors: list[_Actor] = []
        state = policy.initial_state(buffer.n_envs)
        moments = {} if normalize is None else layout_of(running_moments(normalize))
        layout = memory_layout(buffer, state, moments, slots)
        self._job = Job(make_env, _copy_to_act(policy), buffer.window, buffer.mask_size, gamma, slots, layout)
        self._job_fd = anonymous_file(_sendable(self._job))
        self._shared_weights = SharedWeights(policy, normalize)
        try:
            self._shared_weights.write(self.version)
            for index in range(num_actors):
                self._actors.append(self._start(index, starts=0))
        except BaseException:
            self.close()
            raise

    def publish(self) -> None:
        """Publish the current policy to the actors; skipped while one still reads the copy to be overwritten."""
        self.version += 1
        self._shared_weights.write(self.version)

    def receive(self) -> Window:
        """Return the next complete window; while waiting for it, restart actors that are dead or hung.

        :raises ActorError: where actors have failed too often
        :raises EnvContractError: where an env returned what no env may return, such as NaN
        """
        self._listen(0.0)
        while not self._ready:
            self._listen(POLL_SECONDS)
        window = self._ready.popleft()
        if self.normalize is not None:
            add_moments(self.normalize, window.moments)
        return window

    def release(self, window: Window) -> None:
        """Give a window's slot back to its actor, unless that has been replaced."""
        if window.actor in self._actors:
            window.actor.free(window.slot)

    def close(self) -> None:
        """End all actors. They have a few seconds to finish their step and close their envs."""
        deadline = time.monotonic() + PATIENCE_AT_THE_END
        with ExitStack() as stack:  # everything runs, last first, even if Ctrl-C interrupts it
            stack.callback(os.close, self._job_fd)
            stack.callback(self._shared_weights.close)
            for actor in self._actors:
                stack.callback(actor.end, deadline)
            for actor in self._actors:
                stack.callback(actor.let_go)
            self._actors, self._ready = [], deque()

    def _listen(self, seconds: float) -> None:
        """Wait up to `seconds` for messages of actors, handle them, and restart actors that are dead or hung."""
        actors: dict[Any, _Actor] = {actor.connection: actor for actor in self._actors}
        for connection in wait(list(actors), seconds):
            self._hear(actors[connection])
        for actor in list(self._actors):
            self._look_after(actor)

    def _hear(self, actor: _Actor) -> None:
        """Handle the messages of an actor that are there as a whole. The rest of another may never come."""
        try:
            messages = actor.inbox.read()
        except (EOFError, OSError):
            self._replace(actor, actor.how_it_ended())
            return
        for message in messages:
            self._handle(actor, message)

    def _handle(self, actor: _Actor, message: Any) -> None:
        actor.note_progress()
        if isinstance(message, WindowDone):
            actor.owed -= 1
            self._ready.append(self._window(actor, message))
        elif isinstance(message, Failed):
            if message.fault is not None:
                raise message.fault
            self._replace(actor, message.reason)

    def _look_after(self, actor: _Actor) -> None:
        if actor.process.poll() is not None and not actor.connection.poll():
            self._replace(actor, actor.how_it_ended())
        elif actor.is_stuck(self.timeout):
            self._replace(
                actor,
                f"an actor has not finished a step of its envs, or its start, for {self.timeout:g} s, or was stopped",
            )

    def _replace(self, actor: _Actor, reason: str) -> None:
        """Kill an actor and start another in its place. Its complete windows stay; an unfinished one is lost."""
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
        warnings.warn(f"actor {actor.index} is restarted with another seed: {reason}", RuntimeWarning, stacklevel=2)
        self._actors.insert(place, self._start(actor.index, actor.starts + 1))

    def _start(self, index: int, starts: int) -> _Actor:
        seed = int(np.random.SeedSequence(self._entropy, spawn_key=(index, starts)).generate_state(1)[0])
        # Large seeds are reserved for evaluation.
        return _Actor(index, starts, seed % 2**29, self._job, self._job_fd, self._shared_weights.fd)

    def _window(self, actor: _Actor, done: WindowDone) -> Window:
        prefix = f"{done.slot}/"
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
        return Window(actor, done.slot, mine, state, moments, done.version, done.ended)


class _Actor:
    """One actor process, with its connection and its shared memory."""

    def __init__(self, index: int, starts: int, seed: int, job: Job, job_fd: int, weights_fd: int) -> None:
        self.index, self.starts = index, starts
        self.memory = SharedArrays(job.layout)
        self.connection, its_end = Pipe()
        its_lifeline, self._lifeline = Pipe(duplex=False)
        fds = [its_end.fileno(), its_lifeline.fileno(), job_fd, weights_fd, self.memory.fd]
        path = "\n".join(map(str, sys.path))
        try:
            # A session of its own: Ctrl-C reaches only the learner, and the env's processes can be killed with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", ENTRY, *map(str, fds), str(seed), path],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                cwd=_folder(),
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                start_new_session=True,
            )
        finally:
            its_end.close()
            its_lifeline.close()
            self.memory.close()
        self.inbox = Inbox(self.connection)
        self.owed = 0
        """Slots that the process has been given and has not filled yet."""
        self._progress = 0
        self._stopped = False
        self.note_progress()
        for slot in range(job.slots):
            self.free(slot)

    def free(self, slot: int) -> None:
        """Tell the process that it may fill a slot. A dead process is ignored here; `Actors` notices it later."""
        with suppress(OSError):
            self.connection.send(slot)
        self.owed += 1
        self.note_progress()

    def note_progress(self) -> None:
        """Restart the clock for its next step."""
        self._last_progress = time.monotonic()

    def is_stuck(self, timeout: float) -> bool:
        """Return True if it owes a window and has made no step for longer than `timeout`.

        A start may take `START_SECONDS` more, unless the process is stopped, as by SIGSTOP. What the process says of
        itself does not count: it may be stopped while it waits for a slot that has been given back meanwhile.
        """
        started, steps = (int(self.memory.arrays[name]) for name in ("started", "steps"))
        stopped = _is_stopped(self.process.pid)
        if started + steps != self._progress or stopped != self._stopped or not self.owed:
            self._progress, self._stopped = started + steps, stopped
            self.note_progress()
        patience = timeout + (0.0 if started or stopped else START_SECONDS)
        return time.monotonic() - self._last_progress > patience

    def how_it_ended(self) -> str:
        """Describe the end of a process that did not report an error."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "an actor has closed its connection"
        return f"an actor ended with exit code {code}" if code >= 0 else f"an actor was killed by {_signal(-code)}"

    def let_go(self) -> None:
        """Close the connection, so that the process ends by itself."""
        self.connection.close()
        self._lifeline.close()

    def end(self, deadline: float) -> None:
        """Wait until `deadline` for the process to end, then kill what is left."""
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the process and all processes that it has started."""
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group of ended processes
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.let_go()
        self.memory.forget()


def _is_stopped(pid: int) -> bool:
    """Return True if a child process is stopped by a signal and has not been continued; False where none can tell."""
    if not hasattr(os, "waitid"):  # macOS has it since Python 3.13
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it has ended, and its exit code has been fetched
        return False


def _folder() -> str | None:
    """Return the working folder of a new process: None for the current one, the root if that was deleted.

    Torch can't be loaded in a deleted folder.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        return os.sep
    return None


def _signal(number: int) -> str:
    """Return the name of a signal, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _copy_to_act(policy: MemoryPolicy) -> MemoryPolicy:
    """Return a copy of the policy on the CPU, without optimizers."""
    # The distribution may hold tensors with a graph, which can't be copied.
    shallow: dict[int, Any] = {id(policy.action_dist): copy.copy(policy.action_dist)}
    shallow.update({id(optimizer): None for optimizer in (policy.optimizer, policy.memory_optimizer)})
    acting: MemoryPolicy = copy.deepcopy(policy, shallow).to("cpu")
    return acting


def check_sendable(make_env: Any) -> None:
    """Refuse an env that can't be sent to actor processes.

    :raises ValueError: naming a way around it
    """
    if sys.platform == "win32":
        raise ValueError("num_actors must be 0 on Windows, where actors have no way to share memory")
    _sendable(make_env)


def _sendable(what: Any) -> bytes:
    """Return an object for the actors as bytes; raise a ValueError if it can't be pickled."""
    try:
        return packed(what)
    except Exception as error:
        raise ValueError(
            f"env, or policy, cannot be sent to actor processes ({type(error).__name__}: {error}); give a function "
            "that returns the env, or num_actors=0, which acts in this process"
        ) from error


@contextmanager
def closing(actors: Actors) -> Iterator[Actors]:
    """Close the actors at the end of the context, also after an error."""
    try:
        yield actors
    finally:
        actors.close()
