"""Shared tools of the tests of action masks: an env in which most actions are illegal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTHS = ((5, 3, 11), (7,), (2, 19))


class MostlyIllegal(gym.Env[np.ndarray, Any]):
    """Env in which two choices of each part are legal, which change with each step; the even one of them pays 1.

    It observes the number of the step in its episode, one-hot. An illegal action raises an error.

    :param action_space: Discrete, MultiDiscrete or MultiBinary
    :param lengths: lengths of the episodes, repeated
    :param none_from: step of an episode from which no action is allowed; None for never
    :param strict: whether an illegal action raises an error; if not, it pays nothing
    """

    def __init__(
        self,
        action_space: spaces.Space[Any],
        lengths: tuple[int, ...] = (5,),
        none_from: int | None = None,
        strict: bool = True,
    ) -> None:
        self.action_space, self.lengths, self.none_from, self.strict = action_space, lengths, none_from, strict
        self.observation_space = spaces.Box(0, 1, (20,), np.float32)
        self.episode, self.time, self.asked = -1, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.eye(20, dtype=np.float32)[self.time % 20]

    def sizes(self) -> list[int]:
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return [int(space.n)]
        return [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else [2] * int(space.n)  # type: ignore[attr-defined]

    def masks(self) -> list[np.ndarray]:
        masks = [np.zeros(size, dtype=bool) for size in self.sizes()]
        for part, mask in enumerate(masks):
            if self.none_from is None or self.time < self.none_from:
                first = (self.time + part) % len(mask)
                mask[first] = True
                if len(mask) > 2:
                    mask[(first + 1) % len(mask)] = True
        return masks

    def action_masks(self) -> np.ndarray:
        self.asked += 1
        return np.concatenate(self.masks())

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        chosen = np.atleast_1d(action).tolist()
        legal = all(mask[choice] for mask, choice in zip(self.masks(), chosen, strict=True))
        assert legal or not self.strict, f"{action} is illegal at time {self.time}"
        self.time += 1
        reward = float(legal and all(choice % 2 == 0 for choice in chosen))
        return self.observe(), reward, self.time == self.lengths[self.episode % len(self.lengths)], False, {}


def mask_makers(action_space: spaces.Space[Any], **options: Any) -> list[Any]:
    """Return one maker of `MostlyIllegal` per copy, with episodes that end at different steps."""
    return [lambda told=told: MostlyIllegal(action_space, told, **options) for told in LENGTHS]
