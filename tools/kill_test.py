"""Kill a run at random moments and resume it each time; it must end with the model of an uninterrupted run.

    python tools/kill_test.py --kills 100 --out kill_test.json

Each part of the run is a process of its own, forked from this one, and ends by SIGKILL. Before each resume every file
under its final name must be whole. The JSON says how often training, saving and evaluating were met.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPTIONS = (
    *("--env", "ctrl/Recall-v0", "--env-kwargs", "length=5", "--num-envs", "4", "--n-steps", "16", "--n-epochs", "1"),
    *("--width", "8", "--layers", "1", "--heads", "2", "--memory", "4,4x2", "--device", "cpu", "--threads", "1"),
    *("--eval-episodes", "8", "--checkpoint-every", "64", "--keep-checkpoints", "3"),
)


def run(arguments: Sequence[str]) -> None:
    """Run `ctrl` silently and leave with its exit code; for a process of its own."""
    from ctrl.experiments.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(arguments)
    os._exit(code)


def in_process(arguments: Sequence[str], seconds: float | None) -> int:
    """Run `ctrl` in a process, kill it after some seconds, and return its exit code; -9 if it was killed."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(arguments,))
    process.start()
    process.join(seconds)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def resumed_or_new(folder: Path, options: Sequence[str]) -> list[str]:
    """Return the command that goes on with a run, or begins it where not even its options were written."""
    if (folder / "config.json").is_file():
        return ["train", "--resume", str(folder)]
    return [*options, "--out", str(folder)]


def damaged_files(folder: Path) -> list[str]:
    """Return the files under their final names that are not whole."""
    from ctrl.experiments.runs.checkpoints import is_whole

    models = [path for path in folder.rglob("*.zip") if not path.name.startswith(".") and not is_whole(path)]
    return [str(path) for path in [*models, *(path for path in folder.rglob("*.json") if not _is_json(path))]]


def _is_json(path: Path) -> bool:
    if path.name.startswith("."):
        return True
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must be equal: weights, optimizers, and the curves without speeds."""
    from ctrl.agents import MemoryPPO
    from ctrl.experiments.report.summary import read_curve

    parameters = MemoryPPO.load(folder / "model.zip", device="cpu").get_parameters()
    curves = {name: [repr(point[:4]) for point in read_curve(folder / name)] for name in ("curve.csv", "held_out.csv")}
    return {"parameters": parameters, **curves}


def same(one: Any, other: Any) -> bool:
    """Compare nested data with tensors bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def kill_test(root: Path, *, kills: int, steps: int, seed: int = 0, longest: float | None = None) -> dict[str, Any]:
    """Kill and resume a run, and compare it with one that nobody killed.

    :param root: empty folder to work in
    :param kills: number of kills
    :param steps: env steps of the run
    :param seed: of the moments
    :param longest: longest time until a kill in seconds; None for two shares of the whole run's time
    :return: facts about the test; `equal` and `damaged` are its result
    """
    whole, killed = root / "whole", root / "killed"
    options = ["train", *OPTIONS, "--steps", str(steps)]
    begin = time.perf_counter()
    assert in_process([*options, "--out", str(whole)], None) == 0
    longest = longest or max(0.2, 2 * (time.perf_counter() - begin) / (kills + 1))
    moments, damaged, done, finished = random.Random(seed), [], 0, 0
    while done < kills:
        code = in_process(resumed_or_new(killed, options), moments.uniform(0.0, longest))
        done += code == -signal.SIGKILL
        finished += code == 0
        assert code in (0, -signal.SIGKILL), f"a part of the run ended with {code}"
        damaged += damaged_files(killed) if killed.is_dir() else []
        if finished:
            break
    assert in_process(resumed_or_new(killed, options), None) == 0
    equal = same(outcome(whole), outcome(killed))
    return {"kills": done, "steps": steps, "longest_seconds": longest, "damaged": damaged, "equal": equal}


def main() -> None:
    """Run the test from the command line; the exit code is 0 if it passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12_800)
    parser.add_argument("--longest", type=float, default=None, help="longest seconds until a kill")
    parser.add_argument("--out", type=Path, default=Path("kill_test.json"))
    options = parser.parse_args()
    import ctrl.experiments.runs.training  # noqa: F401 - imported once, before the processes fork

    with tempfile.TemporaryDirectory() as folder:
        facts = kill_test(Path(folder), kills=options.kills, steps=options.steps, longest=options.longest)
    options.out.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))
    raise SystemExit(0 if facts["equal"] and not facts["damaged"] and facts["kills"] == options.kills else 1)


if __name__ == "__main__":
    main()
