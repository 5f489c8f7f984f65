from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctrl.experiments.options import TaskOptions
from ctrl.experiments.report.summary import Evaluation
from ctrl.experiments.report.tensorboard import (
    RETURNS,
    SUCCESSES,
    address,
    how_to_look,
    log_evaluation,
    write_references,
)

SUCCESS = Evaluation(40, 0.75, 0.25, 7.0, 0.5, 1_000_000_000, True)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the list of (step, value) of each tag."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_evaluation_has_the_names_of_stable_baselines3_and_nothing_else_is_written(tmp_path: Path) -> None:
    logger = configure(str(tmp_path), ["tensorboard"])
    logger.record("train/loss", 3.0)
    log_evaluation(logger, SUCCESS, 128)
    log_evaluation(logger, Evaluation(40, 0.5, 0.25, 7.0, None, 0, True), 256)
    logger.record("train/loss", 4.0)
    logger.dump(300)
    logger.close()
    assert scalars(tmp_path) == {
        "eval/mean_reward": [(128, 0.75), (256, 0.5)],
        "eval/mean_ep_length": [(128, 7.0), (256, 7.0)],
        "eval/success_rate": [(128, 0.5)],
        "train/loss": [(300, 4.0)],
    }


def test_scores_of_others_are_level_lines_in_the_same_charts(tmp_path: Path) -> None:
    write_references(tmp_path, TaskOptions(env_kwargs=("length=5", "num_cues=2")), 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no_memory", "perfect"]
    assert scalars(tmp_path / "no_memory") == {tag: [(0, 0.5), (1000, 0.5)] for tag in (*RETURNS, *SUCCESSES)}
    assert scalars(tmp_path / "perfect") == {tag: [(0, 1.0), (1000, 1.0)] for tag in (*RETURNS, *SUCCESSES)}


def test_returns_that_are_no_success_rates_are_not_shown_as_such(tmp_path: Path) -> None:
    write_references(tmp_path, TaskOptions(env="ctrl/EndlessCopy-v0"), 1000)
    assert set(scalars(tmp_path / "perfect")) == set(RETURNS)


def test_a_task_that_states_no_scores_has_no_lines(tmp_path: Path) -> None:
    write_references(tmp_path, TaskOptions(env="CartPole-v1"), 1000)
    assert list(tmp_path.iterdir()) == []


def test_the_address_is_one_that_tensorboard_reads() -> None:
    """Its `DeepLinkProvider` has `runColorGroup=regex:…`, `tagFilter` and `smoothing`."""
    parts = urlsplit(address())
    assert (parts.netloc, parts.path, parts.fragment) == ("localhost:6006", "/", "timeseries")
    asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert asked["smoothing"] == "0"
    kind, _, colours = asked["runColorGroup"].partition(":")
    groups = [re.search(colours, run) for run in ("compressive/seed0", "lstm/seed1", "no_memory", ".")]
    assert kind == "regex"
    assert [group and group[1] for group in groups] == ["compressive", "lstm", "no_memory", "."]
    assert all(re.search(asked["tagFilter"], tag) for tag in (*RETURNS, *SUCCESSES))
    assert not re.search(asked["tagFilter"], "memory/attention_mass/layer0/tier0")
    assert not set("()[]^|:") & set(parts.query)  # a terminal's link would end there


def test_where_to_look_is_told(tmp_path: Path) -> None:
    (_, command), (_, link) = how_to_look(tmp_path)
    assert command.endswith(f"tensorboard --logdir {tmp_path}")
    assert link == address()


@pytest.mark.parametrize("name", ["runColorGroup", "tagFilter", "smoothing"])
def test_the_installed_tensorboard_knows_the_parameters(name: str) -> None:
    import zipfile

    import tensorboard

    with zipfile.ZipFile(Path(tensorboard.__file__).parent / "webfiles.zip") as files:
        assert f'"{name}"'.encode() in files.read("index.js")
