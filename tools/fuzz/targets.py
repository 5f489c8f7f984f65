"""Kinds of files that are read: a sound one of each, ways to damage it, and what reads it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ctrl import Tier
from ctrl.agents import MemoryImpala, MemoryPPO, MlpMemoryPolicy
from ctrl.experiments.cli import main
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.report.summary import RunSummary, read_curve
from ctrl.experiments.runs.jobs import read_finished
from fuzz.damage import BYTES, Damage, change_json, change_zip, unzipped, zipped

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
SMALL = {"width": 8, "heads": 2, "memory": [Tier(3), Tier(3, 2, "conv")]}


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    name: str
    content: bytes
    """A sound file."""
    file: str
    """Path of the file inside the folder that `read` gets."""
    damages: tuple[Damage, ...]
    read: Callable[[Path], object]
    """Reads the file in a folder; raises a ValueError, UserError or OSError where it is refused."""
    weight: int = 1
    """Share of the cases."""
    beside: Path | None = None
    """Folder whose files lie beside the file."""


class Canary:
    """Object whose unpickling leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


class Refused(ValueError):
    """A command that ended in one line and exit code 2."""


def targets(work: Path) -> list[Target]:
    """Return all kinds of files.

    :param work: folder for what the sound files are made from; nothing in it may change while they are used
    """
    run = _trained(work / "run")
    return [*_models(work), *_run_files(run), *_reports()]


def _models(work: Path) -> list[Target]:
    bomb = cloudpickle.dumps({"x": Canary(str(work / "ran"))})
    ppo, impala = _saved(MemoryPPO), _saved(MemoryImpala, num_actors=0)
    with_pickle = zipped({**unzipped(ppo), "trusted.pickle": bomb}.items())
    of_zip = (*[change_zip] * 12, *BYTES)
    return [
        Target("model of PPO", with_pickle, "model.zip", of_zip, lambda at: MemoryPPO.load(at / "model.zip"), 6),
        Target("model of IMPALA", impala, "model.zip", of_zip, lambda at: MemoryImpala.load(at / "model.zip"), 3),
        Target("weights for a model", ppo, "model.zip", of_zip, _set_parameters, 2),
        Target(
            "policy alone", _saved_policy(), "policy", of_zip, lambda at: MlpMemoryPolicy.load(str(at / "policy")), 2
        ),
        Target("pickled model", _pickled(), "model.zip", of_zip, lambda at: MemoryPPO.load(at / "model.zip")),
    ]


def _run_files(run: Path) -> list[Target]:
    config, model = (run / "config.json").read_bytes(), (run / "model.zip").read_bytes()
    of_json = (*[change_json] * 9, *BYTES)
    return [
        Target("run's config.json", config, "config.json", of_json, lambda at: TrainConfig.read(at / "config.json"), 3),
        Target("run's config.json, evaluated", config, "config.json", of_json, _evaluate, 3, run),
        Target("run's model.zip, evaluated", model, "model.zip", (*[change_zip] * 12, *BYTES), _evaluate, 2, run),
        Target("run's summary.json", (run / "summary.json").read_bytes(), "summary.json", of_json, _finished, 3, run),
        Target("run's curve.csv", (run / "curve.csv").read_bytes(), "curve.csv", BYTES, _curve),
    ]


def _reports() -> list[Target]:
    suite, ablation = (DOCS / "suite.json").read_bytes(), (DOCS / "compressors.json").read_bytes()
    of_json = (*[change_json] * 9, *BYTES)
    return [
        Target("suite.json", suite, "suite.json", of_json, lambda at: _ctrl("suite", "--table", str(at)), 2),
        Target("ablation's summary.json", ablation, "summary.json", of_json, _ablation, 2),
    ]


def _model(algorithm: Any, **options: Any) -> Any:
    kwargs = {"core_kwargs": SMALL, "encoder_arch": [8], "net_arch": [8]}
    env = gym.make("CartPole-v1")
    return algorithm("MlpMemoryPolicy", env, n_steps=8, seed=0, device="cpu", policy_kwargs=kwargs, **options)


def _saved(algorithm: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    _model(algorithm, **options).learn(16).save(file)
    return file.getvalue()


def _saved_policy() -> bytes:
    file = io.BytesIO()
    _model(MemoryPPO).policy.save(file)
    return file.getvalue()


def _pickled() -> bytes:
    file = io.BytesIO()
    OnPolicyAlgorithm.save(_model(MemoryPPO), file)
    return file.getvalue()


def _set_parameters(at: Path) -> None:
    _model(MemoryPPO).set_parameters(at / "model.zip")


def _trained(folder: Path) -> Path:
    sizes = ("--num-envs", "2", "--n-steps", "8", "--width", "8", "--heads", "2", "--memory", "4,4x2")
    task = ("--env-kwargs", "length=5", "--eval-episodes", "2", "--threads", "1", "--device", "cpu")
    _ctrl("train", "--steps", "16", *sizes, *task, "--out", str(folder))
    shutil.rmtree(folder / "tensorboard")
    return folder


def _ctrl(*arguments: str) -> None:
    """Run a command; raise a `Refused` where it ends in one line."""
    shown, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(shown), redirect_stderr(errors):
        code = main(arguments)
    if code == 2 and errors.getvalue().count("\n") == 1:
        raise Refused(errors.getvalue())
    if code:
        raise AssertionError(f"exit code {code}: {errors.getvalue()}")


def _evaluate(at: Path) -> None:
    _ctrl("evaluate", str(at), "--episodes", "1", "--device", "cpu")


def _finished(at: Path) -> None:
    RunSummary.read(at / "summary.json")
    read_finished(at)


def _curve(at: Path) -> None:
    read_curve(at / "curve.csv")


def _ablation(at: Path) -> None:
    _ctrl("ablate", "--table", str(at / "summary.json"))
