"""`check_memory` with planted mistakes: it names the law, the env and the step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import STAGGERED, make_model, staggered_env
from checking_toys import broken, build, find
from torch import Tensor

from ctrl.agents import MemoryPPO, MlpMemoryPolicy
from ctrl.agents.buffers import WindowBatch, WindowBuffer
from ctrl.agents.policy.policy_data import Acted, PolicyState
from ctrl.compressive.attention.block_mask import age_bucket
from ctrl.compressive.core import CompressiveCore, CompressiveState
from ctrl.compressive.kv_cache import CompressiveActing


class ForgetfulActing(CompressiveActing):
    """Acting cache that ignores changes of the weights."""

    def _follow_weights(self) -> None:
        pass


def test_a_stale_acting_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.compressive.core.CompressiveActing", ForgetfulActing)
    error = broken(make_model(staggered_env(), learning_rate=1e-2))
    assert {finding.law for finding in error.broken} == {
        "law 1 (one meaning): acting follows the weights",
        "agent: acting follows the weights",
    }
    assert find(error, "agent: acting follows").step == 0, "a rollout that begins in mid-episode"


def test_an_actor_with_weights_of_its_own() -> None:
    class Cached(MlpMemoryPolicy):
        def actor(self, state: PolicyState) -> Any:
            own = copy.copy(self)
            own._modules = {**self._modules, "value_net": copy.deepcopy(self.value_net)}
            return MlpMemoryPolicy.actor(own, state)

    error = broken(build(policy=Cached))
    assert [finding.law for finding in error.broken] == ["agent: acting follows the weights"]
    assert "value differs at env 0, step 0 of a rollout of 16" in error.detail


def test_resets_that_acting_sees_one_step_late() -> None:
    class Late(MemoryPPO):
        def _last_reset(self) -> Tensor:
            now = super()._last_reset()
            before, self._before = getattr(self, "_before", torch.zeros_like(now)), now
            return before

    error = broken(build(Late))
    found = find(error, "learning sees what acting saw")
    assert found.step == 1, "where what a reset at step 0 forgets is missed"
    assert f"in env {found.env} episodes start at 0, {STAGGERED[found.env or 0][0]}" in found.detail
    assert all(finding.law.startswith("agent") for finding in error.broken)


def test_resets_that_all_see_one_step_late() -> None:
    class Late(MemoryPPO):
        def _collect_step(self, *args: Any) -> Any:
            infos = super()._collect_step(*args)
            starts = np.asarray(self._last_episode_starts)
            self._last_episode_starts, self._told = getattr(self, "_told", np.zeros_like(starts)), starts  # type: ignore[has-type]
            return infos

    error = broken(build(Late))
    assert not [finding for finding in error.broken if "learning sees" in finding.law]
    found = find(error, "episodes start where they do")
    assert "the buffer's episode_starts are not what the env saw" in found.detail


def test_a_snapshot_one_step_late() -> None:
    class LateSnapshot(WindowBuffer):
        waiting: Any = None

        def add_step(self, *args: Any) -> None:
            super().add_step(*args)
            if self.pos % self.window == 1:
                self.snapshots[self.pos - 1] = self.waiting.state()

    class LateModel(MemoryPPO):
        def _actor_in(self, n_envs: int) -> Any:
            actor = super()._actor_in(n_envs)
            self.rollout_buffer.waiting = actor  # type: ignore[attr-defined]
            return actor

    model = build(LateModel)
    model.rollout_buffer.__class__ = LateSnapshot
    found = find(broken(model), "learning sees what acting saw")
    assert found.step == 8, "the second window is the first that does not begin with a reset"


def test_positions_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ctrl.compressive.cache_schedule.age_bucket", lambda age, exact: age_bucket((age - 1).clamp_min(0), exact)
    )
    assert find(broken(build(core="compressive")), "learning sees what acting saw").step is not None


def test_compression_by_batch_element_0(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = CompressiveCore.plan

    def by_the_first(core: CompressiveCore, state: CompressiveState, reset: Tensor) -> Any:
        return plan(core, state._replace(clock=state.clock[:1].expand_as(state.clock).clone()), reset)

    monkeypatch.setattr(CompressiveCore, "plan", by_the_first)
    assert find(broken(build(core="compressive")), "learning sees what acting saw").env in range(1, len(STAGGERED))


def test_frozen_keys_and_values() -> None:
    class Frozen(MlpMemoryPolicy):
        def _build(self, *args: Any) -> None:
            super()._build(*args)
            self.core.layers[0].attention.key_value.weight.requires_grad_(False)  # type: ignore[union-attr,index]

    error = broken(build(core="compressive", policy=Frozen))
    detail = find(error, "training moves everything").detail
    assert detail == "requires_grad is False before training for core.layers.0.attention.key_value.weight"


def test_keys_and_values_that_training_freezes() -> None:
    class Freezes(MemoryPPO):
        def train(self) -> None:
            super().train()
            if self.lr_schedule(1) > 0:
                self.policy.core.layers[0].attention.key_value.weight.requires_grad_(False)  # type: ignore[union-attr,index]

    error = broken(build(Freezes, "compressive"))
    detail = find(error, "training moves everything").detail
    assert detail == "training sets requires_grad of core.layers.0.attention.key_value.weight to False"


def test_parameters_that_no_optimizer_trains() -> None:
    class Forgotten(MlpMemoryPolicy):
        def _build(self, *args: Any) -> None:
            super()._build(*args)
            del self.optimizer.param_groups[0]["params"][0]

    assert "no optimizer trains encoder.0.weight" in find(broken(build(policy=Forgotten)), "training moves").detail


def test_a_gradient_that_never_arrives() -> None:
    class Cut(MlpMemoryPolicy):
        def embed(self, *args: Any) -> Tensor:
            return super().embed(*args).detach()

    detail = find(broken(build(policy=Cut)), "training moves everything").detail
    assert detail == "training does not change encoder.0.weight, no gradient reaches it"


def test_an_optimizer_that_takes_no_steps() -> None:
    class Idle(MemoryPPO):
        def _optimize(self, statistics: Any) -> None:
            pass

    assert "though it has a gradient" in find(broken(build(Idle)), "training moves everything").detail


def test_minibatches_that_mix_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(everything: WindowBatch, batch_windows: int) -> Iterator[WindowBatch]:
        state = type(everything.windows.core_state)(*(leaf.roll(1, 0) for leaf in everything.windows.core_state))
        yield everything._replace(windows=everything.windows._replace(core_state=state))

    monkeypatch.setattr("ctrl.agents.ppo.window_batches", mixed)
    error = broken(build())
    assert [finding.law for finding in error.broken] == ["agent: minibatches are whole windows"]
    assert "is not one of the rollout's 6 windows" in error.detail


def test_refreshed_states_of_other_envs() -> None:
    class Mixed(MemoryPPO):
        def _refreshed(self, batch: WindowBatch) -> WindowBatch:
            made = super()._refreshed(batch)
            state = type(made.windows.core_state)(*(leaf.roll(1, 0) for leaf in made.windows.core_state))
            return made._replace(windows=made.windows._replace(core_state=state))

    error = broken(build(Mixed, refresh=8))
    assert [finding.law for finding in error.broken] == ["agent: minibatches are whole windows"]


def test_previous_actions_that_learning_does_not_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.agents.buffers._shifted", lambda values, first, reset: values)
    found = find(broken(build()), "learning sees what acting saw")
    assert found.step is not None and found.step <= 1, "seen at once"


def test_minibatches_with_log_probabilities_of_another_env(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(everything: WindowBatch, batch_windows: int) -> Iterator[WindowBatch]:
        yield everything._replace(old_log_prob=everything.old_log_prob.roll(1, 0))

    monkeypatch.setattr("ctrl.agents.ppo.window_batches", mixed)
    assert "approximate KL divergence is" in find(broken(build()), "minibatches").detail


def test_a_buffer_that_stores_what_comes_next() -> None:
    class Next(WindowBuffer):
        def add_step(self, obs: Any, acted: Acted, *args: Any) -> None:
            super().add_step(obs + 1, acted, *args)

    model = build()
    model.rollout_buffer.__class__ = Next
    found = find(broken(model), "the buffer holds what happened")
    assert (found.env, found.step) == (0, 0) and "observations are not what the env saw" in found.detail


def test_a_buffer_with_the_actions_of_another_env() -> None:
    class Rolled(WindowBuffer):
        def add_step(self, obs: Any, acted: Acted, *args: Any) -> None:
            super().add_step(obs, acted._replace(actions=acted.actions.roll(1, 0)), *args)

    model = build()
    model.rollout_buffer.__class__ = Rolled
    assert "actions are not what the env saw" in find(broken(model), "the buffer holds what happened").detail


def test_values_of_what_is_to_come_that_forget_the_resets() -> None:
    class Forgets(MlpMemoryPolicy):
        def values_after(self, obs: Any, state: PolicyState, reset: Tensor) -> Tensor:
            return super().values_after(obs, state, torch.zeros_like(reset))

    found = find(broken(build(policy=Forgets)), "predict agrees with acting")
    assert (found.env, found.step) == (2, 2) and "the value by values_after" in found.detail


def test_a_predict_without_episode_starts() -> None:
    class Deaf(MemoryPPO):
        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, *args: Any, **more: Any
        ) -> Any:
            return super().predict(observation, state, None, *args, **more)

    error = broken(build(Deaf))
    assert [finding.law for finding in error.broken] == ["agent: predict agrees with acting"]
    assert (error.env, error.step) == (2, 2), "the first episode that ends is of 2 steps"


def test_a_broken_core_is_named_as_by_check_core() -> None:
    class Leaky(MlpMemoryPolicy):
        def _build_mlp_extractor(self) -> None:
            super()._build_mlp_extractor()
            unroll = self.core._unroll
            self.core._unroll = lambda inputs, *rest: unroll(inputs - inputs.mean(dim=0), *rest)  # type: ignore[method-assign]

    error = broken(build(policy=Leaky))
    assert "law 3 (no leaks): no output sees another env" in {finding.law for finding in error.broken}
    assert "agent: learning sees what acting saw, so the first ratio is 1" in {finding.law for finding in error.broken}
