"""Statistics of an update, by hand."""

from __future__ import annotations

import pytest
import torch

from ctrl.agents.utils.statistics import Statistics, drift


def test_a_summary_holds_means_and_of_the_longest_the_maximum() -> None:
    statistics, weight = Statistics(), torch.tensor(2.0, requires_grad=True)
    for loss, time in ((1.0, 3.0), (2.0, 9.0), (6.0, 5.0)):
        statistics.add("train/loss", weight * loss)
        statistics.add("memory/longest_time", torch.tensor(time))
    statistics.add("memory/of_one_minibatch", torch.tensor(4.0))
    assert not any(value.requires_grad for values in statistics.values.values() for value in values)
    assert statistics.summary() == {"train/loss": 6.0, "memory/longest_time": 9.0, "memory/of_one_minibatch": 4.0}


def test_drift_is_relative_to_what_was_written() -> None:
    clock = torch.tensor([[3, 4]])
    before = (clock, torch.tensor([[1.0, 9.0, 5.0]]), torch.tensor([[7.0]]))
    then = (clock + 9, torch.tensor([[3.0, 9.0, 0.0]]), torch.tensor([[4.0]]))
    now = (clock + 50, torch.tensor([[3.0, 9.0, 0.5]]), torch.tensor([[4.0]]))
    assert drift(before, then, now) == pytest.approx(0.5 / 5)  # 5 is the length of (3, 0, 4): the 9 was left alone
    assert drift(before, then, then) == 0
    assert drift(before, before, before) == 0
    assert drift((clock,), (clock,), (clock,)) is None
    assert drift((torch.zeros(2, 0),), (torch.zeros(2, 0),), (torch.zeros(2, 0),)) is None
