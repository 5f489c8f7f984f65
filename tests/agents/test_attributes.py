"""Arguments: numbers of numpy, schedules, and changes after the model was built, which take effect or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import BOTH, UPDATE, make_impala
from agent_toys import AtRolloutEnd, Scalars, StopAfter, make_model, same_weights, staggered_env, weights_of
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

SHARED = {
    "ent_coef": 0.02,
    "vf_coef": 0.3,
    "max_grad_norm": 0.01,
    "memory_max_grad_norm": 0.001,
    "learning_rate": 1e-2,
    "memory_learning_rate": 1e-2,
}
OF_PPO = {**SHARED, "clip_range": 1e-6, "clip_range_vf": 1e-6, "gae_lambda": 0.2, "target_kl": 1e-7}
OF_IMPALA = {**SHARED, "rho_bar": 0.5, "c_bar": 0.5, "vtrace_lambda": 0.2}
SCHEDULED = [(make_model, name, value) for name, value in OF_PPO.items()]
SCHEDULED += [(make_impala, name, value) for name, value in OF_IMPALA.items()]  # type: ignore[misc]
LIVE = [*SCHEDULED, (make_model, "n_epochs", 1), (make_model, "batch_size", 8), (make_model, "gamma", 0.1)]
LIVE += [(make_impala, "gamma", 0.1), (make_impala, "reward_clipping", "abs_one")]  # type: ignore[list-item]


def name_of(value: Any) -> str:
    return {make_model: "ppo", make_impala: "impala"}.get(value, str(value)) if callable(value) else str(value)


def trained(make: Any, name: str, callback: Any = None, **options: Any) -> Any:
    """Train for three updates, with a core that has an optimizer of its own only where the argument is about that."""
    core = "compressive" if name.startswith("memory") else "feedforward"
    return make(staggered_env(), core, **{"learning_rate": 3e-3, **options}).learn(3 * UPDATE, callback)


# Numbers


NUMPY: dict[str, Any] = {
    "n_steps": np.int64(6),
    "batch_size": np.int32(6),
    "gamma": np.float32(0.5),
    "learning_rate": np.float64(1e-3),
    "ent_coef": np.array(0.0),
    "vf_coef": torch.tensor(0.5),
    "max_grad_norm": np.float16(0.5),
    "seed": np.int64(3),
}


@BOTH
def test_numbers_of_numpy_are_numbers(make: Any) -> None:
    window = {"window": np.int64(6)} if make is make_model else {"windows_per_update": np.int8(2)}
    model = make(staggered_env(), **NUMPY, **window).learn(72)
    plain = make(staggered_env(), **{name: value.item() for name, value in {**NUMPY, **window}.items()}).learn(72)
    for name in [*NUMPY, *window]:
        assert type(getattr(model, name)) in (int, float), name
    assert same_weights(weights_of(model), weights_of(plain))


@pytest.mark.parametrize("value", [np.array([1, 2]), np.float64(2.5), np.bool_(True), np.nan, "4", None])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="n_epochs must be a whole number of at least 1"):
        make_model(staggered_env(), n_epochs=value)


# Schedules


@pytest.mark.parametrize(("make", "name", "value"), SCHEDULED, ids=name_of)
def test_coefficients_take_schedules(make: Any, name: str, value: float) -> None:
    """A constant function is the number, and one that changes later is another run."""
    later = 1e9 if name in ("target_kl", "clip_range", "clip_range_vf") else 0.5 * value
    number = weights_of(trained(make, name, **{name: value}))
    constant = weights_of(trained(make, name, **{name: lambda _: value}))
    assert same_weights(number, constant)
    changing = weights_of(trained(make, name, **{name: lambda left: value if left > 0.9 else later}))
    assert not same_weights(number, changing)


@BOTH
def test_a_schedule_of_something_else_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="ent_coef must be a schedule of finite numbers, got nan"):
        trained(make, "ent_coef", ent_coef=lambda _: float("nan"))
    with pytest.raises(ValueError, match="gamma must be a finite number"):
        make(staggered_env(), gamma=lambda _: 0.9)


# Changes


@pytest.mark.parametrize(("make", "name", "value"), LIVE, ids=name_of)
def test_a_change_during_training_takes_effect(make: Any, name: str, value: Any) -> None:
    """From the second rollout on the run is another one; the first update is the same."""
    options = {"clip_range_vf": 1.0, "target_kl": 1.0} if make is make_model else {}
    seen: list[Any] = []

    def change(model: Any) -> None:
        seen.append(weights_of(model))
        if len(seen) == 2:
            setattr(model, name, value)

    changed = weights_of(trained(make, name, AtRolloutEnd(change), **options))
    plain = trained(make, name, AtRolloutEnd(lambda model: seen.append(weights_of(model))), **options)
    assert same_weights(seen[1], seen[4])
    assert not same_weights(changed, weights_of(plain))


FIXED = [(make_model, name, value) for name, value in (("n_steps", 48), ("window", 4), ("refresh", "recompute"))]
FIXED += [(make_impala, "n_steps", 12), (make_impala, "windows_per_update", 2), (make_impala, "use_rms_prop", True)]  # type: ignore[list-item]
FIXED += [(each, "policy_kwargs", {}) for each in (make_model, make_impala)]  # type: ignore[misc]
FIXED += [(each, "use_masking", False) for each in (make_model, make_impala)]  # type: ignore[misc]
FIXED += [(each, "seed", 5) for each in (make_model, make_impala)]  # type: ignore[misc]


@pytest.mark.parametrize(("make", "name", "value"), FIXED, ids=name_of)
def test_what_decides_sizes_is_fixed(make: Any, name: str, value: Any) -> None:
    model = make(staggered_env())
    before = getattr(model, name)
    with pytest.raises(ValueError, match=f"{name} is fixed when the model is built"):
        setattr(model, name, value)
    assert getattr(model, name) == before
    setattr(model, name, before)


@BOTH
def test_a_change_that_does_not_fit_is_refused_and_undone(make: Any) -> None:
    model = make(staggered_env())
    before = model.batch_size
    for name, value in (("batch_size", 7), ("ent_coef", -1.0), ("learning_rate", "fast"), ("gamma", 2)):
        with pytest.raises(ValueError, match=name):
            setattr(model, name, value)
    assert model.batch_size == before and model.ent_coef == 0.01


def test_what_actors_have_got_is_fixed_while_they_run() -> None:
    found: list[str] = []

    def change(model: Any) -> None:
        with pytest.raises(ValueError, match="gamma is fixed while actors run, at 0.99") as error:
            model.gamma = 0.5
        found.append(str(error.value))

    model = make_impala(staggered_env(), num_actors=1)
    model.learn(UPDATE, AtRolloutEnd(change))
    assert len(found) == 1
    model.gamma = 0.5
    assert model.gamma == 0.5


@BOTH
def test_a_loaded_model_has_the_same_rules(make: Any, tmp_path: Any) -> None:
    make(staggered_env()).save(tmp_path / "agent")
    loaded = type(make(staggered_env())).load(tmp_path / "agent", env=staggered_env(), device="cpu")
    with pytest.raises(ValueError, match="n_steps is fixed"):
        loaded.n_steps = 3
    loaded.learning_rate = 0.5
    loaded.learn(UPDATE)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 0.5


# Callbacks and the logger


NAMES = ("self", "env", "callback", "rollout_buffer", "n_rollout_steps", "n_steps", "obs_tensor", "actions", "values")
NAMES += ("log_probs", "clipped_actions", "new_obs", "rewards", "dones", "infos")  # type: ignore[assignment]


class Reader(BaseCallback):
    """Callback that keeps a copy of the locals of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.steps.append({name: self.locals[name] for name in NAMES})
        return True

    def _on_rollout_end(self) -> None:
        assert {"rollout_buffer", "env", "n_rollout_steps"} <= set(self.locals)


