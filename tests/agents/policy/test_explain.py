"""`model.explain`: what an agent does at each step of an episode, and what it looks at."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import BOTH, Everything
from agent_toys import CORES, STAGGERED, ToldEpisodes, make_model, staggered_env
from gymnasium import spaces
from mask_toys import MostlyIllegal
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl import Tier
from ctrl.agents import AttendedTier, Explanation
from ctrl.agents.policy.explain import WINDOW

STEPS = WINDOW + 19
ATTENTIVE = ("compressive", "transformer_xl", "gtrxl")


def observations(steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32)


def shaken(model: Any) -> Any:
    """Move the weights, so that actions and attention differ from step to step."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@BOTH
@pytest.mark.parametrize("core", ATTENTIVE)
def test_actions_and_values_are_those_of_predict(core: str, make: Any) -> None:
    model, seen = shaken(make(staggered_env(), core)), observations()
    found = model.explain(seen)
    state, chosen = None, []
    for step in range(STEPS):
        action, state = model.predict(seen[step], state, np.array([step == 0]), deterministic=True)
        chosen.append(int(action))
    assert found.actions.tolist() == chosen and len(set(chosen)) > 1
    assert found.probabilities is not None and found.probabilities.shape == (STEPS, 3)
    assert found.probabilities.argmax(axis=1).tolist() == chosen
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found.log_prob), found.probabilities.max(axis=1), rtol=1e-4)


def test_a_rollout_is_explained_as_it_was_acted() -> None:
    """Log-probabilities and values are those that acting stored, over the longest episode of the buffer."""
    model = shaken(make_model(DummyVecEnv([lambda: ToldEpisodes((24,))])))
    model.learn(24)
    buffer = model.rollout_buffer
    policy = model.policy
    kept = {name: array.copy() for name, array in buffer.arrays().items()}
    model.collect_rollouts(model.env, model._init_callback(None), buffer, 24)
    after = buffer.arrays()
    assert not np.array_equal(kept["values"], after["values"])
    found = model.explain(buffer.observations[:, 0], buffer.actions[:, 0, 0])
    np.testing.assert_allclose(found.log_prob, buffer.log_probs[:, 0], atol=1e-5)
    np.testing.assert_allclose(found.values, buffer.values[:, 0], atol=1e-4)
    assert not policy.training


def test_shapes_and_what_each_number_means() -> None:
    memory = [[Tier(3), Tier(4, 2, "conv")], [Tier(5)]]
    kwargs = {"core_kwargs": {"width": 8, "heads": 4, "layers": 2, "memory": memory}}
    found = shaken(make_model(staggered_env(), policy_kwargs=kwargs)).explain(observations())
    assert isinstance(found, Explanation)
    shapes = [[(tier.span, tier.attention.shape, tier.age.shape) for tier in tiers] for tiers in found.layers]
    assert shapes == [
        [(1, (STEPS, 4, 3), (STEPS, 3)), (2, (STEPS, 4, 4), (STEPS, 4))],
        [(1, (STEPS, 4, 5), (STEPS, 5))],
    ]
    for tiers in found.layers:
        np.testing.assert_allclose(sum(tier.attention.sum(axis=2) for tier in tiers), 1, rtol=1e-5)
        np.testing.assert_allclose(sum(tier.by_step().sum(axis=1) for tier in tiers), 1, rtol=1e-5)
        for tier in tiers:
            assert not np.triu(tier.by_step(), 1).any()  # nothing looks ahead
            assert not tier.attention[np.broadcast_to(tier.age[:, None] < 0, tier.attention.shape)].any()
    raw, compressed = found.layers[0]
    assert raw.age[6].tolist() == [0, 1, 2] and compressed.age[6].tolist() == [3, 5, -1, -1]
    # Steps 2 and 3 are merged at step 6, which is the second slot: two raw slots leave as a third one comes.
    assert np.flatnonzero(~np.isnan(compressed.error))[:3].tolist() == [3, 5, 7]
    assert np.isnan(raw.error).all()


def test_attention_by_step_and_mean_age_by_hand() -> None:
    """At step 4, a head gives 0.25 to step 4 and 0.75 to a slot of steps 1 and 2, the other one all to step 4."""
    nan = np.full(5, np.nan, dtype=np.float32)
    raw = AttendedTier(1, np.zeros((5, 2, 1), np.float32), np.full((5, 1), -1), nan)
    merged = AttendedTier(2, np.zeros((5, 2, 1), np.float32), np.full((5, 1), -1), nan)
    raw.attention[4, :, 0], raw.age[4, 0] = [0.25, 1.0], 0
    merged.attention[4, 0, 0], merged.age[4, 0] = 0.75, 2
    np.testing.assert_allclose(raw.by_step()[4], [0, 0, 0, 0, 0.625])
    np.testing.assert_allclose(merged.by_step()[4], [0, 0.1875, 0.1875, 0, 0])
    np.testing.assert_allclose(raw.by_age()[4], [0.625, 0, 0, 0, 0])
    np.testing.assert_allclose(merged.by_age()[4], [0, 0, 0.1875, 0.1875, 0])
    np.testing.assert_array_equal(merged.mean_age()[4], [2, np.nan])
    assert not merged.by_step()[:4].any()


