"""Features extractors that also take what those of stable-baselines3 fail at: scalars, odd keys and small images."""

from __future__ import annotations

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from torch import Tensor, nn

SMALLEST_IMAGE = 36
"""Height and width that `NatureCNN` needs at least."""


class FlatExtractor(FlattenExtractor):
    """`FlattenExtractor` that takes scalars too."""

    def forward(self, observations: Tensor) -> Tensor:
        """Return [N, F] for observations [N, ...]."""
        return observations.flatten(start_dim=1) if observations.dim() > 1 else observations[:, None]


class DictExtractor(BaseFeaturesExtractor):
    """Features of a Dict: images through a CNN, all other parts flattened, then joined, as by `CombinedExtractor`.

    Keys may be any, also those that torch takes for no module's name. Images too small for the CNN are flattened.

    :param observation_space: a flat Dict
    :param cnn_output_dim: features of each image
    :param normalized_image: whether images are between 0 and 1 already
    """

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False
    ) -> None:
        super().__init__(observation_space, features_dim=1)
        self.names = {key: _module_name(key, at) for at, key in enumerate(observation_space.spaces)}
        self.extractors = nn.ModuleDict()
        self._features_dim = 0
        for key, space in observation_space.spaces.items():
            module: nn.Module
            if is_image_space(space, normalized_image=normalized_image) and is_large(space):
                module, size = NatureCNN(space, cnn_output_dim, normalized_image), cnn_output_dim
            else:
                module, size = FlatExtractor(space), get_flattened_obs_dim(space)
            self.extractors[self.names[key]] = module
            self._features_dim += size

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return [N, F] for observations [N, ...] by key."""
        return torch.cat([self.extractors[name](observations[key]) for key, name in self.names.items()], dim=1)


def is_large(space: gym.Space[tuple[int, ...]]) -> bool:
    """Return True if both sides of an image are large enough for `NatureCNN`."""
    return sorted(space.shape or (0, 0))[1] >= SMALLEST_IMAGE


def _module_name(key: str, at: int) -> str:
    """Return the key, or another name where torch takes it for no module's."""
    refused = not isinstance(key, str) or not key or "." in key or hasattr(nn.ModuleDict(), key)
    return f"part {at}" if refused else key
