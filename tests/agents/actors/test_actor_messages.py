"""Messages in the pipe between actors and learner: they are pickled, so they must be small and hold no windows."""

from __future__ import annotations

import os
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
from actor_toys import WINDOWS, Images, make_impala
from stable_baselines3.common.callbacks import BaseCallback

from ctrl.agents.actors.inbox import Inbox


class WeighedInbox(Inbox):
    """Inbox that records the size in bytes of each message."""

    def __init__(self, connection: Connection, sizes: list[int]) -> None:
        super().__init__(connection)
        self.sizes = sizes

    def load(self, message: bytes) -> Any:
        self.sizes.append(len(message))
        return super().load(message)


class Weigh(BaseCallback):
    """Callback that records the sizes of all messages from the actors."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def _on_training_start(self) -> None:
        for actor in self.model._actors._actors:  # type: ignore[attr-defined]
            actor.inbox = WeighedInbox(actor.connection, self.sizes)

    def _on_step(self) -> bool:
        return True


def bytes_of_windows(n_steps: int, side: int) -> set[int]:
    """Return the sizes in bytes of the pipe's messages about windows in which no episode ends."""
    model = make_impala(Images(side), "gru", num_actors=1, n_steps=n_steps)
    weigh = Weigh()
    model.learn(2 * WINDOWS * n_steps, weigh)
    observations = model.rollout_buffer.observations
    assert observations.nbytes == WINDOWS * n_steps * side**2 and observations.any()
    assert len(weigh.sizes) >= 2 * WINDOWS
    return set(weigh.sizes)


def test_a_message_does_not_grow_with_the_window() -> None:
    small, large = bytes_of_windows(n_steps=4, side=8), bytes_of_windows(n_steps=60, side=64)
    assert small == large and max(large) < 1000


@pytest.mark.parametrize("size", [0, 10, 20_000, 200_000])
def test_messages_are_read_however_they_are_cut(size: int) -> None:
    """The first part of a message does not make the reader wait for the rest of it."""
    ours, theirs = Pipe()
    inbox, sent = Inbox(ours), ["first", "x" * size, (1, None)]
    read, write = Pipe(duplex=False)
    for message in sent:
        threading.Thread(target=write.send, args=[message]).start()
        whole = b""
        while len(whole) < 4 or len(whole) < 4 + int.from_bytes(whole[:4], "big"):
            whole += os.read(read.fileno(), 1 << 20)
        middle = len(whole) // 2
        os.write(theirs.fileno(), whole[:middle])
        assert inbox.read() == []
        theirs_left = whole[middle:]
        received = []
        while theirs_left:
            written = os.write(theirs.fileno(), theirs_left[: 1 << 14])
            theirs_left = theirs_left[written:]
            received += inbox.read()
        assert received == [message]
    theirs.close()
    with pytest.raises(EOFError):
        inbox.read()
