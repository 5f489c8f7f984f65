"""Weights and running normalisation that a learner publishes to its actors, in shared memory and never half written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from ctrl.agents.actors.shared_memory import Layout, SharedArrays, layout_of
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.utils.normalisation import Moments, running_moments, set_running_moments

if sys.platform != "win32":  # actors are not supported there, but this module must be importable
    import fcntl


class SharedWeights:
    """Two copies of weights and normalisation. The learner writes the one that is not current, under a lock.

    The lock is a POSIX record lock on the file: it is released when its process ends, however that happens.

    :param policy: policy whose weights and buffers are published, or which receives them
    :param normalize: normalisation whose running means and variances are published, or which receives them; None where
        nothing is normalised
    :param fd: descriptor of the memory; None to create it
    """

    def __init__(self, policy: MemoryPolicy, normalize: VecNormalize | None, fd: int | None = None) -> None:
        self.policy, self.normalize = policy, normalize
        self._shared = SharedArrays(self._layout(), fd)
        self.fd = self._shared.fd
        self._weights = [self._weights_in(place) for place in range(2)]

    def write(self, version: int) -> bool:
        """Publish the current policy as `version`; return False if an actor still reads the copy to be overwritten."""
        place = 1 - int(self._array("current"))
        with self._locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if not held:
                return False
            for name, value in self.policy.state_dict().items():
                self._weights[place][name].copy_(value)
            for name, moments in self._moments().items():
                self._array(f"{place}/moments/{name}")[...] = moments
            self._array("versions")[place] = version
            self._array("current")[...] = place
        return True

    def read(self) -> int:
        """Load the newest published copy into the policy and the normalisation; return its version."""
        place = int(self._array("current"))
        with self._locked(place, fcntl.LOCK_SH):
            self.policy.load_state_dict(self._weights[place])
            if self.normalize is not None:
                moments = {name: self._array(f"{place}/moments/{name}") for name in self._moments()}
                set_running_moments(self.normalize, moments)
            return int(self._array("versions")[place])

    def close(self) -> None:
        """Close the memory's descriptor and release the memory."""
        self._weights.clear()
        self._shared.forget()
        self._shared.close()

    @contextmanager
    def _locked(self, place: int, how: int) -> Iterator[bool]:
        try:
            fcntl.lockf(self.fd, how, 1, place)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, place)

    def _layout(self) -> Layout:
        weights = {name: ((value.nbytes,), "uint8") for name, value in self.policy.state_dict().items()}
        layout: Layout = {"current": ((), "int64"), "versions": ((2,), "int64")}
        for place in range(2):
            layout.update({f"{place}/weights/{name}": entry for name, entry in weights.items()})
            layout.update(
                {f"{place}/moments/{name}": entry for name, entry in layout_of(self._moments()).items()},
            )
        return layout

    def _weights_in(self, place: int) -> dict[str, Tensor]:
        """Return views of a copy's weights, with their dtypes and shapes."""
        return {
            name: torch.from_numpy(self._array(f"{place}/weights/{name}")).view(value.dtype).view(value.shape)
            for name, value in self.policy.state_dict().items()
        }

    def _moments(self) -> Moments:
        return {} if self.normalize is None else running_moments(self.normalize)

    def _array(self, name: str) -> np.ndarray:
        return self._shared.arrays[name]
