"""Counter-based random numbers: compared with published SplitMix64 outputs, and tested as a sample."""

import numpy as np
import pytest

from ctrl.envs.randomness import derive, happens, integers_below, mix, seed_keys, uniform


def test_derive_is_splitmix64_with_random_access() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    key = np.array([1234567], dtype=np.uint64)
    assert derive(key, np.arange(5)).tolist() == published
    assert derive(key, np.array([3])).tolist() == published[3:4]


def test_mix_maps_distinct_inputs_to_distinct_outputs() -> None:
    inputs = np.concatenate([np.arange(4096), 2 ** np.arange(12, 63)]).astype(np.uint64)
    assert len(np.unique(mix(inputs))) == len(inputs)


def test_seed_keys_are_those_of_consecutive_seeds() -> None:
    assert seed_keys(7, 4).tolist() == [seed_keys(7 + i, 1)[0] for i in range(4)]
    assert seed_keys(2**64 - 1, 2).tolist() == [seed_keys(2**64 - 1, 1)[0], seed_keys(0, 1)[0]]
    assert len(np.unique(seed_keys(0, 1000))) == 1000


@pytest.mark.parametrize("bound", [2, 3, 7])
def test_integers_are_uniform(bound: int) -> None:
    count = 60_000
    drawn = integers_below(derive(np.zeros(1, dtype=np.uint64), np.arange(count)), bound)
    frequencies = np.bincount(drawn, minlength=bound) / count
    assert len(frequencies) == bound
    assert np.abs(frequencies - 1 / bound).max() < 4.5 * (0.25 / count) ** 0.5


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_chance_has_its_probability_and_does_not_depend_on_the_integer(probability: float) -> None:
    bits = derive(np.zeros(1, dtype=np.uint64), np.arange(60_000))
    hits = happens(bits, probability)
    for value in range(3):
        rate = hits[integers_below(bits, 3) == value].mean()
        assert abs(rate - probability) <= 4.5 * (probability * (1 - probability) / 20_000) ** 0.5 * 1.05


def test_uniform_numbers_are_the_top_bits_as_a_fraction() -> None:
    bits = np.array([0, 2**63, 3 * 2**62, 2**11 - 1, 2**11, 2**64 - 1], dtype=np.uint64)
    assert uniform(bits).tolist() == [0, 0.5, 0.75, 0, 2**-53, 1 - 2**-53]


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    count, bins = 60_000, 20
    drawn = uniform(derive(np.zeros(1, dtype=np.uint64), np.arange(count)))
    shares = np.bincount((drawn * bins).astype(np.int64), minlength=bins) / count
    assert len(shares) == bins
    assert np.abs(shares - 1 / bins).max() < 4.5 * (1 / bins / count) ** 0.5
    lag = np.corrcoef(drawn[1:], drawn[:-1])[0, 1]
    assert abs(lag) < 4.5 / count**0.5
