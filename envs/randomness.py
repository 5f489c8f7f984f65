"""Counter-based random numbers: each number is a pure function of a key and a counter.

A task draws from (env key, episode number, step) instead of a generator's hidden state. So a single env and a native
vector env compute the same episodes. One numpy expression draws for all copies, and pickling needs no special code.

`derive(key, n)` is output number n of SplitMix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195)
seeded with `key`. Keys are derived from keys: seed -> env -> episode -> step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


def mix(bits: Bits) -> Bits:
    """Return SplitMix64's finaliser, a bijection that spreads each input bit over all 64 output bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def derive(keys: Bits, counters: npt.NDArray[np.integer[Any]]) -> Bits:
    """Return random bits, or new keys, for keys and counters that broadcast to one shape of at least one axis."""
    return mix(keys + _GOLDEN * (counters.astype(np.uint64) + np.uint64(1)))


def seed_keys(seed: int, num_envs: int) -> Bits:
    """Return the keys [B] of envs with the seeds `seed`, `seed + 1`, …; seeds count modulo 2⁶⁴."""
    seeds = np.arange(num_envs, dtype=np.uint64) + np.uint64(seed % 2**64)
    return derive(np.zeros(num_envs, dtype=np.uint64), seeds)


def integers_below(bits: Bits, bound: int) -> npt.NDArray[np.int64]:
    """Return uniform integers in [0, bound) from the low half of the bits. The bias is below bound / 2³²."""
    return (((bits & _LOW) * np.uint64(bound)) >> _WORD).astype(np.int64)


def happens(bits: Bits, probability: float) -> npt.NDArray[np.bool_]:
    """Return True with this probability, from the high half of the bits, so independent of `integers_below`."""
    return (bits >> _WORD) < np.uint64(round(probability * 2**32))


def uniform(bits: Bits) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1) with the 53 bits that a float64 holds."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
