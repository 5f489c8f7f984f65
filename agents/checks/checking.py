"""Self-test for agents with a memory: the laws of the core, and the agreement of acting, learning and env.

    for finding in check_memory(model):
        print(finding)

The model's own `collect_rollouts` collects a rollout, and its own `train` learns from it. The results are compared with
a recording made between agent and env. All of this is done with a copy of the model.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from ctrl.agents.checks.model_copy import ModelCopy, Rollout
from ctrl.agents.policy.policy_data import PolicyState
from ctrl.agents.utils.modes import modeless
from ctrl.checks.checking import judge_core
from ctrl.checks.laws.stream import first_difference
from ctrl.checks.laws.trial import Trial
from ctrl.checks.result import Breach, Finding, Law, NotApplicable, judge_all, require_kept

PREDICTIONS = 48
"""Largest number of steps over which `predict` is compared with acting."""
KL_OF_ROUNDING = 1e-6
"""Largest approximate KL divergence that counts as a rounding error of 0."""


def check_memory(
    model: OnPolicyAlgorithm, env: Any = None, *, noise: float = 0.2, tolerance: float = 1e-4, seed: int = 0
) -> list[Finding]:
    """Check an agent's memory: its core as `ctrl.check_core` does, then acting and learning in an env. Takes seconds.

    The model, its env and the global random generators are left unchanged. The check does not show whether advantages
    and returns are right, nor whether the agent learns anything.

    :param model: `MemoryPPO` or another on-policy algorithm with a `MemoryPolicy` and a buffer of windows
    :param env: an env as for `MemoryPPO`, with as many copies as the model's; it is stepped. An id makes as many copies
        as needed. None for a copy of the model's env
    :param noise: see `ctrl.check_core`
    :param tolerance: largest difference, relative to 1 + size, between results that must agree up to rounding
    :param seed: seed of all random numbers but the env's
    :return: a finding for each law, none of them broken; some have a remark
    :raises LawBroken: where a law is broken; its `findings` are those of all laws
    :raises ValueError: where an argument does not fit
    """
    with _randomness_kept(seed):
        copy = ModelCopy(model, env, noise=noise, tolerance=tolerance, seed=seed)
        trial = Trial(model.policy.core, noise=noise, tolerance=tolerance, seed=seed)  # type: ignore[arg-type]
        findings = [*judge_core(trial), *judge_all(LAWS, copy)]
    return require_kept(type(model).__name__, findings)


@contextmanager
def _randomness_kept(seed: int) -> Iterator[None]:
    """Seed torch and hide warnings in the context; restore all global random generators afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def learning_sees_what_acting_saw(copy: ModelCopy) -> str:
    """Compare log-probabilities and values of learning and acting before any update: the first ratio must be 1."""
    for rollout in copy.collect_until_an_end():
        _compare(rollout, copy.tolerance)
    return "" if copy.ended() else f"no episode ended within {len(copy.env.actions):,} steps"


def acting_follows_the_weights(copy: ModelCopy) -> str:
    """Compare log-probabilities and values of learning and acting again, in a rollout after the update."""
    _compare(copy.collect(), copy.tolerance)
    return ""


def _compare(rollout: Rollout, tolerance: float) -> None:
    for name, (learning, acting) in rollout.evaluated.items():
        found = first_difference(learning.T, acting.T, tolerance, rollout.counts.T)
        if found is not None:
            env, step = found.place
            starts = ", ".join(map(str, rollout.starts[:, env].nonzero()[:, 0].tolist())) or "no step"
            raise Breach(
                f"{name} differs at env {env}, step {step} of a rollout of {len(acting)}: {found.one:.6g} when "
                f"learning, {found.other:.6g} when acting (in env {env} episodes start at {starts})",
                env,
                step,
            )


def the_buffer_holds_what_happened(copy: ModelCopy) -> str:
    """Compare the buffer with the recording between agent and env: episode starts, observations and actions."""
    env, buffer = copy.env, copy.buffer
    for t in range(buffer.buffer_size):
        happened = copy.first + t
        pairs = [("episode_starts", buffer.episode_starts[t], env.starts[happened])]
        pairs += _observations(buffer.observations, env.observations[happened], t)
        actions = copy.policy.env_actions(torch.as_tensor(buffer.actions[t]))
        pairs.append(("actions", actions, env.actions[happened].reshape(actions.shape)))
        for name, stored, told in pairs:
            wrong = np.flatnonzero((stored != told.reshape(stored.shape)).reshape(len(stored), -1).any(axis=1))
            if len(wrong):
                where = f"env {wrong[0]}, step {t} of a rollout of {buffer.buffer_size}"
                raise Breach(f"the buffer's {name} are not what the env saw at {where}", int(wrong[0]), t)
    return ""


