"""`model.predictor()`: the actions of each client are those of `predict` for it alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import BOTH
from agent_toys import make_model, staggered_env
from gymnasium import spaces

CLIENTS, STEPS = 5, 40


def stream(client: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a client's observations [T, 3], [T] true where an episode begins, and the rewards before each step."""
    random = np.random.default_rng(client)
    begins = random.random(STEPS) < 0.15
    begins[0] = True
    return random.normal(size=(STEPS, 3)).astype(np.float32), begins, random.normal(size=STEPS)


def unlike(model: Any) -> Any:
    """Move the weights, so that actions depend on the past."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def alone(model: Any, client: int, *, told: bool) -> list[np.ndarray]:
    state, actions = None, []
    for observation, begins, reward in zip(*stream(client), strict=True):
        options = {"reward": [reward]} if told else {}
        action, state = model.predict(observation[None], state, np.array([begins]), deterministic=True, **options)
        actions.append(action[0])
    return actions


@BOTH
@pytest.mark.parametrize("core", ["compressive", "lstm"])
@pytest.mark.parametrize("told", [False, True], ids=["", "rewards"])
def test_clients_in_threads_get_the_actions_of_predict(core: str, told: bool, make: Any) -> None:
    space = spaces.Box(-2.0, 2.0, (2,), np.float32)
    model = unlike(make(staggered_env(action_space=space), core, policy_kwargs={"previous_reward": told}))
    predictor = model.predictor()

    def serve(client: int) -> list[np.ndarray]:
        actions = []
        for observation, begins, reward in zip(*stream(client), strict=True):
            if begins:
                predictor.reset(client)
            actions.append(predictor.act(client, observation, reward=reward if told else None))
        return actions

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(serve, range(CLIENTS)))
    for client in range(CLIENTS):
        np.testing.assert_array_equal(found[client], alone(model, client, told=told))


def test_a_batch_of_clients_gets_the_same_actions() -> None:
    model = unlike(make_model(staggered_env()))
    predictor, expected = model.predictor(), [alone(model, client, told=False) for client in range(CLIENTS)]
    for t in range(STEPS):
        for client in range(CLIENTS):
            if stream(client)[1][t]:
                predictor.reset(client)
        actions = predictor.act_batch(range(CLIENTS), [stream(client)[0][t] for client in range(CLIENTS)])
        assert [int(action) for action in actions] == [int(expected[client][t]) for client in range(CLIENTS)]


def test_training_on_does_not_change_what_is_served() -> None:
    model = make_model(staggered_env())
    predictor = model.predictor()
    before = {name: tensor.clone() for name, tensor in predictor._served._policy.state_dict().items()}  # type: ignore[attr-defined]
    model.learn(72)
    after = predictor._served._policy.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rewards_that_are_missing_are_refused() -> None:
    predictor = make_model(staggered_env(), policy_kwargs={"previous_reward": True}).predictor()
    seen = np.zeros(3, dtype=np.float32)
    for client in (1, 2):
        predictor.reset(client)
        predictor.act(client, seen)  # no reward comes before the first step
    with pytest.raises(ValueError, match=r"needs reward=, got None"):
        predictor.act(1, seen)
    with pytest.raises(ValueError, match=r"reward must be given for all clients or for none, got \[0.5, None\]"):
        predictor.act_batch([1, 2], [seen, seen], rewards=[0.5, None])
    predictor.reset(2)
    predictor.act_batch([1, 2], [seen, seen], rewards=[0.5, None])


def test_observations_that_do_not_fit_are_refused() -> None:
    predictor = make_model(staggered_env()).predictor()
    predictor.reset(1)
    for wrong, words in ((np.zeros((2, 3)), "shape"), (np.full(3, np.nan), "finite")):
        with pytest.raises(ValueError, match=words):
            predictor.act(1, wrong.astype(np.float32))
