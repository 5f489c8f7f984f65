"""Method `predict`: a state that the caller carries, and the same behaviour as in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import CORES, fill_once, make_model, makers, set_units, staggered_env
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl.agents import MemoryPPO, MlpMemoryPolicy
from ctrl.agents.policy.memory_policy import draw
from ctrl.agents.policy.predicting import state_from_numpy

Array = np.ndarray
ENVS = 3


def trained(core: str = "compressive", **options: Any) -> MemoryPPO:
    """Return an agent with a rollout in its buffer, whose actions depend on its memory."""
    model = make_model(staggered_env(), core, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    set_units(model.policy)
    fill_once(model)
    return model


def observations(steps: int, envs: int = ENVS) -> Array:
    return np.random.default_rng(0).normal(size=(steps, envs, 3)).astype(np.float32)


def play(model: MemoryPPO, seen: Array, starts: Array | None = None) -> tuple[Array, list[Any]]:
    """Return the deterministic actions, and the states after each step."""
    state, actions, states = None, [], []
    for step, obs in enumerate(seen):
        action, state = model.predict(obs, state, None if starts is None else starts[step], deterministic=True)
        actions.append(action)
        states.append(state)
    return np.array(actions), states


@pytest.mark.parametrize("previous_reward", [False, True])
@pytest.mark.parametrize("core", CORES)
def test_predict_is_acting(core: str, previous_reward: bool) -> None:
    """Replay a rollout through `predict`, with the sampled actions put into its state."""
    model = trained(core, policy_kwargs={"previous_reward": previous_reward})
    buffer = model.rollout_buffer
    state: Any = None
    for step in range(buffer.buffer_size):
        starts = buffer.episode_starts[step].astype(bool)
        rewards = told_rewards(buffer, step) if previous_reward else None
        latent_state = (
            model.policy.initial_state(ENVS) if state is None else state_from_numpy(model.policy, state, ENVS)
        )
        if previous_reward:
            latent_state = latent_state._replace(previous_reward=model.policy.encode_reward(rewards))  # type: ignore[arg-type]
        obs = torch.as_tensor(buffer.observations[step])
        with torch.no_grad():
            value = model.policy.values_after(obs, latent_state, torch.as_tensor(starts))
        acted = model.policy.actor(latent_state).act(obs, torch.as_tensor(starts), deterministic=True)
        np.testing.assert_allclose(value, buffer.values[step], rtol=3e-5, atol=1e-5)
        action, state = model.predict(buffer.observations[step], state, starts, deterministic=True, reward=rewards)
        assert action.tolist() == acted.actions.tolist()
        sampled = model.policy.encode_action(torch.as_tensor(buffer.actions[step, :, 0])).numpy()
        state = (*state[:-2], sampled, state[-1])


def told_rewards(buffer: Any, step: int) -> Array:
    """Return the rewards of the previous step, which the observation shows: the step, and 0 at the start."""
    return buffer.observations[step][:, 2]


@pytest.mark.parametrize("core", CORES)
def test_state_is_a_tuple_of_numpy_arrays_batch_first(core: str) -> None:
    model = make_model(staggered_env(), core)
    for envs in (1, 5):
        _, state = model.predict(observations(1, envs)[0])
        assert isinstance(state, tuple)
        assert all(isinstance(leaf, np.ndarray) and len(leaf) == envs for leaf in state)
        assert state[-2].shape == (envs, 3) and (state[-2].sum(axis=1) == 1).all(), "the action, one-hot"


@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_predict_changes_neither_the_state_that_it_is_given_nor_the_agent(core: str) -> None:
    model = trained(core)
    seen = observations(12)
    _, states = play(model, seen[:8])
    kept = [leaf.copy() for leaf in states[-1]]
    again = [model.predict(seen[8], states[-1], deterministic=True) for _ in range(2)]
    for one, other in zip(states[-1], kept, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again[0][0], again[1][0])
    for one, other in zip(again[0][1], again[1][1], strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("core", ["compressive", "transformer_xl", "gtrxl", "lstm", "gru", "mingru"])
def test_episode_start_resets_its_own_env_only(core: str) -> None:
    model, seen = trained(core), observations(20)
    starts = np.zeros((20, ENVS), dtype=bool)
    starts[17, 1] = True  # soon enough to matter still for the shortest memory
    _, states = play(model, seen, starts)
    _, without = play(model, seen)
    _, afresh = play(model, seen[17:])
    for found, forgotten, kept in zip(states[-1], afresh[-1], without[-1], strict=True):
        np.testing.assert_allclose(found[[0, 2]], kept[[0, 2]], atol=1e-6)
        if not found.any():
            continue
        if found.shape[1:] and core in ("lstm", "gru", "mingru"):  # a ring may keep what is no longer attended
            np.testing.assert_allclose(found[1], forgotten[1], atol=1e-6)
    next_obs = torch.as_tensor(seen[0])
    going_on = torch.zeros(ENVS, dtype=torch.bool)
    with torch.no_grad():
        reset, fresh, kept_on = (
            model.policy.values_after(next_obs, state_from_numpy(model.policy, s[-1], ENVS), going_on)
            for s in (states, afresh, without)
        )
    np.testing.assert_allclose(reset[1], fresh[1], atol=1e-5)
    np.testing.assert_allclose(reset[[0, 2]], kept_on[[0, 2]], atol=1e-5)
    assert abs(float(kept_on[1] - fresh[1])) > 1e-4, "the past must matter for this test to mean anything"


def test_no_state_is_the_start_of_an_episode() -> None:
    model, obs = trained(), observations(1)[0]
    actions, state = model.predict(obs, deterministic=True)
    started, reset = model.predict(obs, None, np.ones(ENVS, dtype=bool), deterministic=True)
    np.testing.assert_array_equal(actions, started)
    _, other = model.predict(observations(2)[1], deterministic=True)
    _, once_more = model.predict(obs, other, np.ones(ENVS, dtype=bool), deterministic=True)
    for one, two, three in zip(state, reset, once_more, strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(one, two)
        assert one.shape == three.shape


def test_a_single_observation_needs_no_batch_axis() -> None:
    model, seen = trained(), observations(6, 1)
    state: Any = None
    batched, _ = play(model, seen)
    for step, obs in enumerate(seen[:, 0]):
        action, state = model.predict(obs, state, deterministic=True)
        assert np.shape(action) == () and model.action_space.contains(action)
        assert action == batched[step, 0]
        assert all(len(leaf) == 1 for leaf in state)


def test_sampled_actions_differ_and_deterministic_ones_do_not() -> None:
    model, obs = trained(), np.repeat(observations(1, 1)[0], 200, axis=0)
    assert len(set(model.predict(obs)[0].tolist())) > 1
    assert len(set(model.predict(obs, deterministic=True)[0].tolist())) == 1


def test_box_actions_are_within_bounds() -> None:
    space = spaces.Box(np.float32([-0.1, 0.0]), np.float32([0.1, 0.05]))
    model = make_model(staggered_env(action_space=space))
    actions, _ = model.predict(np.repeat(observations(1, 1)[0], 50, axis=0))
    assert actions.shape == (50, 2) and actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)
    assert (actions == space.high).any() and (actions == space.low).any()


# What does not fit


def test_a_state_that_does_not_fit_is_refused() -> None:
    compressive, lstm, gru = trained("compressive"), trained("lstm"), trained("gru")
    obs = observations(1)[0]
    state: Any = compressive.predict(obs)[1]
    with pytest.raises(ValueError, match=r"state \(clock\) is of 3 envs, but observation has 2"):
        compressive.predict(obs[:2], state)
    with pytest.raises(ValueError, match=r"state\.hidden must be \(3, 1, 6\), got \(3,\)"):
        lstm.predict(obs, state[:2] + state[-2:])
    asked = r"state must have 3 arrays \(hidden, previous_action, previous_reward\)"
    with pytest.raises(ValueError, match=rf"{asked}, got {len(state)}"):
        gru.predict(obs, state)
    with pytest.raises(ValueError, match=r"state\.slots must be torch.float32, got torch.float64"):
        compressive.predict(obs, (state[0], state[1].astype(np.float64), *state[2:]))
    with pytest.raises(ValueError, match=r"state \(previous_action\) must be .* \(3, 3\), got .* \(3, 2\)"):
        compressive.predict(obs, (*state[:-2], state[-2][:, :2], state[-1]))
    with pytest.raises(ValueError, match=r"state \(previous_reward\) must be .* \(3, 0\), got .* \(3, 1\)"):
        compressive.predict(obs, (*state[:-1], np.zeros((3, 1), dtype=np.float32)))
    with pytest.raises(ValueError, match=r"state \(clock\) is of 0 axes"):
        compressive.predict(obs, (np.int64(0), *state[1:]))
    with pytest.raises(ValueError, match=r"episode_start has 2 entries, but observation has 3 envs"):
        compressive.predict(obs, state, np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match=r"shape.*\(4,\)"):
        compressive.predict(np.zeros(4, dtype=np.float32))


def test_a_policy_that_needs_the_reward_says_so() -> None:
    model = trained(policy_kwargs={"previous_reward": True})
    seen = observations(2)
    _, state = model.predict(seen[0])
    with pytest.raises(ValueError, match=r"previous_reward=True.*needs reward=, got None"):
        model.predict(seen[1], state)
    model.predict(seen[1], state, np.ones(ENVS, dtype=bool))  # nothing was paid yet
    model.predict(seen[1], state, reward=np.ones(ENVS))
    model.predict(seen[1], state, reward=1.0)
    with pytest.raises(ValueError, match=r"reward has 2 entries, but observation has 3 envs"):
        model.predict(seen[1], state, reward=np.ones(2))
    with pytest.raises(ValueError, match="previous_reward=True"):
        evaluate_policy(model, DummyVecEnv(makers([(4,)])), n_eval_episodes=1, warn=False)  # type: ignore[arg-type]


def test_what_makes_no_sense_without_a_state_is_refused() -> None:
    policy, obs = make_model(staggered_env()).policy, torch.zeros(1, 3)
    for call in (policy.forward, policy.get_distribution, policy.predict_values, policy.evaluate_actions):
        with pytest.raises(NotImplementedError, match="needs its state"):
            call(obs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_sde": True}, "use_sde"),
        ({"share_features_extractor": False}, "share_features_extractor"),
        ({"core": "ltsm", "core_kwargs": {}}, r"unknown core 'ltsm'; valid are 'compressive', 'feedforward"),
        ({"core_kwargs": {"widht": 8}}, "widht"),
        ({"core_kwargs": {"width": 9, "heads": 2}}, r"heads = 2 and width = 9"),
        ({"core_kwargs": {"layers": 0}}, r"layers .*0"),
    ],
)
def test_bad_policy_options_are_refused_when_the_model_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(staggered_env(), policy_kwargs=options)


@pytest.mark.parametrize("ortho_init", [True, False])
def test_previous_action_and_reward_count_once_training_finds_a_use_for_them(ortho_init: bool) -> None:
    options = {"previous_reward": True, "ortho_init": ortho_init}
    model = make_model(staggered_env(), "lstm", learning_rate=1e-2, policy_kwargs=options)
    policy = model.policy
    obs = torch.randn(5, policy.features_dim)
    previous = torch.randn(2, 5, policy._previous_sizes[0]), torch.randn(2, 5, 1)
    one, other = (policy.embed(obs, action, reward) for action, reward in zip(*previous, strict=True))
    assert torch.equal(one, other)
    assert policy.previous_weights().shape == (8, policy._previous_sizes[0] + 1)
    model.learn(model.n_steps * model.n_envs)
    assert bool((policy.previous_weights() != 0).any(dim=0).all())
    one, other = (policy.embed(obs, action, reward) for action, reward in zip(*previous, strict=True))
    assert not torch.equal(one, other)


def test_core_options_may_be_left_out() -> None:
    model = MlpMemoryPolicy(
        ToldSpaces.observation, ToldSpaces.action, lambda left: 1e-3, core="gru", core_kwargs=None, encoder_arch=[]
    )
    assert model.core.output_size == 128
    make_model(staggered_env(), "gru", policy_kwargs={"core_kwargs": None}).learn(1)


class ToldSpaces:
    observation = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action = spaces.Discrete(2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_categorical_actions_are_those_of_the_distribution(deterministic: bool) -> None:
    policy = trained("lstm").policy
    latent = torch.randn(50, policy.core.output_size)
    with torch.no_grad():
        torch.manual_seed(3)
        actions, values, log_prob = policy.decide(latent, deterministic)
        torch.manual_seed(3)
        distribution = policy._get_action_dist_from_latent(policy.mlp_extractor(latent)[0])
        assert torch.equal(actions, distribution.get_actions(deterministic=deterministic))
        torch.testing.assert_close(log_prob, distribution.log_prob(actions))
        judged = policy._judge(policy.mlp_extractor(latent)[0], actions)
        torch.testing.assert_close(judged, (distribution.log_prob(actions), distribution.entropy()))
        outputs = policy.value_net(policy.mlp_extractor(latent)[1])[:, 0]
        torch.testing.assert_close(values, policy.value_normalisation(outputs))
    assert len(set(actions.tolist())) > 1


def test_a_policy_with_its_own_distribution_keeps_it() -> None:
    """The example is a policy that never takes action 0."""

    class NeverZero(MlpMemoryPolicy):
        def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
            logits = self.action_net(latent_pi)
            logits = logits.index_fill(1, torch.tensor([0]), -1e9)
            return self.action_dist.proba_distribution(action_logits=logits)

    model = MemoryPPO(NeverZero, staggered_env(), n_steps=16, device="cpu").learn(2 * 16 * ENVS)
    assert (model.rollout_buffer.actions > 0).all()


def test_a_distribution_of_another_kind_is_asked() -> None:
    class Sticky(CategoricalDistribution):
        def sample(self) -> torch.Tensor:
            return torch.full_like(super().sample(), 2)

    class Stuck(MlpMemoryPolicy):
        def _build(self, lr_schedule: Any) -> None:
            self.action_dist = Sticky(3)
            super()._build(lr_schedule)

    model = MemoryPPO(Stuck, staggered_env(), n_steps=16, device="cpu").learn(2 * 16 * ENVS)
    assert (model.rollout_buffer.actions == 2).all()


def test_an_action_whose_logit_is_minus_infinity_leaves_the_losses_finite() -> None:
    policy = trained("lstm").policy
    with torch.no_grad():
        policy.action_net.bias[1] = -torch.inf  # type: ignore[index, union-attr]
    latent_pi = torch.randn(5, policy.mlp_extractor.latent_dim_pi, requires_grad=True)
    log_prob, entropy = policy._judge(latent_pi, torch.tensor([0, 2, 2, 0, 2]))
    distribution = policy._get_action_dist_from_latent(latent_pi)
    torch.testing.assert_close(entropy, distribution.entropy())
    (log_prob + entropy).sum().backward()
    assert latent_pi.grad is not None and bool(latent_pi.grad.isfinite().all())


def test_what_an_actor_returns_can_be_learned_from() -> None:
    policy = trained().policy
    actor = policy.actor(policy.initial_state(ENVS))
    acted = actor.act(torch.as_tensor(observations(1)[0]), torch.ones(ENVS, dtype=torch.bool))
    weight = torch.ones(ENVS, requires_grad=True)
    (weight * acted.values + weight * acted.log_prob + weight * acted.actions).sum().backward()
    torch.testing.assert_close(weight.grad, acted.values + acted.log_prob + acted.actions)


@pytest.mark.parametrize("core", CORES)
def test_first_values_are_near_zero(core: str) -> None:
    """If rewards are rare, random first values would make up all of the first advantages."""
    policy = make_model(staggered_env(), core).policy
    weight = policy.value_net.weight
    torch.testing.assert_close(weight.detach().norm(), torch.tensor(0.01))  # orthogonal: one row of length 0.01
    assert policy.value_net.bias.tolist() == [0]
    assert any(parameter is weight for group in policy.optimizer.param_groups for parameter in group["params"])


def test_draws_are_those_of_multinomial() -> None:
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]).log().repeat(500, 1)
    torch.manual_seed(3)
    expected = torch.multinomial(log_probs.exp(), 1)
    torch.manual_seed(3)
    assert torch.equal(draw(log_probs), expected)


def test_what_cannot_be_drawn_is_not() -> None:
    log_probs = torch.tensor([0.0, -torch.inf]).expand(2000, 2)
    assert not bool(draw(log_probs).any())


def test_all_gradients_are_forgotten() -> None:
    policy = make_model(staggered_env()).policy
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    policy.zero_grad()
    assert all(parameter.grad is None for parameter in policy.parameters())
