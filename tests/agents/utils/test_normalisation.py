"""One `VecNormalize` for all actors: the learner merges the statistics of all actors and sends them to each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from actor_toys import UPDATE, WINDOW, PlacedEpisodes, StopOnce, make_impala
from agent_toys import STAGGERED, AtRolloutEnd, makers
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from ctrl.agents import MemoryImpala
from ctrl.agents.actors.pool import Actors, Window
from ctrl.agents.utils.normalisation import add_moments, added_moments, running_moments, set_running_moments

ENVS = len(STAGGERED)


def normalized(**options: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv(makers()), **options)  # type: ignore[arg-type]


def feed(normalize: VecNormalize, data: np.ndarray) -> None:
    """Update the statistics with observations [K, ...], and with returns that are their sums."""
    normalize.obs_rms.update(data)  # type: ignore[union-attr]
    normalize.ret_rms.update(data.sum(axis=1))


def test_moments_of_parts_are_those_of_all_data() -> None:
    """Two actors start from the same moments, and see different numbers of steps from different distributions."""
    random = np.random.default_rng(0)
    old, one, other = (random.normal(mean, size, (k, 3)) for mean, size, k in ((5, 2, 11), (-1, 0.5, 23), (40, 9, 4)))
    learner = normalized()
    feed(learner, old)
    before = running_moments(learner)
    told = []
    for seen in (one, other):
        actor = normalized()
        set_running_moments(actor, before)
        feed(actor, seen[:2])
        feed(actor, seen[2:])
        told.append(added_moments(before, running_moments(actor)))
    np.testing.assert_allclose(told[0]["observations/mean"], one.mean(axis=0))
    np.testing.assert_allclose(told[0]["observations/var"], one.var(axis=0), rtol=1e-9)
    np.testing.assert_allclose(told[1]["returns/var"], other.sum(axis=1).var(), rtol=1e-9)
    assert [float(added["returns/count"]) for added in told] == pytest.approx([23, 4])
    for added in told:
        add_moments(learner, added)
    everything = np.concatenate([old, one, other])
    np.testing.assert_allclose(learner.obs_rms.mean, everything.mean(axis=0), rtol=1e-4)  # type: ignore[union-attr]
    np.testing.assert_allclose(learner.obs_rms.var, everything.var(axis=0), rtol=1e-4)  # type: ignore[union-attr]
    np.testing.assert_allclose(learner.ret_rms.var, everything.sum(axis=1).var(), rtol=1e-4)
    assert learner.ret_rms.count == pytest.approx(38, abs=1e-3)


def test_an_actor_that_has_seen_nothing_adds_nothing() -> None:
    learner = normalized()
    feed(learner, np.arange(12.0).reshape(4, 3))
    before = running_moments(learner)
    added = added_moments(before, running_moments(learner))
    assert all(not array.any() for array in added.values())
    add_moments(learner, added)
    after = running_moments(learner)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_moments_are_copies() -> None:
    normalize = normalized()
    before = running_moments(normalize)
    feed(normalize, np.ones((4, 3)))
    assert float(before["returns/count"]) < 1e-3
    set_running_moments(normalize, before)
    feed(normalize, np.ones((4, 3)))
    assert float(before["returns/count"]) < 1e-3 and not before["observations/mean"].any()


def test_keys_of_a_dict_are_apart_and_some_are_left_out() -> None:
    class Two(PlacedEpisodes):
        observation_space = spaces.Dict({key: spaces.Box(-100, 100, (2,), np.float32) for key in ("a", "b", "c")})

        def observe(self) -> Any:
            return {
                key: np.full(2, self.step_count * factor, np.float32) for key, factor in (("a", 1), ("b", 2), ("c", 3))
            }

    normalize = VecNormalize(DummyVecEnv([Two, Two]), norm_obs_keys=["a", "c"])
    assert {name.rpartition("/")[0] for name in running_moments(normalize)} == {
        "returns",
        "observations/a",
        "observations/c",
    }
    unnormalised = VecNormalize(DummyVecEnv([Two]), norm_obs=False)
    assert {name.rpartition("/")[0] for name in running_moments(unnormalised)} == {"returns"}


def shown(copy: int, steps: int) -> np.ndarray:
    """Return the observations of a copy's first steps, [steps + 1, 3]: (copy, episode, step)."""
    lengths, found = STAGGERED[copy], []
    for episode in range(steps + 1):
        found += [(copy, episode, step) for step in range(lengths[episode % len(lengths)])]
    return np.array(found[: steps + 1], dtype=np.float64)


def test_the_learner_counts_all_that_actors_have_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the test sets other statistics; actors use them without a restart."""
    # The inner wrapper is the one that counts.
    model = make_impala(VecFrameStack(VecNormalize(DummyVecEnv(makers())), 1), "gru", num_actors=2)  # type: ignore[arg-type]
    normalize: Any = model.get_vec_normalize_env()
    windows: Counter[int] = Counter()
    told: dict[int, list[float]] = {}
    receive = Actors.receive

    def receive_and_count(self: Actors) -> Window:
        window = receive(self)
        windows[window.actor.index] += 1
        return window

    def compare() -> None:
        streams = [shown(copy, WINDOW * count) for count in windows.values() for copy in range(ENVS)]
        resets = [shown(copy, 0) for copy in range(ENVS)]  # of the learner's own env
        seen = np.concatenate([*streams, *resets])
        assert normalize.obs_rms.count == pytest.approx(len(seen), abs=1e-3)
        np.testing.assert_allclose(normalize.obs_rms.mean, seen.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(normalize.obs_rms.var, seen.var(axis=0), rtol=1e-4)
        assert normalize.ret_rms.count == pytest.approx(ENVS * WINDOW * windows.total(), abs=1e-3)

    def look(model: MemoryImpala) -> None:
        assert model._actors is not None
        version = model._actors.version
        if not told and (len(windows) < 2 or windows.total() < 60):
            compare()
        elif not told:
            normalize.obs_rms.mean[:], normalize.obs_rms.var[:], normalize.obs_rms.count = 50.0, 100.0, 1e12
            told[version] = []
        for number, lag in enumerate(model._lags.tolist()):
            if told and version - lag > min(told):
                # The first observation was normalised in the window before.
                copies = model.rollout_buffer.observations[number * WINDOW + 1 : (number + 1) * WINDOW, :, 0]
                np.testing.assert_allclose(copies, (np.tile(np.arange(ENVS), (WINDOW - 1, 1)) - 50) / 10, rtol=1e-3)
                told[version] = [1.0]

    monkeypatch.setattr(Actors, "receive", receive_and_count)
    model.learn(1000 * UPDATE, [AtRolloutEnd(look), StopOnce(lambda: sum(map(bool, told.values())) == 4)])
    assert len(windows) == 2
