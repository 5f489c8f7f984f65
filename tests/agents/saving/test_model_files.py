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
from file_toys import Bomb, entries_of, saved, with_data, with_tensors, zipped
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


# Refused


def refused(file: io.BytesIO, message: str, algorithm: Any = MemoryPPO) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        algorithm.load(file, device="cpu")
    assert str(caught.value).startswith("the BytesIO")


def fill(name: str, value: float) -> Any:
    return lambda tensors: tensors[name].fill_(value)


POLICY = {
    "nan": (fill("value_net.bias", np.nan), "value_net.bias is not finite"),
    "infinity": (fill("core.embed.weight", np.inf), "core.embed.weight is not finite"),
    "statistics": (fill("value_normalisation.mean", np.nan), "value_normalisation.mean is not finite"),
    "scale": (fill("value_normalisation.scale", -1), "value_normalisation.scale must be at least 0"),
    "count": (fill("value_normalisation.updates", -1), "value_normalisation.updates must be from 0"),
    "clock": (fill("core.clock.end", 2**62 + 1), "core.clock.end must be from 0"),
    "missing": (lambda tensors: tensors.pop("value_net.bias"), "lack value_net.bias"),
    "extra": (lambda tensors: tensors.update(more=torch.zeros(1)), "have unknown more"),
    "shape": (
        lambda tensors: tensors.update({"value_net.bias": torch.zeros(2)}),
        r"must have shape \(1,\), got \(2,\)",
    ),
    "dtype": (lambda tensors: tensors.update({"value_net.bias": torch.zeros(1).double()}), "must be torch.float32"),
}


@pytest.mark.parametrize("case", POLICY)
def test_weights_that_are_not_sound_are_refused(case: str) -> None:
    change, message = POLICY[case]
    file = with_tensors(ppo_file(), "policy", change)
    refused(file, message)
    with pytest.raises(ValueError, match=message):
        make_model(staggered_env()).set_parameters(file)


FIRST = "policy.optimizer/0"
OPTIMIZER = {
    "moment": (fill(f"{FIRST}/exp_avg", np.nan), "exp_avg of parameter 0 is not finite"),
    "square": (fill(f"{FIRST}/exp_avg_sq", -1e-9), "exp_avg_sq of parameter 0 must be at least 0"),
    "step": (fill(f"{FIRST}/step", -1), "step of parameter 0 must be at least 0"),
    "of compressors": (fill("policy.memory_optimizer/1/exp_avg", np.inf), "memory_optimizer: exp_avg of parameter 1"),
    "missing": (lambda tensors: tensors.pop(f"{FIRST}/step"), "lack step"),
    "extra": (lambda tensors: tensors.update({f"{FIRST}/more": torch.zeros(1)}), "have unknown more"),
    "unknown": (lambda tensors: tensors.update({"policy.optimizer/99/step": torch.zeros(1)}), "KeyError: 99|no such"),
    "name": (lambda tensors: tensors.update({"a/b": torch.zeros(1)}), "cannot be read"),
    "shape": (lambda tensors: tensors.update({f"{FIRST}/exp_avg": torch.zeros(8, 5)}), r"must have shape \(8, 6\)"),
    "dtype": (lambda tensors: tensors.update({f"{FIRST}/exp_avg": torch.zeros(8, 6).half()}), "must be torch.float32"),
}


@pytest.mark.parametrize("case", OPTIMIZER)
def test_optimizers_that_are_not_sound_are_refused(case: str) -> None:
    change, message = OPTIMIZER[case]
    file = with_tensors(ppo_file(), "optimizer", change)
    refused(file, message)
    with pytest.raises(ValueError, match=message):
        make_model(staggered_env()).set_parameters(file)


def group(name: str, value: Any) -> Any:
    return lambda data: data["optimizers"]["policy.optimizer"]["param_groups"][0].update({name: value})


def attribute(name: str, value: Any) -> Any:
    return lambda data: data["attributes"].update({name: value})


def core(**options: Any) -> Any:
    return lambda data: data["attributes"]["policy_kwargs"]["core_kwargs"].update(options)


def tier(**parts: Any) -> dict[str, Any]:
    return {"#": "Tier", "slots": 3, "rate": 1, "compressor": "mean", **parts}


def box(**parts: Any) -> Any:
    space = {"#": "Box", "shape": [3], "dtype": "float32", "low": -100.0, "high": 100.0, **parts}
    return attribute("observation_space", space)


SETTINGS: dict[str, tuple[Any, str]] = {
    "rate": (attribute("learning_rate", -1e-3), "learning_rate must be above 0"),
    "falling rate": (
        attribute("learning_rate", {"#": "LinearSchedule", "start": -1, "end": 0, "end_fraction": 1}),
        "a schedule needs finite numbers of at least 0, got -1",
    ),
    "rate of compressors": (attribute("memory_learning_rate", "high"), "memory_learning_rate must be of the kind of"),
    "kept rate": (group("lr", -1.0), "lr must be finite and at least 0"),
    "betas": (group("betas", {"#": "tuple", "items": [0.9, 1.5]}), "betas must be below 1"),
    "group": (group("more", 1), "have unknown more"),
    "parameters": (group("params", [0]), "other parameters"),
    "gamma": (attribute("gamma", 1.5), "gamma must be at most 1"),
    "steps": (attribute("n_steps", 0), "n_steps must be a whole number"),
    "kind": (attribute("num_timesteps", "many"), "num_timesteps must be of the kind of 0"),
    "count": (attribute("num_timesteps", -5), "num_timesteps must be of the kind of 0"),
    "switch": (attribute("normalize_values", 3), "normalize_values must be of the kind of True"),
    "method": (attribute("predict", 1), "predict is no attribute that can be set"),
    "policy": (attribute("policy", 1), "policy is no attribute of a file"),
    "class": (attribute("policy_class", {"#": "class", "name": "os.system"}), "none of those that a file may name"),
    "kind of value": (attribute("x", {"#": "lambda"}), "there is no kind 'lambda'"),
    "no space": (attribute("observation_space", 3), "observation_space must be a Space"),
    "last observation": (attribute("_last_obs", [1, 2]), "_last_obs must have shape"),
    "width": (core(width=10**7), "larger than the weights in the file"),
    "layers": (core(layers=10**9), "numbers of at most"),
    "many layers": (core(layers=40, memory=[tier()]), "more layers than the weights in the file"),
    "slots": (core(memory=[tier(slots=10**9)]), "larger than the weights in the file"),
    "stored slots": (core(memory=[tier(slots=4 * 10**6)]), "larger than the weights in the file"),
    "tier": (core(memory=[tier(slots=2**60)]), "a Tier has at most"),
    "space": (box(shape=[10**9]), "too large for the model"),
    "space's type": (box(dtype="object"), "no type of numbers"),
    "space's bound": (box(low="x"), "observation_space is not sound"),
    "one-hot": (attribute("action_space", {"#": "Discrete", "n": 10**12, "start": 0, "dtype": "int64"}), "larger than"),
    "encoder": (lambda data: data["attributes"]["policy_kwargs"].update(encoder_arch=[8] * 9999), "the weights in"),
    "rollout": (attribute("n_steps", 8 * 10**12), "its rollouts of"),
    "core": (lambda data: data["attributes"]["policy_kwargs"].update(core="unknown"), "unknown core 'unknown'"),
    "version": (lambda data: data.update(version=99), "version 99 of the format"),
    "format": (lambda data: data.update(format="x"), "no model file of ctrl"),
    "attributes": (lambda data: data.update(attributes=[]), "no table"),
    "optimizers": (lambda data: data.update(optimizers={}), "a state of policy.optimizer, but no settings"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_not_sound_are_refused(case: str) -> None:
    change, message = SETTINGS[case]
    refused(with_data(ppo_file(), change), message)


def raw(**changes: bytes) -> Any:
    return lambda entries: entries.update({f"{name.replace('_', '.')}": content for name, content in changes.items()})


BROKEN: dict[str, tuple[Any, str]] = {
    "no data": (lambda entries: entries.pop("data.json"), "it is no model file"),
    "deep": (raw(data_json=b"[" * 200_000 + b"]" * 200_000), "nested too deeply"),
    "nan": (raw(data_json=b'{"a": NaN}'), "NaN is not a finite number"),
    "large": (raw(data_json=b'{"a": 1e999}'), "1e999 is not a finite number"),
    "digits": (raw(data_json=b'{"a": ' + b"9" * 9999 + b"}"), "data.json"),
    "twice": (raw(data_json=b'{"a": 1, "a": 2}'), "a key is given twice"),
    "text": (raw(data_json=b'{"a": "\xff"}'), "utf-8"),
    "long": (raw(data_json=b" " * (2**23 + 1)), "longer than"),
    "header": (raw(policy_safetensors=(2**40).to_bytes(8, "little") + b"{}"), "its header has"),
    "declared": (
        raw(policy_safetensors=(60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[99999999],'.ljust(60)),
        "policy.safetensors",
    ),
    "no tensors": (lambda entries: entries.pop("policy.safetensors"), "numbers of at most 0 there"),
    "no safetensors": (raw(optimizer_safetensors=b"x" * 99), "optimizer.safetensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_entries_that_are_broken_are_refused(case: str) -> None:
    change, message = BROKEN[case]
    entries = entries_of(ppo_file())
    change(entries)
    refused(zipped(entries), message)


def test_compressed_entries_are_refused() -> None:
    entries = {**entries_of(ppo_file()), "policy.safetensors": bytes(10**8)}
    refused(zipped(entries, zipfile.ZIP_DEFLATED), "is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused() -> None:
    file = io.BytesIO(ppo_file())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("data.json", "{}")
    refused(file, "two entries of one name")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="is not a file"):
            MemoryPPO.load(path)
    with pytest.raises(FileNotFoundError):
        MemoryPPO.load(tmp_path / "missing")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text.zip is not a whole zip file"):
        MemoryPPO.load(tmp_path / "text.zip")


def test_a_last_observation_that_is_not_finite_is_left_to_training() -> None:
    """A checkpoint may come from just before an env's fault."""
    file = with_tensors(ppo_file(), "attributes", fill("_last_obs", np.nan))
    assert np.isnan(MemoryPPO.load(file, device="cpu")._last_obs).all()  # type: ignore[arg-type]
