from __future__ import annotations

from typing import Any

import pytest

from ctrl.experiments.bench.config import (
    AGENTS,
    MODELS,
    BenchAct,
    BenchEnvs,
    BenchProfile,
    BenchScale,
    BenchTrain,
    BenchUnroll,
    heads_of,
)
from ctrl.experiments.errors import UserError


@pytest.mark.parametrize(
    ("options", "wrong", "told"),
    [
        (BenchTrain, {"repeats": 0}, "--repeats must be at least 1, got 0"),
        (BenchTrain, {"threads": 0}, "--threads must be at least 1, got 0"),
        (BenchTrain, {"updates": 0}, "--updates must be at least 1, got 0"),
        (BenchTrain, {"num_envs": ()}, "--num-envs must name at least one"),
        (BenchTrain, {"num_envs": (8, 8)}, "--num-envs names one twice: 8 8"),
        (BenchTrain, {"num_envs": (6,)}, "--num-envs must be multiples of 4, got 6"),
        (BenchTrain, {"agents": ("lstm", "ppo")}, "unknown agent 'ppo'"),
        (BenchTrain, {"agents": ("gru", "gru")}, "--agents names one twice: gru gru"),
        (BenchEnvs, {"num_envs": 0}, "--num-envs must be at least 1, got 0"),
        (BenchAct, {"batch_sizes": (4, -1)}, "--batch-sizes must be at least 1, got -1"),
        (BenchAct, {"steps": 0}, "--steps must be at least 1, got 0"),
        (BenchUnroll, {"lengths": (1,)}, "--lengths must be at least 2, got 1"),
        (BenchUnroll, {"widths": (66,)}, "--widths must be multiples of 8, got 66"),
        (BenchUnroll, {"tokens": 0}, "--tokens must be at least 1, got 0"),
        (BenchUnroll, {"models": ()}, "--models must name at least one"),
        (BenchUnroll, {"models": ("gru",)}, "unknown model 'gru'"),
        (BenchScale, {"episode_steps": 5}, "--episode-steps must be a multiple of 10, got 5"),
        (BenchScale, {"steps": -3}, "--steps must be at least 1, got -3"),
        (BenchProfile, {"cores": ("lstm", "rnn")}, "unknown core 'rnn'"),
        (BenchProfile, {"num_envs": (2,)}, "--num-envs must be multiples of 4, got 2"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: type, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        options(**wrong)
    assert told in str(caught.value)


def test_all_is_measured_unless_something_is_picked() -> None:
    assert BenchTrain().agents == AGENTS
    assert BenchUnroll().models == MODELS
    assert BenchTrain(agents=("gru",)).agents == ("gru",)


def test_heads_grow_with_the_width() -> None:
    assert [heads_of(width) for width in (32, 64, 128, 512)] == [4, 4, 8, 8]