def _observations(stored: Any, told: Any, t: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if isinstance(told, dict):
        return [(f"observations[{key!r}]", stored[key][t], part) for key, part in told.items()]
    return [("observations", stored[t], told)]


def minibatches_are_whole_windows(copy: ModelCopy) -> str:
    """Train with learning rates of 0: the values of each evaluated row must be those of a window from acting."""
    model: Any = copy.model
    kept = {name: getattr(model, name) for name in ("lr_schedule", "_memory_lr_schedule") if hasattr(model, name)}
    rollout = copy.buffer.all_windows(copy.policy)
    rows: list[Tensor] = []
    evaluate = copy.policy.evaluate_windows

    def watched(*args: Any, **options: Any) -> Any:
        evaluated = evaluate(*args, **options)
        rows.extend(evaluated.values.detach())
        return evaluated

    copy.policy.evaluate_windows = watched  # type: ignore[method-assign]
    try:
        for name in kept:
            setattr(model, name, _zero)
        with modeless(copy.policy):  # dropout would hide which windows these are
            model.train()
    finally:
        del copy.policy.evaluate_windows
        for name, schedule in kept.items():
            setattr(model, name, schedule)
    _judge_rows(rows, rollout.old_values, rollout.loss_mask, copy.tolerance)
    kl = model.logger.name_to_value.get("train/approx_kl", 0.0)
    if not kl <= KL_OF_ROUNDING:
        raise Breach(f"without a change of weights the approximate KL divergence is {kl:.3g}, not 0")
    return ""


def _zero(progress: float) -> float:
    return 0.0


def _judge_rows(rows: list[Tensor], windows: Tensor, counts: Tensor, tolerance: float) -> None:
    if not rows:
        raise NotApplicable("train() evaluated no windows")
    for number, row in enumerate(rows):
        apart = torch.where(counts, (windows - row).abs() / (1 + row.abs()), 0).amax(dim=1)
        if not float(apart.min()) <= tolerance:
            raise Breach(
                f"row {number} of those that are trained on is not one of the rollout's {len(windows)} windows"
            )


def training_moves_everything(copy: ModelCopy) -> str:
    """Train, and look for parameters that should change but do not."""
    policy, model = copy.policy, copy.model
    frozen = [name for name, p in policy.named_parameters() if not p.requires_grad and "extractor" not in name]
    if frozen:
        raise Breach(f"requires_grad is False before training for {', '.join(frozen[:3])}")
    held = {id(p) for optimizer in _optimizers(policy) for group in optimizer.param_groups for p in group["params"]}
    orphans = [name for name, p in policy.named_parameters() if id(p) not in held]
    if orphans:
        raise Breach(f"no optimizer trains {', '.join(orphans[:3])}")
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in policy.named_parameters()}
    model.train()
    still = []
    for name, parameter in policy.named_parameters():
        weights, required = before[name]
        if parameter.requires_grad != required:
            raise Breach(f"training sets requires_grad of {name} to {parameter.requires_grad}")
        if required and torch.equal(weights, parameter):
            still.append((name, parameter))
    return _judge_still(still)


def _optimizers(policy: Any) -> list[torch.optim.Optimizer]:
    return [optimizer for optimizer in (policy.optimizer, policy.memory_optimizer) if optimizer is not None]


def _judge_still(still: Sequence[tuple[str, Tensor]]) -> str:
    """Raise a `Breach` for parameters that training left unchanged, but return a remark for compressors.

    A compressor without a gradient may have had nothing to compress; the core's own laws check it more closely.
    """
    for name, parameter in still:
        reached = parameter.grad is not None and bool(parameter.grad.any())
        if reached or not name.startswith("core.compressors"):
            raise Breach(
                f"training does not change {name}, "
                + ("though it has a gradient" if reached else "no gradient reaches it")
            )
    names = ", ".join(name for name, _ in still[:3])
    return f"nothing in these episodes trains {names}" if still else ""


def predict_agrees_with_acting(copy: ModelCopy) -> str:
    """Replay the recorded observations with `predict` and with one actor, both deterministic, and compare."""
    policy, env = copy.policy, copy.env
    policy.set_training_mode(False)
    policy_state = policy.initial_state(env.num_envs)
    actor = policy.actor(policy_state)
    state: tuple[np.ndarray, ...] | None = None
    for t in range(min(PREDICTIONS, len(env.actions))):
        start = env.starts[t]
        reset = torch.as_tensor(start, device=policy.device)
        obs = policy.obs_to_tensor(env.observations[t])[0]
        with torch.no_grad():
            to_come = policy.values_after(obs, actor.state(), reset)
        acted = actor.act(obs, reset, deterministic=True)
        reward = {"reward": env.rewards[t - 1]} if t and policy.initial_state(1).previous_reward.numel() else {}
        predicted, state = copy.model.predict(env.observations[t], state, start, deterministic=True, **reward)
        _same(t, "the value by values_after and by acting", to_come[:, None], acted.values[:, None], copy.tolerance)
        actions = policy.env_actions(acted.actions)
        _same(t, "the action of predict and of acting", _columns(predicted), _columns(actions), copy.tolerance)
        _same_states(t, state, actor.state(), copy.tolerance)
        actor.tell_rewards(env.rewards[t])
    return ""


def _columns(actions: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(actions, dtype=np.float64)).reshape(len(actions), -1)


def _same_states(t: int, predicted: Any, acted: PolicyState, tolerance: float) -> None:
    leaves = (*acted.core, acted.previous_action)
    names = [*acted.core._fields, "previous_action"]
    for name, one, other in zip(names, predicted, leaves, strict=False):  # without the reward, which predict gets later
        if other.numel():
            _same(t, f"{name} in the state of predict and of acting", torch.as_tensor(one), other.cpu(), tolerance)


def _same(t: int, what: str, one: Tensor, other: Tensor, tolerance: float) -> None:
    found = first_difference(one, other, tolerance)
    if found is not None:
        env = found.place[0]
        raise Breach(f"{what} differ at env {env}, step {t}: {found.one:.6g} and {found.other:.6g}", env, t)


LAWS: tuple[Law[ModelCopy], ...] = (
    Law("agent: learning sees what acting saw, so the first ratio is 1", learning_sees_what_acting_saw),
    Law("agent: the buffer holds what happened, and episodes start where they do", the_buffer_holds_what_happened),
    Law("agent: minibatches are whole windows", minibatches_are_whole_windows),
    Law("agent: training moves everything and freezes nothing", training_moves_everything),
    Law("agent: acting follows the weights", acting_follows_the_weights),
    Law("agent: predict agrees with acting", predict_agrees_with_acting),
)
"""All laws of an agent, in the order in which they are checked; all use the same copy, one after the other."""
