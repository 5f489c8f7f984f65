"""Agents saved to a model file and loaded from it.

data.json                algorithm, attributes, optimizers' settings, versions
policy.safetensors       weights
optimizer.safetensors    states of both optimizers, as `policy.optimizer/0/exp_avg`
attributes.safetensors   arrays among the attributes
trusted.pickle           attributes that JSON can't hold, such as a lambda or a class of the user's
training.json            how training goes on, see `ctrl.agents.resuming.training_state`
training.safetensors     arrays of it
env0.pickle …            states of envs that give no plain data
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from gymnasium import Space, spaces
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from torch import Tensor

from ctrl.agents.resuming.training_state import restore_training_state, training_state
from ctrl.agents.saving.allowance import Allowance
from ctrl.agents.saving.archive import PathOrFile, naming
from ctrl.agents.saving.checks import check_names, check_optimizer, check_weights
from ctrl.agents.saving.json_values import Decoder, Encoder, pickled_names
from ctrl.agents.saving.model_file import ModelFile, read_model_file

if TYPE_CHECKING:
    from ctrl.agents.algorithm import MemoryAlgorithm
    from ctrl.agents.saving.saved_algorithm import SavedAlgorithm

Algorithm = TypeVar("Algorithm", bound="SavedAlgorithm")
Parameters = dict[str, dict[str, Any]]

TRAINING = "training"
"""Name of the entries with the state of training."""
LARGEST_SPACE = 2**22
"""Elements that a space may have, however small the weights are."""
LARGEST_NUMBER = 2**24
"""Largest whole number in `policy_kwargs`: code may make a list of that length before the first tensor."""
NEVER_PLAIN = ("policy", "device", "env", "rollout_buffer", "_actor", "_actors", "_logger", "_vec_normalize_env")
"""Attributes that are objects: a file has them only where its writer named them as `include`, and pickled."""
KINDS: dict[str, type] = {
    "ep_info_buffer": deque,
    "ep_success_buffer": deque,
    "tensorboard_log": str,
    "seed": int,
    "_last_episode_starts": np.ndarray,
}
"""Kinds of attributes that are None in a new model."""
RECENT = ("ep_info_buffer", "ep_success_buffer")
"""Attributes with what envs reported, of which only plain values are kept."""


def algorithm_name(algorithm: type) -> str:
    """Return the name of the algorithm of ours that a class is or derives from."""
    return next(base.__name__ for base in algorithm.__mro__ if base.__module__.startswith("ctrl.agents."))


# Saving


def save_model(
    model: SavedAlgorithm, path: PathOrFile, exclude: Iterable[str] | None, include: Iterable[str] | None
) -> None:
    """Write a model to a file; arguments as of `SavedAlgorithm.save`."""
    left_out = (set(exclude or ()) | set(model._excluded_save_params()) | {"policy"}) - (
        set(include or ()) - {"policy"}
    )
    encoder = Encoder()
    attributes = {
        name: encoder.encode(_plain_only(value) if name in RECENT else value, name)
        for name, value in vars(model).items()
        if name not in left_out
    }
    parameters = model.get_parameters()
    optimizers, states = _split_optimizers(parameters, encoder)
    training, arrays, pickles = training_state(cast("MemoryAlgorithm", model))
    ModelFile(
        data={
            "algorithm": algorithm_name(type(model)),
            "versions": get_system_info(print_info=False)[0],
            "attributes": attributes,
            "optimizers": optimizers,
        },
        json={TRAINING: training},
        tensors={
            "policy": parameters["policy"],
            "optimizer": states,
            "attributes": encoder.arrays,
            TRAINING: arrays,
        },
        pickled=encoder.pickled,
        optional=pickles,
    ).write(path)


def _plain_only(recent: Any) -> Any:
    """Return a queue of what envs reported, without what is neither a number nor text."""
    if recent is None or not all(isinstance(entry, dict) for entry in recent):
        return recent
    plain = (bool, int, float, str, np.bool_, np.number)
    return type(recent)(
        ({key: value for key, value in entry.items() if isinstance(value, plain)} for entry in recent), recent.maxlen
    )


def _split_optimizers(parameters: Parameters, encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the optimizers' settings as JSON, and the tensors of their states."""
    settings: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, state in parameters.items():
        if name == "policy":
            continue
        groups = encoder.encode(state["param_groups"], f"{name}.param_groups")
        settings[name] = {"param_groups": groups, "state": {}}
        for index, entries in state["state"].items():
            others = {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
            settings[name]["state"][str(index)] = encoder.encode(others, f"{name}.state.{index}")
            tensors |= {f"{name}/{index}/{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
    return settings, tensors


# Loading


def load_model(
    algorithm: type[Algorithm],
    path: PathOrFile,
    env: Any,
    device: torch.device | str,
    custom_objects: dict[str, Any] | None,
    print_system_info: bool,
    force_reset: bool,
    *,
    trust: bool,
    changes: dict[str, Any],
) -> Algorithm:
    """Read a model of a class from a file; arguments as of `SavedAlgorithm.load`, `changes` are its `kwargs`."""
    replaced = _replacements(custom_objects)
    file = read_model_file(path, trust=trust, replaced=replaced)
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
        print("== SAVED MODEL SYSTEM INFO ==", *map(": ".join, _versions(file)), sep="\n")
    with naming(path):
        _check_algorithm(file, algorithm)
        attributes = _attributes(file, replaced)
        _check_kinds(attributes, algorithm)
        _check_numbers(attributes["policy_kwargs"], layers=len(file.tensors.get("policy", {})))
    _check_policy_kwargs(attributes["policy_kwargs"], changes)
    if env is not None:
        env = algorithm._wrap_env(env, attributes["verbose"])
        check_for_correct_spaces(env, attributes["observation_space"], attributes["action_space"])
        attributes["n_envs"] = env.num_envs
        if force_reset:
            attributes["_last_obs"] = None
    with naming(path):
        model = _build(algorithm, file, attributes | changes, env or attributes.get("env"), device)
        _set_parameters(model, parameters_of(file), device)
        model.policy.core.check_settings()
        if TRAINING in file.json:  # older files have none
            arrays = file.tensors.get(TRAINING, {})
            restore_training_state(
                cast("MemoryAlgorithm", model), file.json[TRAINING], arrays, file.optional, trust=trust
            )
    return model


def _replacements(custom_objects: Any) -> dict[str, Any]:
    if custom_objects is not None and not isinstance(custom_objects, dict):
        raise ValueError(f"custom_objects must be a dict or None, got {custom_objects!r}")
    return custom_objects or {}


def _versions(file: ModelFile) -> list[tuple[str, str]]:
    versions = file.data.get("versions")
    return [(str(key), str(value)) for key, value in versions.items()] if isinstance(versions, dict) else []


def _check_algorithm(file: ModelFile, algorithm: type) -> None:
    saved, own = file.data.get("algorithm"), algorithm_name(algorithm)
    if saved != own:
        raise ValueError(f"it holds a {str(saved)[:50]}, not a {own}; load it with {str(saved)[:50]}.load")


def within_weights(file: ModelFile) -> Allowance:
    """Return a context in which a model may be built that is as large as the weights in a file."""
    return Allowance.for_model(file.tensors.get("policy", {}).values())


def arguments_of(file: ModelFile) -> dict[str, Any]:
    """Return the arguments of a policy that was saved alone.

    :raises ValueError: where one is not sound
    """
    arguments = _attributes(file, {})
    for name in ("observation_space", "action_space"):
        if not isinstance(arguments.get(name), Space):
            raise ValueError(f"{name} must be a Space, got {arguments.get(name)!r}")
    _check_numbers(arguments, layers=len(file.tensors.get("policy", {})))
    return arguments


def _attributes(file: ModelFile, replaced: Mapping[str, Any]) -> dict[str, Any]:
    decoder = Decoder(dict(file.tensors.get("attributes", {})), file.pickled, max(LARGEST_SPACE, _elements(file)))
    encoded = file.data["attributes"]
    for name in NEVER_PLAIN:
        if name in encoded and not pickled_names(encoded[name]):
            raise ValueError(f"{name} is no attribute of a file")
    return {
        name: replaced[name] if name in replaced else decoder.attribute(name, part) for name, part in encoded.items()
    }


def _elements(file: ModelFile) -> int:
    return sum(tensor.numel() for tensor in file.tensors.get("policy", {}).values())


def _check_policy_kwargs(saved: dict[str, Any], changes: dict[str, Any]) -> None:
    if "policy_kwargs" in changes and changes["policy_kwargs"] != saved:
        raise ValueError(
            f"policy_kwargs must be those of the file, got {changes['policy_kwargs']}; the file has {saved}"
        )


def _build(
    algorithm: type[Algorithm], file: ModelFile, attributes: dict[str, Any], env: Any, device: torch.device | str
) -> Algorithm:
    """Build the model with new weights, without allocating more than the weights in the file let expect."""
    _check_rollout(attributes)
    model: Algorithm = _new(algorithm, attributes["policy_class"], env, device)
    vars(model).update(attributes)
    with within_weights(file):
        model._setup_model()
        _check_last_observation(model)
    with Allowance.for_state():
        model.policy.core.initial_state(1)
    return model


def _new(algorithm: Any, policy: Any, env: Any, device: torch.device | str) -> Any:
    """Return a model with the default arguments, whose policy is not built yet."""
    return algorithm(policy, env, device=device, _init_setup_model=False)


def parameters_of(file: ModelFile) -> Parameters:
    """Return the state_dicts of a file by name, as `get_parameters` does.

    :raises ValueError: where settings and states of the optimizers do not belong together
    """
    decoder = Decoder(dict(file.tensors.get("attributes", {})), file.pickled, LARGEST_SPACE)
    parameters: Parameters = {"policy": dict(file.tensors.get("policy", {}))}
    for name, settings in file.data.get("optimizers", {}).items():
        groups = decoder.attribute(f"{name}.param_groups", settings["param_groups"])
        state = {int(index): decoder.decode(entries) for index, entries in settings["state"].items()}
        parameters[name] = {"param_groups": groups, "state": state}
    for path, tensor in file.tensors.get("optimizer", {}).items():
        name, index, key = path.split("/")
        if name not in parameters:
            raise ValueError(f"it has a state of {name}, but no settings")
        parameters[name]["state"][int(index)][key] = tensor
    return parameters


def checked_parameters(model: SavedAlgorithm, parameters: Parameters, *, complete: bool = True) -> Parameters:
    """Return the state_dicts of a file, ready for `set_parameters`.

    :param complete: whether none of the model's may be missing
    :raises ValueError: where weights or states do not fit the model, or are not finite
    """
    own = dict.fromkeys(model._get_torch_save_params()[0])
    check_names(parameters, own if complete else {**own, **dict.fromkeys(parameters)}, "weights and optimizers")
    check_weights(parameters["policy"], model.policy)
    return {
        name: given if name == "policy" else check_optimizer(given, recursive_getattr(model, name), name)
        for name, given in parameters.items()
    }


def _set_parameters(model: SavedAlgorithm, parameters: Parameters, device: torch.device | str) -> None:
    model.set_parameters(checked_parameters(model, parameters), exact_match=True, device=device)


def read_parameters(model: SavedAlgorithm, path: PathOrFile, *, complete: bool) -> Parameters:
    """Return the state_dicts of a file, ready for a model's `set_parameters`; see `checked_parameters`."""
    file = read_model_file(path, trust=False, replaced=None)
    with naming(path):
        return checked_parameters(model, parameters_of(file), complete=complete)


# Attributes from a file


def _check_kinds(attributes: dict[str, Any], algorithm: type[SavedAlgorithm]) -> None:
    """Refuse attributes of another kind than those of a new model, or that would stand before a method.

    :raises ValueError: naming the attribute
    """
    for name in ("policy_class", "policy_kwargs", "observation_space", "action_space", "n_envs", "verbose"):
        if name not in attributes:
            raise ValueError(f"{name} is missing")
    for name, kind in (("policy_kwargs", dict), ("observation_space", Space), ("action_space", Space)):
        if not isinstance(attributes[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {attributes[name]!r}")
    new = vars(_new(algorithm, "MlpMemoryPolicy", None, "cpu"))
    for name, value in attributes.items():
        if name not in new and hasattr(algorithm, name):
            raise ValueError(f"{name} is no attribute that can be set")
        if name in new:
            _check_kind(name, value, new[name])


def _check_kind(name: str, value: Any, new: Any) -> None:
    """Refuse a value of another kind than a new model has; None there leaves all but `KINDS` open."""
    if name in KINDS and value is not None and not isinstance(value, KINDS[name]):
        raise ValueError(f"{name} must be None or {KINDS[name].__name__}, got {value!r}")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(new, bool):
        fits = isinstance(value, bool)
    elif isinstance(new, int):
        fits = whole and value >= min(new, 0)
    elif isinstance(new, float):
        fits = whole or (isinstance(value, float) and math.isfinite(value)) or _is_schedule(value)
    else:
        fits = not isinstance(new, str | dict) or isinstance(value, type(new) | int)
    if not fits:
        raise ValueError(f"{name} must be of the kind of {new!r}, got {value!r}")


def _is_schedule(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _check_numbers(part: Any, layers: int, most: int = LARGEST_NUMBER) -> None:
    """Refuse whole numbers in nested settings that no model with so many layers could have."""
    if isinstance(part, int) and abs(part) > most:
        raise ValueError(f"policy_kwargs must have numbers of at most {most:,} there, got {part}")
    if isinstance(part, list | tuple):
        for inner in part:
            _check_numbers(inner, layers)
    for name, inner in part.items() if isinstance(part, dict) else ():
        _check_numbers(inner, layers, layers if "layers" in str(name) else LARGEST_NUMBER)


def _check_rollout(attributes: dict[str, Any]) -> None:
    """Refuse a rollout that this machine could not hold."""
    steps = attributes["n_steps"] * attributes.get("windows_per_update", 1) * attributes["n_envs"]
    size = steps * (32 + 4 * _size(attributes["observation_space"]))
    if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise ValueError(f"its rollouts of {steps:,} steps would take {size / 2**30:,.0f} GiB")


def _size(space: Space[Any]) -> int:
    if isinstance(space, spaces.Dict):
        return sum(map(_size, space.spaces.values()))
    return math.prod(space.shape or ())


def _check_last_observation(model: SavedAlgorithm) -> None:
    """Refuse a last observation that is not of the model's space."""
    last, space = model._last_obs, model.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    given: Any = last if isinstance(last, dict) else {"": last}
    if last is None:
        return
    check_names(given, parts, "observations")
    for key, part in parts.items():
        wanted, found = (model.n_envs, *(part.shape or ())), np.shape(given[key])
        if found != wanted:  # NaN is left to training, which says where it comes from
            raise ValueError(f"_last_obs must have shape {wanted}, got {found}")
