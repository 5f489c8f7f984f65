"""Policies by kind of observation: vectors, images, and dicts of both."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule

from ctrl.agents.policy.extractors import SMALLEST_IMAGE, DictExtractor, FlatExtractor, is_large
from ctrl.agents.policy.memory_policy import MemoryPolicy


class MlpMemoryPolicy(MemoryPolicy):
    """`MemoryPolicy` for vectors: observations are flattened."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = FlatExtractor,
        **kwargs: Any,
    ) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(f"observation_space is a Dict: use MultiInputMemoryPolicy; got {observation_space}")
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class CnnMemoryPolicy(MemoryPolicy):
    """`MemoryPolicy` for images, through the convolutional network of stable-baselines3."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        normalize_images: bool = True,
        **kwargs: Any,
    ) -> None:
        if features_extractor_class is NatureCNN and not is_image_space(
            observation_space, normalized_image=not normalize_images
        ):
            raise ValueError(f"CnnMemoryPolicy needs images (uint8, 0 to 255, 3 axes); got {observation_space}")
        if features_extractor_class is NatureCNN and not is_large(observation_space):
            side = f"{SMALLEST_IMAGE} x {SMALLEST_IMAGE}"
            raise ValueError(f"CnnMemoryPolicy needs images of at least {side} pixels; got {observation_space}")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            normalize_images=normalize_images,
            **kwargs,
        )


class MultiInputMemoryPolicy(MemoryPolicy):
    """`MemoryPolicy` for Dict and Tuple observations: images through a CNN, the rest flattened, then joined.

    Images below 36 x 36 pixels are flattened too. A Tuple, or a Dict inside, is a flat Dict here: its keys are paths,
    such as "0" or "pose/arm".
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = DictExtractor,
        **kwargs: Any,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"MultiInputMemoryPolicy needs a Dict observation_space, use MlpMemoryPolicy; got {observation_space}"
            )
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )
