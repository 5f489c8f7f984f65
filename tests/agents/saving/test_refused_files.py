"""Model files that are damaged, or whose contents are not sound, are refused in one line that says what is wrong."""

from __future__ import annotations

import io
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import make_model, staggered_env
from file_toys import entries_of, saved, with_data, with_tensors, zipped

from ctrl.agents import MemoryPPO


@lru_cache
def ppo_file() -> bytes:
    return saved()


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
    "episodes": (attribute("ep_info_buffer", 3), "ep_info_buffer must be None or deque, got 3"),
    "seed": (attribute("seed", "x"), "seed must be None or int, got 'x'"),
    "log": (attribute("tensorboard_log", 5), "tensorboard_log must be None or str, got 5"),
    "class for a number": (attribute("ent_coef", {"#": "class", "name": "torch.ReLU"}), "ent_coef must be of the kind"),
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
