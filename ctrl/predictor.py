"""Serving of many clients by one core or policy: what each client's episode has left in memory is kept apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ctrl.core import MemoryCore, require_not_negative, require_positive

Leaves = tuple[Tensor, ...]


class Steps(Protocol):
    """Interface of what a `Predictor` serves: it acts for a batch of clients, with the state passed in and out."""

    def initial_leaves(self) -> Leaves:
        """Return the state of one client before its first step: tensors [1, ...]."""

    def take(
        self, observations: list[Any], leaves: Leaves, reset: Tensor, rewards: list[float | None]
    ) -> tuple[Sequence[Any], Leaves]:
        """Take one step of B clients.

        :param observations: one for each client
        :param leaves: their states, [B, ...] each
        :param reset: [B] bool, true where an observation begins an episode
        :param rewards: of the last actions, None where none was given
        :return: a result for each client, and their next states
        """


class TooManySessionsError(RuntimeError):
    """Raised where a client asks for a session beyond `max_sessions`, and no other has been idle for long enough."""


class _Session:
    """State of one client; whoever holds the lock may use it."""

    def __init__(self, number: int, leaves: Leaves) -> None:
        self.number = number
        self.lock = Lock()
        self.leaves = leaves
        self.begins = True
        self.used = 0.0
        self.is_closed = False


class Predictor:
    """Acts for many clients, each with a state of its own.

        predictor = ctrl.Predictor(core, max_sessions=1000)    # or model.predictor() of an agent
        predictor.reset("client 7")                            # begins an episode
        outputs = predictor.act("client 7", observation)       # as often as wanted
        predictor.close("client 7")

    It may be used by any number of threads. Calls for one client are taken one after another. Calls for different
    clients run side by side with a core; an agent's policy takes one step at a time. A client without a session is
    refused and not served with an empty memory: `reset` opens one.

    At most `max_sessions` are kept. Where there is no room for another, the session that has been idle longest is
    closed, if that is at least `idle_seconds`; else the new client is refused. So a client that is at work is never
    thrown out by others.

    :param served: a core, whose results are outputs [O] as numpy arrays; or anything with the methods of `Steps`. Its
        weights must not change while it is served
    :param max_sessions: largest number of clients at a time
    :param idle_seconds: how long a session must have been idle to be closed for another
    :param clock: returns seconds
    :raises ValueError: where a number is out of range
    """

    def __init__(
        self,
        served: MemoryCore[Any] | Steps,
        *,
        max_sessions: int = 1000,
        idle_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_positive(max_sessions=max_sessions)
        require_not_negative(idle_seconds=idle_seconds)
        self._served: Steps = _CoreSteps(served) if isinstance(served, MemoryCore) else served
        self._max_sessions, self._idle_seconds, self._clock = max_sessions, idle_seconds, clock
        self._sessions: dict[Hashable, _Session] = {}
        self._opened = 0
        self._table = Lock()
        """Guards the dict of sessions; held for a moment only, and never while a step is taken."""

    def reset(self, client: Hashable) -> None:
        """Begin an episode: the next observation of the client is its first. It opens a session where there is none.

        :raises TooManySessionsError: where there is no room for another session
        """
        with self._table:
            if client not in self._sessions:
                self._make_room()
                self._opened += 1
                self._sessions[client] = _Session(self._opened, self._served.initial_leaves())
            session = self._sessions[client]
            session.used = self._clock()
        with session.lock:
            session.begins = True

    def act(self, client: Hashable, observation: Any, *, reward: float | None = None) -> Any:
        """Take one step of a client.

        :param observation: of one env, without a batch axis
        :param reward: of the client's last action, for policies that see it
        :return: the result for this client: an action, or the outputs of a core
        :raises ValueError: where the client has no session, or the observation does not fit; the state then stays
        """
        return self.act_batch([client], [observation], rewards=[reward])[0]

    def act_batch(
        self, clients: Sequence[Hashable], observations: Sequence[Any], *, rewards: Sequence[float | None] | None = None
    ) -> list[Any]:
        """Take one step of several clients at once, which takes less time than one after another.

        :param clients: distinct
        :param observations: one for each client
        :return: the result for each client
        :raises ValueError: as `act`; no state is then changed
        """
        told: list[float | None] = [None] * len(clients) if rewards is None else list(rewards)
        if not clients or len({*clients}) != len(clients) or not len(clients) == len(observations) == len(told):
            raise ValueError(
                f"clients must be distinct, with one observation and reward each, got {len(clients)} clients, "
                f"{len({*clients})} of them distinct, {len(observations)} observations and {len(told)} rewards"
            )
        with self._in_use(clients) as sessions:
            leaves = tuple(torch.cat(parts) for parts in zip(*(session.leaves for session in sessions), strict=True))
            reset = torch.tensor([session.begins for session in sessions], device=leaves[0].device)
            results, after = self._served.take(list(observations), leaves, reset, told)
            for session, *parts in zip(sessions, *(leaf.split(1) for leaf in after), strict=True):
                # Copies, or a small session would keep the tensors of a whole batch alive.
                session.leaves = tuple(part.clone() for part in parts) if len(sessions) > 1 else tuple(parts)
                session.begins, session.used = False, self._clock()
        return list(results)

    def close(self, client: Hashable) -> None:
        """End a client's session, if it has one."""
        with self._table:
            session = self._sessions.pop(client, None)
            if session is not None:
                session.is_closed = True

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self._sessions)

    def __contains__(self, client: Hashable) -> bool:
        """Return True if the client has a session."""
        return client in self._sessions

    def _make_room(self) -> None:
        """Close the session that has been idle longest, if there is no room for another; the table must be locked."""
        if len(self._sessions) < self._max_sessions:
            return
        idle = [(session.used, client) for client, session in self._sessions.items() if not session.lock.locked()]
        used, client = min(idle, key=lambda pair: pair[0], default=(self._clock(), None))
        if not idle or self._clock() - used < self._idle_seconds:
            raise TooManySessionsError(
                f"all {self._max_sessions} sessions are in use, and none has been idle for {self._idle_seconds:g} s; "
                "close one, or give max_sessions a larger number"
            )
        self._sessions.pop(client).is_closed = True

    @contextmanager
    def _in_use(self, clients: Sequence[Hashable]) -> Iterator[list[_Session]]:
        """Lock the sessions of some clients, always in the same order, so that no two calls wait for each other."""
        with self._table:
            missing = [client for client in clients if client not in self._sessions]
            if missing:
                raise _no_session(missing[0])
            sessions = [self._sessions[client] for client in clients]
        with ExitStack() as locks:
            for session in sorted(sessions, key=lambda session: session.number):
                locks.enter_context(session.lock)
            for client, session in zip(clients, sessions, strict=True):
                if session.is_closed:  # while this call waited for it
                    raise _no_session(client)
            yield sessions


