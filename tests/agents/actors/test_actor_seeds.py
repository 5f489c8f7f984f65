"""Random numbers of actors: each actor and each replacement draws its own, and a second run repeats all of them."""

from __future__ import annotations

import os
import signal
from itertools import combinations

import numpy as np
import pytest
from actor_toys import WINDOW, Drawn, StopOnce, make_impala
from agent_toys import AtRolloutEnd
from gymnasium import spaces

from ctrl.agents import MemoryImpala

Start = tuple[int, int]
"""Index of an actor, and the number of its restarts."""


def first_steps(num_actors: int, *, kill_one: bool) -> dict[Start, np.ndarray]:
    """Return the random numbers that each process drew for its first step; nothing is learned.

    These are the two numbers in its observation, and the log-probability of its action. The action is normal, so its
    log-probability is a function of the noise alone and not of the observation.
    """
    env = Drawn(action_space=spaces.Box(-1.0, 1.0, (1,), np.float32))
    model = make_impala(env, "gru", num_actors=num_actors, learning_rate=1e-30, memory_learning_rate=1e-30)
    found: dict[Start, np.ndarray] = {}
    places: dict[int, Start] = {}

    def look(model: MemoryImpala) -> None:
        assert model._actors is not None
        actors = model._actors._actors
        places.update({actor.process.pid % 997: (actor.index, actor.starts) for actor in actors})
        buffer = model.rollout_buffer
        for seen, log_prob in zip(buffer.observations[::WINDOW, 0], buffer.log_probs[::WINDOW, 0], strict=True):
            found.setdefault(places[int(seen[0])], np.array([*seen[1:], log_prob]))
        if kill_one and len(found) == num_actors and not model._actors.restarts:
            os.kill(actors[0].process.pid, signal.SIGKILL)

    model.learn(10**9, [AtRolloutEnd(look), StopOnce(lambda: len(found) == num_actors + kill_one)])
    return found


@pytest.mark.filterwarnings("ignore:actor 0 is restarted with another seed")
def test_each_start_of_each_actor_draws_other_numbers_and_the_same_ones_again() -> None:
    drawn = first_steps(2, kill_one=True)
    assert drawn.keys() == {(0, 0), (1, 0), (0, 1)}
    for one, other in combinations(drawn.values(), 2):
        assert (np.abs(one - other) > 1e-3).all(), "of the env, of numpy and of the action"
    again = first_steps(1, kill_one=False)
    np.testing.assert_allclose(again[0, 0], drawn[0, 0], atol=1e-6)