@pytest.mark.parametrize("kind", ["ppo", "impala", "impala with actors"])
def test_callbacks_find_the_locals_of_stable_baselines3(kind: str) -> None:
    env = staggered_env(action_space=spaces.Box(-0.1, 0.1, (2,)))
    model: Any = make_model(env) if kind == "ppo" else make_impala(env, num_actors=int(kind != "impala"))
    reader = Reader()
    model.learn(UPDATE, reader)
    assert len(reader.steps) == UPDATE // 3
    for number, found in enumerate(reader.steps):
        assert found["self"] is model and found["rollout_buffer"] is model.rollout_buffer
        assert found["env"] is model.env and found["n_steps"] == number and found["n_rollout_steps"] == 24
        assert found["obs_tensor"].shape == (3, 3) and isinstance(found["obs_tensor"], torch.Tensor)
        assert found["values"].shape == (3, 1) and found["log_probs"].shape == (3,)
        assert found["actions"].shape == found["clipped_actions"].shape == (3, 2)
        assert np.abs(found["clipped_actions"]).max() <= np.float32(0.1) < np.abs(found["actions"]).max() + 1
        assert found["rewards"].shape == found["dones"].shape == (3,) and len(found["infos"]) == 3
    for found, following in zip(reader.steps[:5], reader.steps[1:6], strict=True):
        np.testing.assert_array_equal(found["new_obs"], following["obs_tensor"].numpy())


@BOTH
def test_the_logger_gets_plain_numbers(make: Any) -> None:
    writer = Scalars()
    options = {"clip_range_vf": np.float32(0.5)} if make is make_model else {}
    model = make(staggered_env(action_space=spaces.Box(-1, 1, (2,))), learning_rate=np.float32(1e-3), **options)
    model.set_logger(Logger(None, [writer]))
    model.learn(3 * UPDATE)
    kinds = {key: {type(value) for value in values} for key, values in writer.values.items() if key != "hparams"}
    assert len(kinds) > 15 and {key: found for key, found in kinds.items() if not found <= {int, float}} == {}


def test_stopping_keeps_the_locals_of_the_last_step() -> None:
    callback = StopAfter(2)
    make_model(staggered_env()).learn(UPDATE, callback)
    assert callback.locals["n_steps"] == 1
