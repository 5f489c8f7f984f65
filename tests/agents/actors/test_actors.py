"""Faults of real actors: they are noticed in time, training goes on, and no process or memory is left.

Time limits are those in the docstring of `MemoryImpala`, plus the time that an actor takes to start on a busy machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import (
    UPDATE,
    WINDOW,
    FaultyEpisodes,
    StopOnce,
    alive,
    children,
    descriptors,
    make_impala,
    named_memory,
    placed_makers,
    wait_until,
)
from agent_toys import STAGGERED, AtRolloutEnd
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl.agents import ActorError, MemoryImpala, NonFiniteError
from ctrl.agents.actors.pool import POLL_SECONDS
from ctrl.agents.actors.process import PATIENCE_AT_THE_END
from ctrl.agents.impala.trajectories import trajectory_batch

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what is left is looked up in /proc")
START = 20.0
"""Number of seconds that an actor may take to start here."""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Check that each test leaves no process, no shared memory and no pipe behind."""
    before, names = (children(), descriptors()), named_memory()
    yield
    wait_until(lambda: children() == before[0], 1.0)  # killed processes take a moment to end
    assert descriptors() == before[1]
    wait_until(lambda: named_memory() <= names, 1.0)  # semaphores of other processes come and go


def faulty(fault: str = "none", *, actors: int = 1, **options: Any) -> MemoryImpala:
    """Return an agent with a fault in one of its three envs."""
    told = {name: options.pop(name) for name in ("at", "once", "helper") if name in options}
    makes = placed_makers()
    makes[1] = lambda: FaultyEpisodes(fault, lengths=STAGGERED[1], copy=1, **told)
    return make_impala(DummyVecEnv(makes), "gru", num_actors=actors, **options)  # type: ignore[arg-type]


def seeds(model: MemoryImpala) -> list[int]:
    """Return the seeds on the command lines of the running actors."""
    assert model._actors is not None
    lines = [Path(f"/proc/{actor.process.pid}/cmdline").read_bytes() for actor in model._actors._actors]
    return [int(line.split(b"\0")[8]) for line in lines if line]  # an actor that was just killed has none


def assert_contiguous(model: MemoryImpala) -> None:
    """Check that each window comes from one process, and that its steps follow each other."""
    windows = trajectory_batch(model.rollout_buffer, model.policy)
    _, episode, step, place = torch.cat([windows.windows.observations, windows.following[:, None]], 1).unbind(2)  # type: ignore[list-item]
    assert torch.equal(place, place[:, :1].expand_as(place))
    first = torch.cat([windows.windows.reset, windows.following_starts[:, None]], dim=1)
    assert torch.equal(step[:, 1:], torch.where(first[:, 1:], 0, step[:, :-1] + 1))
    assert torch.equal(episode[:, 1:], episode[:, :-1] + first[:, 1:])


def test_a_killed_actor_is_replaced() -> None:
    """Its unfinished window is lost. Its complete windows and the other actor's windows are not."""
    model = faulty(actors=2)
    killed: list[float] = []
    noticed: list[float] = []
    told: list[list[int]] = []
    places: set[int] = set()

    def kill_one(model: MemoryImpala) -> None:
        assert_contiguous(model)
        told.append(seeds(model))
        places.update(model.rollout_buffer.observations[:, 0, 3].astype(int))
        assert model._actors is not None
        if len(places) == 2 and not killed:
            os.kill(model._actors._actors[0].process.pid, signal.SIGKILL)
            killed.append(time.monotonic())
        elif model._actors.restarts and not noticed:
            noticed.append(time.monotonic())

    with pytest.warns(RuntimeWarning, match="actor 0 is restarted with another seed: an actor was killed by SIGKILL"):
        model.learn(10_000 * UPDATE, [AtRolloutEnd(kill_one), StopOnce(lambda: len(places) == 3)])
    assert noticed[0] - killed[0] < 2 * POLL_SECONDS + 1
    assert told[-1][0] != told[0][0] and told[-1][1] == told[0][1]
    assert model.logger.name_to_value["time/actor_restarts"] == 1


