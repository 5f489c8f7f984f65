"""Messages in the pipe between actors and learner: they are pickled, so they must be small and hold no windows."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any

from actor_toys import WINDOWS, Images, make_impala
from stable_baselines3.common.callbacks import BaseCallback


class Weighed:
    """Connection that records the size in bytes of each message it receives."""

    def __init__(self, connection: Connection, sizes: list[int]) -> None:
        self.connection, self.sizes = connection, sizes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def recv(self) -> Any:
        message = self.connection.recv_bytes()
        self.sizes.append(len(message))
        return pickle.loads(message)


class Weigh(BaseCallback):
    """Callback that records the sizes of all messages from the actors."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def _on_training_start(self) -> None:
        for actor in self.model._actors._actors:  # type: ignore[attr-defined]
            actor.connection = Weighed(actor.connection, self.sizes)

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
