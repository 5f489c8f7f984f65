"""Base class of policies that are saved alone, in files of the same format as models."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, get_device

from ctrl.agents.saving.archive import PathOrFile, naming

Self = TypeVar("Self", bound="SavedPolicy")

POLICY = "policy alone"
"""Stands for the algorithm in a policy's file."""


class SavedPolicy(ActorCriticPolicy):
    """Policy of stable-baselines3 whose file holds safetensors and JSON."""

    def save(self, path: PathOrFile) -> None:
        """Save the policy, without its optimizers, in a file that `load` reads without running code from it.

        :param path: path, which is taken as it is, or a file object
        :raises ValueError: where an argument of the policy can't be pickled
        """
        from ctrl.agents.saving.json_values import Encoder  # which knows all policies
        from ctrl.agents.saving.model_file import ModelFile

        encoder = Encoder()
        arguments = {name: value for name, value in self._get_constructor_parameters().items() if name != "lr_schedule"}
        attributes = {name: encoder.encode(value, name) for name, value in arguments.items()}
        ModelFile(
            data={"algorithm": POLICY, "attributes": attributes, "optimizers": {}},
            tensors={"policy": self.state_dict(), "attributes": encoder.arrays},
            pickled=encoder.pickled,
        ).write(path, suffix="")

    @classmethod
    def load(cls: type[Self], path: PathOrFile, device: torch.device | str = "auto", *, trust: bool = False) -> Self:
        """Load a policy that was saved alone. No code from the file is run unless `trust` is given.

        :param path: path or file object
        :param device: device of the policy
        :param trust: whether to unpickle what the file has pickled, which runs code from it
        :raises OSError: where there is no such file
        :raises ValueError: where the file is damaged, holds something else or needs trust, or its weights are not
            finite or do not fit its settings
        """
        from ctrl.agents.saving.checks import check_weights
        from ctrl.agents.saving.model_file import read_model_file
        from ctrl.agents.saving.models import arguments_of, within_weights

        file = read_model_file(path, trust=trust)
        with naming(path):
            if file.data.get("algorithm") != POLICY:
                raise ValueError(f"it holds a {str(file.data.get('algorithm'))[:50]}, not a policy alone")
            arguments: Any = {**arguments_of(file), "lr_schedule": ConstantSchedule(0.0)}
            with within_weights(file):
                policy = cls(**arguments)
            weights = dict(file.tensors.get("policy", {}))
            check_weights(weights, policy)
            policy.load_state_dict(weights)
            return policy.to(get_device(device))
