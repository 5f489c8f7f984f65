"""Model files: what is kept, what runs no code, and what is refused."""

from __future__ import annotations

import io
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import BOTH, make_impala
from agent_toys import make_model, same_weights, staggered_env, weights_of
from file_toys import Bomb, entries_of, saved, with_data, zipped
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from ctrl import Tier
from ctrl.agents import MemoryImpala, MemoryPPO
from ctrl.agents.saving.json_values import Decoder, Encoder
from ctrl.agents.saving.model_file import algorithm_of


class OwnExtractor(FlattenExtractor):
    """Class that no file may name."""


@lru_cache
def ppo_file() -> bytes:
    return saved()


@lru_cache
def impala_file() -> bytes:
    return saved(make_impala)


def round_trip(value: Any) -> Any:
    encoder = Encoder()
    encoded = encoder.encode(value, "it")
    assert not encoder.pickled
    return Decoder({name: torch.as_tensor(array) for name, array in encoder.arrays.items()}, {}, 99).decode(encoded)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"], 3: (4, -np.inf)},
        [Tier(3), Tier(4, 2, "conv")],
        {"#": "a user's key"},
        (torch.nn.Tanh, torch.optim.AdamW, FlattenExtractor),
        spaces.Box(-1.0, np.inf, (2, 3), np.float32),
        spaces.Box(np.array([0, -5]), np.array([9, 7]), dtype=np.int16),
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([3, 7]),
        spaces.MultiBinary(5),
        spaces.MultiBinary((2, 3)),
        spaces.Dict({"z": spaces.Discrete(4), "a b.c": spaces.Box(0, 255, (1, 2, 3), np.uint8)}),
        spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(2))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive(value: Any) -> None:
    assert round_trip(value) == value
    assert type(round_trip(value)) is type(value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(7), np.bool_(True)])
def test_numbers_of_numpy_become_plain(value: Any) -> None:
    assert round_trip(value) == value and type(round_trip(value)) is type(value.item())


def test_arrays_survive() -> None:
    value = {"last": np.arange(6, dtype=np.uint8).reshape(2, 3), "weights": torch.ones(2, dtype=torch.bfloat16)}
    result = round_trip(value)
    assert result["last"].dtype == np.uint8 and result["last"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert result["weights"].dtype == torch.bfloat16 and result["weights"].tolist() == [1, 1]


@pytest.mark.parametrize("schedule", [ConstantSchedule(0.3), LinearSchedule(0.3, 0.1, 0.5)])
@pytest.mark.parametrize("wrap", [lambda schedule: schedule, FloatSchedule])
def test_schedules_survive(schedule: Any, wrap: Any) -> None:
    result = round_trip(wrap(schedule))
    assert [result(left) for left in (1, 0.7, 0)] == [schedule(left) for left in (1, 0.7, 0)]
    assert type(result) is type(wrap(schedule))


@BOTH
def test_file_objects_and_names_are_those_of_stable_baselines3(make: Any, tmp_path: Path) -> None:
    model = make(staggered_env(), "gru")
    model.save(tmp_path / "agent")
    model.save(str(tmp_path / "other.v1"))
    with pytest.warns(UserWarning, match="does not exist. Will create it"):
        model.save(tmp_path / "new" / "agent.zip")
    file = io.BytesIO()
    model.save(file)
    assert sorted(os.listdir(tmp_path)) == ["agent.zip", "new", "other.v1"]
    for path in (tmp_path / "agent", tmp_path / "agent.zip", str(tmp_path / "other.v1"), tmp_path / "new/agent", file):
        assert same_weights(weights_of(type(model).load(path, device="cpu")), weights_of(model))
    (tmp_path / "agent.zip").unlink()
    (tmp_path / "agent.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder. Will save instead to .*agent.zip_2"):
        model.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip_2").is_file()


def test_exclude_include_and_attributes_of_users(tmp_path: Path) -> None:
    model: Any = make_model(staggered_env(), "gru")
    model.tag, model.other = {"run": 3}, "left out"
    model.save(tmp_path / "agent", exclude=["other", "refresh"], include=["_batch_windows"])
    loaded: Any = MemoryPPO.load(tmp_path / "agent", device="cpu", verbose=1)
    assert loaded.tag == {"run": 3} and not hasattr(loaded, "other") and loaded.verbose == 1


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(staggered_env(), "gru")
    model.save(tmp_path / "agent")
    before = (tmp_path / "agent.zip").read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path / "agent")
    assert (tmp_path / "agent.zip").read_bytes() == before and os.listdir(tmp_path) == ["agent.zip"]


