from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ctrl.experiments.bench import act, envs, impala, profile, scale, train, unroll
from ctrl.experiments.errors import UserError

RLLIB = "rllib_lstm"


@pytest.mark.parametrize(
    ("benchmark", "wrong", "told"),
    [
        (train, {"repeats": 0}, "--repeats must be at least 1, got 0"),
        (train, {"threads": 0}, "--threads must be at least 1, got 0"),
        (train, {"updates": 0}, "--updates must be at least 1, got 0"),
        (train, {"num_envs": ()}, "--num-envs must name at least one"),
        (train, {"num_envs": (8, 8)}, "--num-envs names one twice: 8 8"),
        (train, {"num_envs": (6,)}, "--num-envs must be multiples of 4, got 6"),
        (train, {"agents": ("lstm", "ppo")}, "unknown agent 'ppo'"),
        (train, {"agents": ("gru", "gru")}, "--agents names one twice: gru gru"),
        (train, {"match": "lstm"}, "unknown agent to match 'lstm'"),
        (envs, {"num_envs": 0}, "--num-envs must be at least 1, got 0"),
        (envs, {"repeats": 0}, "--repeats must be at least 1, got 0"),
        (act, {"batch_sizes": (4, -1)}, "--batch-sizes must be at least 1, got -1"),
        (act, {"steps": 0}, "--steps must be at least 1, got 0"),
        (unroll, {"lengths": (1,)}, "--lengths must be at least 2, got 1"),
        (unroll, {"widths": (66,)}, "--widths must be multiples of 8, got 66"),
        (unroll, {"tokens": 0}, "--tokens must be at least 1, got 0"),
        (unroll, {"models": ()}, "--models must name at least one"),
        (unroll, {"models": ("gru",)}, "unknown model 'gru'"),
        (scale, {"episode_steps": 5}, "--episode-steps must be a multiple of 10, got 5"),
        (scale, {"steps": -3}, "--steps must be at least 1, got -3"),
        (profile, {"cores": ("lstm", "rnn")}, "unknown core 'rnn'"),
        (profile, {"num_envs": (2,)}, "--num-envs must be multiples of 4, got 2"),
        (impala, {"actors": 0}, "--actors must be at least 1, got 0"),
        (impala, {"num_envs": 6}, "--num-envs must be a multiple of 4, got 6"),
        (impala, {"seconds": 0.0}, "--seconds must be above 0, got 0.0"),
        (impala, {"agents": ("impala_gru",)}, "unknown agent 'impala_gru'"),
        (impala, {"agents": (RLLIB,)}, "--agents rllib_lstm needs --rllib PYTHON"),
        (impala, {"rllib": Path("no/python")}, "--rllib must be a Python that can be run, got no/python"),
    ],
)
def test_values_that_make_no_sense_are_refused(benchmark: Any, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        benchmark.Options(**wrong)
    assert told in str(caught.value)


def test_all_is_measured_unless_something_is_picked() -> None:
    assert train.Options().agents == train.AGENTS
    assert unroll.Options().models == unroll.MODELS
    assert train.Options(agents=("gru",)).agents == ("gru",)
    assert set(impala.Options().agents) == set(impala.AGENTS) - {RLLIB}
    assert impala.Options(agents=(RLLIB,), rllib=Path(sys.executable)).agents == (RLLIB,)