def _no_session(client: Hashable) -> ValueError:
    return ValueError(
        f"client {client!r} has no session: call reset(client) first; an idle one may have been closed for another"
    )


class _CoreSteps:
    """Steps of a core: observations are inputs [I], results are outputs [O]."""

    def __init__(self, core: MemoryCore[Any]) -> None:
        self._core = core

    def initial_leaves(self) -> Leaves:
        """Return the initial state of one client."""
        return tuple(self._core.initial_state(1))

    def take(
        self, observations: list[Any], leaves: Leaves, reset: Tensor, rewards: list[float | None]
    ) -> tuple[Sequence[Any], Leaves]:
        """Take one step, see `Steps`."""
        if any(reward is not None for reward in rewards):
            raise ValueError(f"a core takes no reward, got {rewards}")
        core = self._core
        inputs = torch.stack([torch.as_tensor(each, dtype=core.dtype, device=core.device) for each in observations])
        if not bool(torch.isfinite(inputs).all()):
            raise ValueError("observation must be finite")
        with torch.no_grad():
            outputs, state = core.step(inputs, core.make_state(leaves), reset)
        found = outputs.cpu().float() if core.dtype is torch.bfloat16 else outputs.cpu()  # numpy has no bfloat16
        results: Sequence[np.ndarray] = list(found.numpy())
        return results, tuple(state)
