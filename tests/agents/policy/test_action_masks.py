"""Action masks: illegal actions are never taken, have probability 0 and no gradient, and the first ratio stays 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import BOTH, UPDATE, make_impala
from agent_toys import ToldEpisodes, make_model, staggered_env
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from mask_toys import LENGTHS, MostlyIllegal, mask_makers
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from ctrl.agents import GymnasiumVecEnv, MemoryPPO, MlpMemoryPolicy, check_memory
from ctrl.agents.policy.masked_actions import MaskedActions

SPACES = {
    "discrete": spaces.Discrete(9),
    "multi-discrete": spaces.MultiDiscrete([4, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
EACH_SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def masked_env(space: spaces.Space[Any] = SPACES["discrete"], **options: Any) -> DummyVecEnv:
    return DummyVecEnv(mask_makers(space, **options))


# Training


@BOTH
@EACH_SPACE
def test_illegal_actions_are_never_taken_and_the_first_ratio_is_one(space: spaces.Space[Any], make: Any) -> None:
    """The env raises an error at the first illegal action."""
    model = make(masked_env(space)).learn(2 * UPDATE)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    assert model.logger.name_to_value["train/loss"] != 0
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.policy.parameters())


@BOTH
@pytest.mark.parametrize("core", ["compressive", "transformer_xl", "lstm", "mingru", "feedforward"])
def test_all_cores(core: str, make: Any) -> None:
    model = make(masked_env(), core).learn(UPDATE)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


def test_the_error_would_come_without_masks() -> None:
    with pytest.raises(AssertionError, match="is illegal at time"):
        make_model(masked_env(), use_masking=False).learn(UPDATE)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_vector_envs_in_each_autoreset_mode(mode: AutoresetMode) -> None:
    """No action is allowed after an episode's end, which matters to nobody: the action of a reset step is ignored."""
    makers = [
        lambda told=told: MostlyIllegal(SPACES["discrete"], told, none_from=told[0]) for told in ((5,), (7,), (2,))
    ]
    model = make_model(SyncVectorEnv(makers, autoreset_mode=mode)).learn(2 * UPDATE)
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