def test_attention_to_a_step_depends_on_what_it_showed() -> None:
    """One step that shows something else changes how much later steps look at it, and nothing before it."""
    options = {"core_kwargs": {"memory": [Tier(20)], "width": 8, "heads": 2}}
    model = shaken(make_model(staggered_env(), policy_kwargs=options))
    seen, changed = (np.ones((12, 3), dtype=np.float32) for _ in range(2))
    changed[4] = [-2, 1, 3]
    plain, found = (model.explain(each, np.zeros(12, int)).layers[0][0].by_step() for each in (seen, changed))
    assert np.abs(found[:4] - plain[:4]).max() < 1e-6
    assert np.abs(found[5:, 4] - plain[5:, 4]).min() > 1e-5


def test_windows_of_any_length_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(make_model(staggered_env()))
    whole = model.explain(observations())
    monkeypatch.setattr("ctrl.agents.policy.explain.WINDOW", 7)
    again = model.explain(observations())
    np.testing.assert_allclose(again.values, whole.values, atol=1e-5)
    for one, other in zip(chain(*again.layers), chain(*whole.layers), strict=True):
        np.testing.assert_array_equal(one.age, other.age)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
        np.testing.assert_array_equal(np.isnan(one.error), np.isnan(other.error))  # which slots are formed, and when


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.MultiBinary(3), 6),
        (spaces.Box(-0.3, 0.4, (2, 2), np.float32), None),
    ],
    ids=["multi-discrete", "multi-binary", "box"],
)
def test_actions_of_all_kinds(space: spaces.Space[Any], choices: int | None) -> None:
    found = shaken(make_model(staggered_env(action_space=space))).explain(observations(9))
    assert found.actions.shape == (9, *(space.shape or ())) and all(space.contains(action) for action in found.actions)
    assert (None if found.probabilities is None else found.probabilities.shape[1]) == choices
    if isinstance(space, spaces.MultiBinary):
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities.reshape(9, 3, 2).sum(axis=2), 1, rtol=1e-5)


def test_dicts_with_images() -> None:
    model = make_model(Everything(), policy="MultiInputMemoryPolicy")
    space: Any = Everything.observation_space
    seen = {key: np.stack([space[key].sample() for _ in range(4)]) for key in space.spaces}
    assert model.explain(seen).values.shape == (4,)


def test_masks_are_kept_to() -> None:
    env = MostlyIllegal(spaces.Discrete(9), (30,))
    model = shaken(make_model(env))
    seen, masks = [env.reset()[0]], [env.action_masks()]
    for _ in range(6):
        seen.append(env.step(masks[-1].argmax())[0])
        masks.append(env.action_masks())
    found = model.explain(np.stack(seen), action_masks=np.stack(masks))
    assert found.probabilities is not None
    assert not found.probabilities[~np.stack(masks)].any()
    assert np.stack(masks)[np.arange(7), found.actions].all()


def test_rewards_are_seen() -> None:
    model = shaken(make_model(staggered_env(), policy_kwargs={"previous_reward": True}, normalize_values=False))
    one, other = (model.explain(observations(9), rewards=np.full(9, value)).values for value in (0.0, 5.0))
    assert one[0] == pytest.approx(other[0]) and np.abs(one - other)[1:].min() > 1e-6
    with pytest.raises(ValueError, match="previous_reward=True and needs rewards"):
        model.explain(observations(9))


@pytest.mark.parametrize("core", sorted({*CORES} - {*ATTENTIVE}))
def test_cores_without_attention_are_refused(core: str) -> None:
    with pytest.raises(
        ValueError, match=r"needs a core with attention \(compressive, .*\), got \w+, which has no slots"
    ):
        make_model(staggered_env(), core).explain(observations(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 3)),), "observations must have one leading axis .* at least one step"),
        ((np.zeros(3, np.float32),), "got a single one|observation shape"),
        ((np.zeros((4, 2), np.float32),), "observation shape"),
        ((np.full((4, 3), np.nan, np.float32), np.zeros(4, int)), "observations is not finite"),
        ((observations(4), np.zeros(5, int)), r"actions must be numbers of shape \(1, 4\)"),
        ((observations(4), np.full(4, 3)), r"actions must be in Discrete\(3\), got values from 3 to 3"),
        ((observations(4), None, np.zeros(4)), "takes no rewards"),
        ((observations(4), np.zeros(4, int), None, np.ones((3, 3))), "action_masks must be"),
        ((observations(4), np.zeros(4, int), None, np.zeros((4, 3))), "action_masks .*must allow an action"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(staggered_env()).explain(*arguments)


# Windows of recorded steps


def test_recorded_windows_are_those_of_the_buffer() -> None:
    model = make_model(staggered_env()).learn(72)
    buffer, policy = model.rollout_buffer, model.policy
    stored = buffer.windows(policy)
    observed = buffer.sequences(buffer.observations).numpy()
    state, starts = stored.core_state, stored.reset.clone()
    starts[:, 0] = True  # so that nothing before the window counts
    found = policy.windows(observed, stored.actions.numpy(), starts.numpy(), core_state=state)
    assert torch.equal(found.observations, stored.observations) and torch.equal(found.actions, stored.actions)
    assert torch.equal(found.previous_action[:, 1:], stored.previous_action[:, 1:])
    assert len(STAGGERED) == buffer.n_envs
