"""Worker process of one run of a suite: `python -m ctrl.experiments.suite.worker FOLDER PARENT`.

It trains and evaluates as `worker` does, but only with the code that the suite began with. If the task asks for it, the
trained agent is then evaluated a second time.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ctrl.experiments.runs.run_folder import MARKER, MODEL, read_table, write_json

ORDER = "suite_run.json"
"""File with the facts about the run that the suite needs beside its config."""
TRANSFER = "transfer.json"


def main(folder: Path, parent: int) -> int:
    """Train and evaluate the run whose config is in `folder`, and return its exit code.

    :param folder: folder of the run, from which the parent reads the results
    :param parent: process id of the parent; the run stops when the parent ends
    """
    from ctrl.experiments.runs import worker
    from ctrl.experiments.suite.code import fingerprint, sources

    order = read_table(folder / ORDER)
    if fingerprint(sources()) != order["code"]:
        print("error: the code is another one than the suite began with", file=sys.stderr)
        return 2
    exit_code = worker.main(folder, parent)
    if exit_code == 0 and order["transfer"] is not None:
        write_json(folder / TRANSFER, evaluate_transfer(folder, tuple(order["transfer"])))
    return exit_code


def evaluate_transfer(folder: Path, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Evaluate the agent of a finished run on its task with other arguments.

    :param folder: folder of the run
    :param arguments: arguments of the task, as `--env-kwargs` takes them
    :return: the evaluation as plain data
    """
    from ctrl.experiments.config import TrainConfig
    from ctrl.experiments.runs.build import load_model
    from ctrl.experiments.runs.tasks import make_task
    from ctrl.experiments.trained.evaluate import evaluate_run

    config = TrainConfig.read(folder / MARKER)
    config = replace(config, task=replace(config.task, env_kwargs=arguments))
    env = make_task(replace(config.task, num_envs=1), seed=0, training=False)
    try:
        model = load_model(folder / MODEL, env, config.run.device)
    finally:
        env.close()
    return asdict(evaluate_run(model, config))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
