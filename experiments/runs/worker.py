"""Worker process that trains one run of a comparison: `python -m ctrl.experiments.runs.worker FOLDER PARENT`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from ctrl.experiments.errors import UserError
from ctrl.experiments.plain_data import convert
from ctrl.experiments.runs.run_folder import MARKER, read_table


def main(folder: Path, parent: int, *, trust: bool = False) -> int:
    """Train the run whose config is in `folder` and return its exit code.

    A run that has checkpoints already goes on from the newest whole one. The parent reads the results from the summary
    and the curve in that folder.

    :param folder: folder of the run
    :param parent: process id of the parent; the run stops when the parent ends
    :param trust: whether code from the run's files may run
    """
    from ctrl.experiments.config import TrainConfig
    from ctrl.experiments.runs.checkpoints import whole_models
    from ctrl.experiments.runs.progress import Reporter
    from ctrl.experiments.runs.training import Place, prepared, train

    try:
        config, job = TrainConfig.read(folder / MARKER), read_table(folder / MARKER)
        config = replace(config, trust=trust)
        place = Place(folder, convert(Path, job.get("tensorboard"), "tensorboard"), str(job.get("command")))
        start = next(whole_models(folder, lambda text: print(text, file=sys.stderr)), None)
        with prepared(config, start) as model:
            outcome = train(model, config, place, Reporter(), parent=parent, start=start)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if outcome.summary.message:
        print(outcome.summary.message, file=sys.stderr)
    return outcome.exit_code


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), trust="trust" in sys.argv[3:]))
