"""Base class of algorithms that are saved as model files, with the arguments of stable-baselines3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.saving.archive import PathOrFile, naming
from ctrl.agents.saving.checks import check_parameters
from ctrl.agents.saving.model_file import is_pickled
from ctrl.agents.saving.models import load_model, read_parameters, save_model
from ctrl.agents.utils.validation import check_device

Self = TypeVar("Self", bound="SavedAlgorithm")


MADE_ANEW = (
    *("_actor", "_built", "_checked_env", "_in_rollout", "_lags", "_last_original_obs", "_logged_before"),
    *("_memory_lr_schedule", "_saved_state", "_step_in_flight", "lr_schedule"),
)
"""Attributes that follow from others, or that the state of training holds."""


class SavedAlgorithm(OnPolicyAlgorithm):
    """Algorithm of stable-baselines3 whose files hold safetensors and JSON, see `ctrl.agents.saving.models`."""

    policy: MemoryPolicy

    def save(
        self, path: PathOrFile, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Save the agent in a zip file of JSON and safetensors, which `load` reads without running code from it.

        Only what JSON can't hold is pickled, such as a lambda as a schedule or a class of yours in `policy_kwargs`. To
        load such a file takes `trust=True`. Under its own name the file is always whole, even after a crash.

        :param path: as in stable-baselines3: without a suffix it gets `.zip`; or a file object
        :param exclude: attributes to leave out, beside those that always are
        :param include: attributes to keep though they are left out otherwise
        :raises ValueError: where an attribute can't be pickled
        """
        save_model(self, path, exclude, include)

    @classmethod
    def load(
        cls: type[Self],
        path: PathOrFile,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load an agent, with arguments as in stable-baselines3. No code from the file is run unless `trust` is given.

        :param path: of the file, with or without `.zip`; or a file object
        :param env: env to learn in; None where the agent shall only play
        :param device: device of the policy
        :param custom_objects: attributes to use in place of those in the file, which are then not read
        :param print_system_info: print the versions of this machine and of the one that saved the file
        :param force_reset: begin new episodes before learning goes on
        :param trust: whether to unpickle what the file has pickled, which runs code from it
        :param kwargs: attributes to change after loading
        :raises OSError: where there is no such file
        :raises ValueError: where the file is damaged, holds another algorithm, needs trust or does not fit `env`; where
            its weights, statistics or settings are not finite or do not fit the model that they are for
        """
        check_device(device)
        arguments = (path, env, device, custom_objects, print_system_info, force_reset)
        if trust and is_pickled(path):
            with naming(path):
                model = super().load(*arguments, **kwargs)
                check_parameters(model.policy)
                return model
        return load_model(cls, *arguments, trust=trust, changes=kwargs)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Set weights and optimizers from a saved file or from a dict as of `get_parameters`.

        :param exact_match: whether none may be missing
        :raises ValueError: where they do not fit the model; those of a file also where they are not finite
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = read_parameters(self, load_path_or_dict, complete=exact_match)
        super().set_parameters(load_path_or_dict, exact_match, device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *MADE_ANEW]