def test_a_death_in_a_window_is_noticed_in_half_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner waits: there is no other actor, and the second window is half written.

    A process that the env has started lives on and holds the connection open. So the learner must look for the death.
    """
    died, slack = tmp_path / "died", 1.5
    model = faulty("killed", once=died, at=WINDOW + 3, helper=True)
    warned: list[tuple[float, str]] = []
    looked: list[int] = []

    def look(model: MemoryImpala) -> None:
        assert_contiguous(model)
        looked.append(len(set(model.rollout_buffer.observations[:, 0, 3])))

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="actor 0 is restarted")
        monkeypatch.setattr(warnings, "showwarning", lambda told, *_: warned.append((time.time(), str(told))))
        model.learn(2 * UPDATE, AtRolloutEnd(look))
    assert [told for _, told in warned] == [
        "actor 0 is restarted with another seed: an actor was killed by SIGKILL",
    ]
    assert warned[0][0] - died.stat().st_mtime < 0.5 + slack
    assert looked == [2, 1], "the first window of the dead, all others of the one in its place"
    assert model.logger.name_to_value["time/actor_restarts"] == 1


def test_an_actor_that_hangs_is_replaced(tmp_path: Path) -> None:
    """The learner waits meanwhile, because there is no other actor."""
    model = faulty("hanging", once=tmp_path / "hung", actor_timeout=2.0, at=UPDATE // 3 + 5)
    times: list[float] = []

    def look(model: MemoryImpala) -> None:
        assert_contiguous(model)
        times.append(time.monotonic())

    with pytest.warns(RuntimeWarning, match="an actor has not finished a step of its envs, or its start, for 2 s"):
        model.learn(3 * UPDATE, AtRolloutEnd(look))
    assert len(times) == 3
    assert 2.0 < times[1] - times[0] < 2.0 + 2 * POLL_SECONDS + START
    assert model.logger.name_to_value["time/actor_restarts"] == 1


@pytest.mark.parametrize("moment", ["while it starts", "while it acts", "while it waits"])
def test_a_stopped_actor_is_replaced(moment: str) -> None:
    """It may hold a lock, or have said that it waits. The learner does not wait for it anywhere, nor does `close`."""
    model = faulty(actors=1, actor_timeout=2.0, window_slots=2)
    stopped: list[float] = []

    def stop(model: MemoryImpala) -> None:
        assert model._actors is not None
        (actor,) = model._actors._actors
        if stopped:
            return
        if moment == "while it waits":
            done = (model.num_timesteps // (WINDOW * model.n_envs) + 2) * WINDOW
            wait_until(lambda: int(actor.memory.arrays["steps"]) == done, START)
            time.sleep(0.1)
        os.kill(actor.process.pid, signal.SIGSTOP)
        stopped.append(time.monotonic())

    class AtStart(StopOnce):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            if moment == "while it starts":
                stop(self.model)  # type: ignore[arg-type]

    def restarted() -> bool:
        return model._actors is not None and model._actors.restarts == 1

    with pytest.warns(RuntimeWarning, match="for 2 s, or was stopped"):
        model.learn(10_000 * UPDATE, [AtStart(restarted), AtRolloutEnd(stop)])
    assert 1.9 < time.monotonic() - stopped[0] < 2.0 + 2 * POLL_SECONDS + PATIENCE_AT_THE_END + START


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_actors_are_replaced_whenever_they_are_stopped(number: signal.Signals) -> None:
    """At 20 random moments, also while windows are sent, weights read and slots waited for."""
    model = faulty(actors=2, actor_timeout=1.0, max_restarts=1000)
    random, hit = np.random.default_rng(3), list[int]()
    over = threading.Event()

    def hurt() -> None:
        while not over.wait(random.uniform(0.5, 3.0)):
            actors = None if model._actors is None else model._actors._actors
            if actors and (actor := actors[int(random.integers(len(actors)))]).process.poll() is None:
                os.kill(actor.process.pid, number)
                hit.append(actor.process.pid)

    thread = threading.Thread(target=hurt)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.learn(10**9, StopOnce(lambda: len(hit) >= 20, seconds=600.0))
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("fault", "at", "restarts", "messages"),
    [
        # Not taken for the learner's own pipe, which breaks where the learner is gone.
        ("raising", 10, 1, ["Traceback", "BrokenPipeError: the cable is out", "in maybe_go_wrong"]),
        ("exiting", 0, 0, ["an actor ended with exit code 7"]),
        ("unpickling", 0, 0, ["Traceback", "OSError: no such game", "in __setstate__"]),
    ],
    ids=["raises in a step", "exits in reset", "dies at its start"],
)
def test_after_too_many_failures_training_stops_with_the_reason(
    fault: str, at: int, restarts: int, messages: list[str]
) -> None:
    model = faulty(fault, at=at, max_restarts=restarts)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ActorError) as caught:
            model.learn(3 * UPDATE)
    assert len(warned) == restarts
    assert all("actor 0 is restarted with another seed: Traceback" in str(each.message) for each in warned)
    message = str(caught.value)
    assert f"actors failed {restarts + 1} times, more often than max_restarts = {restarts}" in message
    for part in messages:
        assert part in message
    assert model._actors is None


def test_what_is_not_finite_stops_training_at_once() -> None:
    """The fault does not lie in the process, so a restart would not help."""
    with pytest.raises(NonFiniteError, match="reward is not finite at step .*: env 1"):
        faulty("nan").learn(3 * UPDATE)


def test_the_end_of_training_and_an_exception_leave_nothing() -> None:
    """A process that the env has started and not ended is ended too. Another call of `learn` draws other seeds."""
    model = faulty(helper=True)
    told: list[list[int]] = []
    started: set[int] = set()

    def look(model: MemoryImpala) -> None:
        told.append(seeds(model))
        started.update(children())
        assert len(children()) == 2, "the actor, and its env's process"
        if len(told) == 3:
            raise KeyError("mine")

    model.learn(2 * UPDATE, AtRolloutEnd(look))
    wait_until(lambda: not any(map(alive, started)), 1.0)
    assert model._actors is None
    with pytest.raises(KeyError, match="mine"):
        model.learn(2 * UPDATE, AtRolloutEnd(look))
    wait_until(lambda: not any(map(alive, started)), 1.0)
    assert len(started) == 4
    assert told[0] == told[1] != told[2]


def test_neither_side_runs_away() -> None:
    """Actors wait for a slow learner once the window slots are full."""
    model = faulty(actors=2, window_slots=3)
    lags: list[int] = []
    means: list[float] = []
    logged: list[float] = []

    def be_slow(model: MemoryImpala) -> None:
        assert model._actors is not None
        if means:
            logged.append(model.logger.name_to_value["train/policy_lag"])
        means.append(float(model._lags.mean()))
        steps = [actor.memory.arrays["steps"] for actor in model._actors._actors]
        if not all(steps):
            return  # one is still starting
        received = model.num_timesteps // (WINDOW * model.n_envs)
        wait_until(lambda: sum(map(int, steps)) == (received + 2 * 3) * WINDOW, START)
        time.sleep(0.1)
        assert sum(map(int, steps)) == (received + 2 * 3) * WINDOW, "whole windows that wait, and no step more"
        lags.extend(model._lags)

    model.learn(1000 * UPDATE, [AtRolloutEnd(be_slow), StopOnce(lambda: len(lags) >= 32)])
    assert 0 < max(lags) <= -(-2 * 3 // model.windows_per_update) + 1
    assert logged == means[:-1] and max(logged) > 0


SCRIPT = """
    from actor_toys import FaultyEpisodes, make_impala
    from stable_baselines3.common.vec_env import DummyVecEnv
    from pathlib import Path
    import sys

    marker = Path(sys.argv[2])
    env = DummyVecEnv([lambda: FaultyEpisodes(sys.argv[1], at=60, once=marker, helper=True)])
    make_impala(env, "gru", num_actors=1).learn(10**9)
"""


@pytest.mark.parametrize(
    ("number", "fault", "code"),
    [(signal.SIGINT, "none", {1, -signal.SIGINT}), (signal.SIGKILL, "hanging", {-signal.SIGKILL})],
    ids=["Ctrl-C", "killed while an env hangs"],
)
def test_actors_end_with_their_learner(number: signal.Signals, fault: str, code: set[int], tmp_path: Path) -> None:
    """An actor whose env hangs ends too, and so does the process that its env has started."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    marker = tmp_path / "marker"
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, sys.path)])
    learner = subprocess.Popen(
        [sys.executable, str(script), fault, str(marker)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(marker.exists, 2 * START)
        started = children() - {learner.pid}
        assert len(started) == 2, "the actor, and its env's process"
        os.killpg(learner.pid, number)  # as a terminal does it
        wait_until(lambda: not any(map(alive, started)), PATIENCE_AT_THE_END + 1.5)
        assert learner.wait(START) in code
    finally:
        learner.kill()
        learner.wait()