class NativeIllegal(gym.vector.VectorEnv[Any, Any, Any]):
    """Vector env without single envs; its method `action_masks` returns those of all envs."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self) -> None:
        self.num_envs = len(LENGTHS)
        self.single_observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(4)
        self.observation_space, self.action_space = spaces.Box(0, 1, (3, 2)), spaces.MultiDiscrete([4] * 3)
        self.allowed = np.arange(self.num_envs) % 4

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((self.num_envs, 2), dtype=np.float32), {}

    def action_masks(self) -> np.ndarray:
        return np.arange(4) == self.allowed[:, None]

    def step(self, actions: Any) -> Any:
        assert np.array_equal(actions, self.allowed)
        self.allowed = (self.allowed + 1) % 4
        never = np.zeros(self.num_envs, dtype=bool)
        return np.zeros((self.num_envs, 2), dtype=np.float32), np.ones(self.num_envs), never, never, {}


def test_a_native_vector_env() -> None:
    make_model(NativeIllegal()).learn(UPDATE)


@pytest.mark.parametrize("kind", ["subprocesses", "workers", "normalised", "wrapped by gymnasium", "single env"])
def test_wrapped_and_in_other_processes(kind: str) -> None:
    makers = mask_makers(SPACES["discrete"])
    env: Any = {
        "subprocesses": lambda: SubprocVecEnv(makers, start_method="fork"),
        "workers": lambda: AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP, context="fork"),
        "normalised": lambda: VecNormalize(DummyVecEnv(makers)),
        "wrapped by gymnasium": lambda: gym.wrappers.TimeLimit(makers[0](), 4),
        "single env": makers[0],
    }[kind]()
    model = make_model(env)
    try:
        assert model.rollout_buffer.mask_size == 9
        model.learn(24 * model.n_envs)
    finally:
        model.get_env().close()


def test_actors_use_masks() -> None:
    model = make_impala(masked_env(SPACES["multi-discrete"]), num_actors=1, max_restarts=0)
    model.learn(2 * UPDATE)
    assert model.rollout_buffer.action_masks.shape == (24, 3, 7)
    assert (model.rollout_buffer.action_masks.sum(axis=2) == 4).all()


def test_masks_are_kept_by_step() -> None:
    """The first choice that is allowed is the number of the step, which the observation shows."""
    model = make_model(masked_env()).learn(UPDATE)
    buffer = model.rollout_buffer
    time = buffer.observations.argmax(axis=2)
    first = np.take_along_axis(buffer.action_masks, time[..., None] % 9, axis=2)
    assert buffer.action_masks.shape == (24, 3, 9) and first.all()
    windows = buffer.windows(model.policy)
    assert windows.action_masks is not None and windows.action_masks.shape == (9, 8, 9)
    assert bool(windows.action_masks.gather(2, windows.actions[..., None]).all())


def test_burn_in_and_several_minibatches_go_with_masks() -> None:
    model = make_model(masked_env(), refresh=5, batch_size=8, n_epochs=2).learn(3 * UPDATE)
    assert np.isfinite(model.logger.name_to_value["train/loss"])


def test_most_actions_illegal_is_learned_faster_with_masks() -> None:
    """Of 9 actions 2 are legal, and one of these pays: the masked agent starts at 0.5 a step, the other at 0.11."""

    masked, free = (_mean_reward(use_masking) for use_masking in (None, False))
    assert masked > 0.8 and masked > free + 0.2


def _mean_reward(use_masking: bool | None) -> float:
    makers = [lambda: MostlyIllegal(SPACES["discrete"], (9,), strict=False) for _ in range(4)]
    model = make_model(DummyVecEnv(makers), "feedforward", use_masking=use_masking, learning_rate=1e-2)
    return float(model.learn(15 * 96).rollout_buffer.rewards.mean())


# Predicting


@EACH_SPACE
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_takes_masks(space: spaces.Space[Any], deterministic: bool) -> None:
    env = masked_env(space)
    model = make_model(env)
    observation, state, starts = env.reset(), None, np.ones(3, dtype=bool)
    for _ in range(30):
        masks = np.stack(env.env_method("action_masks"))
        actions, state = model.predict(observation, state, starts, deterministic, action_masks=masks)
        observation, _, starts, _ = env.step(actions)  # raises an error at an illegal action


def test_predict_takes_the_mask_of_a_single_env() -> None:
    env = MostlyIllegal(SPACES["discrete"])
    model = make_model(env)
    observation, _ = env.reset()
    for mask in (env.action_masks(), env.action_masks().tolist(), env.action_masks().astype(np.int8)):
        action, _ = model.predict(observation, action_masks=mask)
        assert action.shape == () and action in (0, 1)


def test_sb3_contribs_evaluation_finds_its_masks() -> None:
    evaluation = pytest.importorskip("sb3_contrib.common.maskable.evaluation")
    env = masked_env()
    evaluation.evaluate_policy(make_model(env), env, n_eval_episodes=6, warn=False)


# The distribution


def test_masked_actions_have_probability_zero_and_no_gradient() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    masks = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    distribution = MaskedActions(spaces.Discrete(5), logits, masks)
    probabilities = distribution.probabilities()
    assert bool((probabilities[~masks] == 0).all())
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))
    log_prob, entropy = distribution.judge(torch.tensor([2, 4, 0, 1]))
    (log_prob.sum() + entropy.sum()).backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    assert not logits.grad[~masks].any() and not logits.grad[1].any() and bool(logits.grad[0, [0, 2]].all())
    assert float(entropy[1].detach()) == 0 and float(log_prob[1].detach()) == 0


@EACH_SPACE
def test_all_allowed_is_the_distribution_of_stable_baselines3(space: spaces.Space[Any]) -> None:
    from stable_baselines3.common.distributions import make_proba_distribution

    torch.manual_seed(1)
    theirs = make_proba_distribution(space)
    size = {"Discrete": 9, "MultiDiscrete": 7, "MultiBinary": 3}[type(space).__name__]
    logits = torch.randn(6, size)
    theirs.proba_distribution(logits)  # type: ignore[call-arg]
    ours = MaskedActions(space, logits, torch.ones(6, sum(MostlyIllegal(space).sizes()), dtype=torch.bool))
    actions = theirs.sample()
    log_prob, entropy = ours.judge(actions)
    torch.testing.assert_close(log_prob, theirs.log_prob(actions))
    torch.testing.assert_close(entropy, theirs.entropy())
    assert torch.equal(ours.choose(deterministic=True)[0].float(), theirs.mode().float())


def test_choices_are_drawn_as_often_as_their_probabilities_say() -> None:
    torch.manual_seed(0)
    logits, masks = torch.tensor([[0.0, 1.0, 2.0, 0.5, 0.2]]), torch.tensor([[True, False, True, True, False]])
    distribution = MaskedActions(spaces.MultiDiscrete([3, 2]), logits.repeat(20_000, 1), masks.repeat(20_000, 1))
    actions, log_prob = distribution.choose(deterministic=False)
    share = (actions[:, 0] == 2).float().mean()
    assert abs(float(share) - float(distribution.probabilities()[0, 2])) < 0.01
    assert not (actions[:, 0] == 1).any() and not actions[:, 1].any()
    torch.testing.assert_close(log_prob, distribution.judge(actions)[0])


# Settings


def test_masks_are_used_where_the_env_has_them_and_cost_nothing_elsewhere() -> None:
    assert make_model(masked_env()).rollout_buffer.mask_size == 9
    plain = make_model(staggered_env()).learn(UPDATE)
    assert plain.rollout_buffer.action_masks.nbytes == 0
    assert plain.rollout_buffer.windows(plain.policy).action_masks is None


def test_masks_are_not_asked_for_if_they_are_not_used() -> None:
    env = masked_env(strict=False)
    make_model(env, use_masking=False).learn(UPDATE)
    assert [each.asked for each in env.envs] == [0, 0, 0]  # type: ignore[attr-defined]


def test_the_setting_is_saved_and_follows_the_env(tmp_path: Path) -> None:
    make_model(masked_env(), use_masking=False).save(tmp_path / "agent")
    assert MemoryPPO.load(tmp_path / "agent", env=masked_env(), device="cpu").rollout_buffer.mask_size == 0
    model = make_model(masked_env())
    model.save(tmp_path / "masked")
    loaded = MemoryPPO.load(tmp_path / "masked", device="cpu")
    assert loaded.rollout_buffer.mask_size == 0
    loaded.set_env(masked_env())
    assert loaded.learn(UPDATE).rollout_buffer.mask_size == 9


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: staggered_env(), r"use_masking=True needs an env with a method action_masks\(\)"),
        (lambda: staggered_env(action_space=spaces.Box(-1, 1, (2,))), "use_masking=True needs Discrete.*got Box"),
    ],
    ids=["no masks", "box"],
)
@BOTH
def test_masks_that_are_asked_for_must_be_there(make: Any, env: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(env(), use_masking=True)


@BOTH
def test_another_setting_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="use_masking must be True, False or None, got 'always'"):
        make(masked_env(), use_masking="always")


def test_learn_says_where_the_setting_is() -> None:
    with pytest.raises(ValueError, match="no argument use_masking here.*of the constructor"):
        make_model(masked_env()).learn(72, use_masking=True)  # type: ignore[call-arg]


class BareVecEnv(DummyVecEnv):
    """`VecEnv` that leaves access to attributes of its envs unwritten."""

    has_attr = VecEnv.has_attr

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs if attr_name != "render_mode" else super().get_attr(attr_name, indices)


def test_an_env_without_access_to_attributes_has_no_masks() -> None:
    env = BareVecEnv([lambda: ToldEpisodes((5,))])
    assert make_model(env).rollout_buffer.mask_size == 0


# Mistakes


@BOTH
def test_a_mask_that_allows_nothing_is_refused_by_env_and_step(make: Any) -> None:
    """The second env's episodes have 7 steps, and none of its choices is allowed from the fifth on."""
    makers = [lambda: MostlyIllegal(SPACES["discrete"], (5,)), lambda: MostlyIllegal(SPACES["discrete"], (7,), 4)]
    with pytest.raises(ValueError, match="action_masks of env 1 at step 8 must allow an action, got all False"):
        make(DummyVecEnv(makers)).learn(UPDATE)


