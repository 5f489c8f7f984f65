"""Windows of a minibatch and steps of a burn-in, from the arguments of `MemoryPPO`."""

from __future__ import annotations

from typing import Any

import pytest

from ctrl.agents.utils.validation import batch_windows, burn_in_steps


def test_batches_are_counted_in_steps_and_made_of_windows() -> None:
    assert batch_windows(n_steps=128, window=16, n_envs=8, batch_size=64) == 4


@pytest.mark.parametrize(("windows", "expected"), [(1, 1), (2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (64, 16)])
def test_a_batch_is_a_quarter_of_the_windows_by_default(windows: int, expected: int) -> None:
    assert batch_windows(n_steps=16 * windows, window=16, n_envs=1, batch_size=None) == expected
    assert batch_windows(n_steps=16, window=16, n_envs=windows, batch_size=None) == expected


def test_recompute_goes_as_far_back_as_a_rollout() -> None:
    assert [burn_in_steps(refresh, 24) for refresh in ("none", "recompute", 1, 24)] == [0, 24, 1, 24]


@pytest.mark.parametrize("refresh", [0, -3, True, 1.5, "all", "5", None, 25])
def test_a_refresh_that_makes_no_sense_is_refused(refresh: Any) -> None:
    limit = "at most n_steps.*got refresh = 25 and n_steps = 24"
    told = limit if refresh == 25 else f"refresh must be 'none', 'recompute' or .* at least 1, got {refresh!r}"
    with pytest.raises(ValueError, match=told):
        burn_in_steps(refresh, 24)
