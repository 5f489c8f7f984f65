"""`Predictor`: every client has a state of its own, whatever other clients and threads do, and sessions are bounded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from test_laws import INPUTS, build

import ctrl
from ctrl import MemoryCore, Predictor, TooManySessionsError

CLIENTS, STEPS = 7, 30


class Watch:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def stream(client: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a client's observations [T, I], and [T] true where it begins an episode."""
    random = np.random.default_rng(client)
    begins = random.random(STEPS) < 0.1
    begins[0] = True
    return random.normal(size=(STEPS, INPUTS)).astype(np.float32), begins


def alone(core: MemoryCore[Any], client: int) -> np.ndarray:
    """Return the outputs [T, O] of a client that has the core to itself."""
    observations, begins = stream(client)
    state, outputs = core.initial_state(1), []
    for observation, reset in zip(observations, begins, strict=True):
        with torch.no_grad():
            output, state = core.step(torch.from_numpy(observation[None]), state, torch.tensor([reset]))
        outputs.append(output[0].numpy())
    return np.stack(outputs)


@pytest.mark.parametrize("name", ["compressive, most missed", "the paper's", "lstm", "feedforward"])
def test_clients_in_many_threads_are_served_as_if_each_were_alone(name: str) -> None:
    """Bit for bit: each step is a batch of one."""
    core = build(name)
    predictor = Predictor(core)
    started = threading.Barrier(CLIENTS)

    def serve(client: int) -> np.ndarray:
        started.wait()
        outputs = []
        for observation, begins in zip(*stream(client), strict=True):
            if begins:
                predictor.reset(client)
            outputs.append(predictor.act(client, observation))
        return np.stack(outputs)

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(serve, range(CLIENTS)))
    for client in range(CLIENTS):
        np.testing.assert_array_equal(found[client], alone(core, client))
    assert len(predictor) == CLIENTS


def test_a_batch_of_clients_is_served_as_one_after_another() -> None:
    core = build("compressive, most missed")
    predictor, random = Predictor(core), np.random.default_rng(0)
    expected = [alone(core, client) for client in range(CLIENTS)]
    at = [0] * CLIENTS
    while min(at) < STEPS:
        chosen = [
            client for client in random.permutation(CLIENTS).tolist() if at[client] < STEPS and random.random() < 0.6
        ]
        if not chosen:
            continue
        for client in chosen:
            if stream(client)[1][at[client]]:
                predictor.reset(client)
        outputs = predictor.act_batch(chosen, [stream(client)[0][at[client]] for client in chosen])
        for client, output in zip(chosen, outputs, strict=True):
            np.testing.assert_allclose(output, expected[client][at[client]], rtol=0, atol=1e-5)
            at[client] += 1


def test_calls_for_overlapping_clients_do_not_wait_for_each_other_for_ever() -> None:
    """Two batches in opposite orders, over and over; a deadlock would leave a thread alive."""
    predictor = Predictor(build("gru"))
    for client in range(3):
        predictor.reset(client)

    def serve(clients: list[int]) -> None:
        for _ in range(60):
            predictor.act_batch(clients, [np.zeros(INPUTS)] * len(clients))

    threads = [threading.Thread(target=serve, args=(order,), daemon=True) for order in ([0, 1, 2], [2, 1, 0], [1, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)


def test_a_client_without_a_session_is_refused() -> None:
    predictor = Predictor(build("gru"))
    with pytest.raises(ValueError, match=r"client 'x' has no session: call reset\(client\) first"):
        predictor.act("x", np.zeros(INPUTS))
    predictor.reset("x")
    predictor.act("x", np.zeros(INPUTS))
    predictor.close("x")
    predictor.close("x")
    assert "x" not in predictor and len(predictor) == 0
    with pytest.raises(ValueError, match="client 'x' has no session"):
        predictor.act("x", np.zeros(INPUTS))


def test_only_idle_sessions_make_room_for_others() -> None:
    watch = Watch()
    predictor = Predictor(build("gru"), max_sessions=2, idle_seconds=10.0, clock=watch)
    for client in ("a", "b"):
        predictor.reset(client)
        watch.now += 4.0
    predictor.act("a", np.zeros(INPUTS))  # a: 8 s, b: 4 s
    watch.now = 13.0
    with pytest.raises(TooManySessionsError, match="all 2 sessions are in use, and none has been idle for 10 s"):
        predictor.reset("c")
    assert "a" in predictor and "b" in predictor
    watch.now = 14.0
    predictor.reset("c")
    assert "a" in predictor and "b" not in predictor and "c" in predictor
    predictor.reset("a")  # a session that exists needs no room


@pytest.mark.parametrize("wrong", [np.zeros(INPUTS + 1), np.full(INPUTS, np.nan), np.zeros((1, INPUTS))], ids=str)
def test_a_refused_observation_leaves_the_state_as_it_was(wrong: np.ndarray) -> None:
    core = build("gru")
    predictor, other = Predictor(core), Predictor(core)
    first, second = np.ones(INPUTS), np.arange(INPUTS)
    for each in (predictor, other):
        each.reset(1)
        each.act(1, first)
    with pytest.raises(ValueError, match="inputs must be|observation must be finite"):
        predictor.act(1, wrong)
    np.testing.assert_array_equal(predictor.act(1, second), other.act(1, second))


@pytest.mark.parametrize(
    ("clients", "count", "words"),
    [([], 0, "got 0 clients"), ([1, 1], 2, "got 2 clients, 1 of them distinct"), ([1, 2], 1, "1 observations")],
    ids=str,
)
def test_batches_that_do_not_fit_are_refused(clients: list[int], count: int, words: str) -> None:
    predictor = Predictor(build("gru"))
    for client in (1, 2):
        predictor.reset(client)
    with pytest.raises(ValueError, match=words):
        predictor.act_batch(clients, [np.zeros(INPUTS)] * count)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"max_sessions": 0}, "max_sessions must be a whole number"), ({"idle_seconds": -1.0}, "idle_seconds must be")],
    ids=str,
)
def test_wrong_bounds_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctrl.Predictor(build("gru"), **options)


def test_sessions_do_not_keep_the_tensors_of_a_batch_alive() -> None:
    predictor = Predictor(build("lstm"))
    for client in range(5):
        predictor.reset(client)
    predictor.act_batch(range(5), [np.zeros(INPUTS)] * 5)
    for session in predictor._sessions.values():
        assert all(leaf.untyped_storage().nbytes() == leaf.nbytes for leaf in session.leaves)