def test_a_file_is_written_beside_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "link.zip").symlink_to(tmp_path / "real.zip")
    make_model(staggered_env(), "gru").save(tmp_path / "link.zip")
    assert (tmp_path / "link.zip").is_symlink() and (tmp_path / "real.zip").is_file()


# Trust


def test_a_lambda_needs_trust_or_a_replacement(tmp_path: Path) -> None:
    make_model(staggered_env(), "gru", learning_rate=lambda left: left / 8).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"learning_rate can only be read by unpickling, which runs code.*trust=True"):
        MemoryPPO.load(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"custom_objects={'learning_rate': …}"):
        MemoryPPO.load(tmp_path / "agent")
    assert MemoryPPO.load(tmp_path / "agent", trust=True, device="cpu").lr_schedule(1) == 0.125
    replaced = MemoryPPO.load(tmp_path / "agent", device="cpu", custom_objects={"learning_rate": 0.5})
    assert replaced.lr_schedule(1) == 0.5
    make_model(staggered_env(), "gru").set_parameters(tmp_path / "agent")  # weights need no trust


def test_a_class_of_the_user_needs_trust(tmp_path: Path) -> None:
    kwargs = {"features_extractor_class": OwnExtractor, "activation_fn": torch.nn.Tanh}
    model = make_model(staggered_env(), "gru", policy_kwargs=kwargs)
    model.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="policy_kwargs.features_extractor_class can only be read by unpickling"):
        MemoryPPO.load(tmp_path / "agent")
    loaded = MemoryPPO.load(tmp_path / "agent", trust=True, device="cpu")
    assert loaded.policy_kwargs == model.policy_kwargs
    replaced = MemoryPPO.load(tmp_path / "agent", device="cpu", custom_objects={"policy_kwargs": model.policy_kwargs})
    assert type(replaced.policy.features_extractor) is OwnExtractor


@pytest.mark.parametrize("refers", [True, False])
def test_no_pickle_is_opened_unless_it_is_trusted_and_needed(refers: bool, tmp_path: Path) -> None:
    bomb = tmp_path / "ran"
    file = with_data(
        ppo_file(), lambda data: data["attributes"].update(x={"#": "pickled", "name": "x"}) if refers else None
    )
    entries = {**entries_of(file.getvalue()), "trusted.pickle": cloudpickle.dumps({"x": Bomb(bomb)})}
    if refers:
        with pytest.raises(ValueError, match="x can only be read by unpickling"):
            MemoryPPO.load(zipped(entries))
        MemoryPPO.load(zipped(entries), custom_objects={"x": 1})
    else:
        MemoryPPO.load(zipped(entries), trust=True)
    assert algorithm_of(zipped(entries)) == "MemoryPPO" and not bomb.exists()
    if refers:
        MemoryPPO.load(zipped(entries), trust=True)
        assert bomb.exists()


@pytest.mark.parametrize("algorithm", [MemoryPPO, MemoryImpala])
def test_pickles_of_stable_baselines3_need_trust(algorithm: Any, tmp_path: Path) -> None:
    make = make_impala if algorithm is MemoryImpala else make_model
    model = make(staggered_env(), "gru")
    OnPolicyAlgorithm.save(model, tmp_path / "old")
    assert algorithm_of(tmp_path / "old.zip") == algorithm.__name__
    for read in (algorithm.load, make(staggered_env(), "gru").set_parameters):
        with pytest.raises(ValueError, match=r"old cannot be read: it is pickled.*trust=True"):
            read(tmp_path / "old")
    loaded = algorithm.load(tmp_path / "old", trust=True, device="cpu")
    assert same_weights(weights_of(loaded), weights_of(model))
    with torch.no_grad():
        model.policy.value_net.weight[0] = np.nan
    OnPolicyAlgorithm.save(model, tmp_path / "old")
    with pytest.raises(ValueError, match=r"value_net.weight is not finite"):
        algorithm.load(tmp_path / "old", trust=True)


def test_a_file_of_the_other_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds a MemoryImpala, not a MemoryPPO; load it with MemoryImpala.load"):
        MemoryPPO.load(io.BytesIO(impala_file()))
    with pytest.raises(ValueError, match=r"holds a MemoryPPO, not a MemoryImpala; load it with MemoryPPO.load"):
        MemoryImpala.load(io.BytesIO(ppo_file()))


def test_a_class_derived_from_an_algorithm_keeps_its_files() -> None:
    class Own(MemoryPPO):
        """Derived."""

    file = io.BytesIO()
    Own("MlpMemoryPolicy", gym.make("CartPole-v1"), policy_kwargs={"core": "gru"}).save(file)
    assert type(Own.load(file)) is Own and type(MemoryPPO.load(file)) is MemoryPPO