def test_the_part_of_an_action_is_named() -> None:
    model = make_model(masked_env(SPACES["multi-discrete"]))
    mask = np.array([1, 1, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="action_masks of env 0 must allow an action for part 1 of the action"):
        model.predict(np.zeros(20, dtype=np.float32), action_masks=mask)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((3, 8)), r"action_masks of env 0 must have 9 entries for Discrete\(9\), got 8"),
        (np.ones(9), "action_masks of env 0 must have 9 entries|must have 9 entries for each of 3 envs"),
        ([[1] * 9, [1] * 9, [1] * 4], "action_masks of env 2 must have 9 entries"),
        (np.full((3, 9), 0.5), "must be True or False, 1 or 0"),
        (np.full((3, 9), "yes"), "must be True or False, 1 or 0"),
        (np.full((3, 9), np.nan), "must be True or False, 1 or 0"),
        (np.zeros((3, 9)), "action_masks of env 0 must allow an action, got all False"),
    ],
    ids=["too few", "of one env", "ragged", "fractions", "text", "nan", "none"],
)
def test_masks_that_do_not_fit_are_refused(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(masked_env()).predict(np.zeros((3, 20), dtype=np.float32), action_masks=masks)


def test_box_actions_have_no_masks() -> None:
    model = make_model(staggered_env(action_space=spaces.Box(-1, 1, (2,))))
    with pytest.raises(ValueError, match="action_masks need Discrete, MultiDiscrete or MultiBinary actions, got Box"):
        model.predict(np.zeros((3, 3), dtype=np.float32), action_masks=np.ones((3, 2)))


def test_check_memory_passes_with_masks() -> None:
    findings = check_memory(make_model(masked_env(), "gru"))  # it raises an error where a law is broken
    assert {finding.status for finding in findings} <= {"kept", "not applicable"}


def test_gymnasium_vec_env_says_what_envs_have() -> None:
    env = GymnasiumVecEnv(SyncVectorEnv(mask_makers(SPACES["discrete"]), autoreset_mode=AutoresetMode.SAME_STEP))
    assert env.has_attr("action_masks") and not env.has_attr("no_such_thing")


def test_a_policy_with_a_distribution_of_its_own_has_no_masks() -> None:
    class Own(MlpMemoryPolicy):
        def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
            return super()._get_action_dist_from_latent(latent_pi)

    with pytest.raises(ValueError, match="Own has a distribution of its own, so action masks can't be applied"):
        make_model(masked_env(), policy=Own).learn(UPDATE)
