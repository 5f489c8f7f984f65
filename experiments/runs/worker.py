"""Worker process that trains one run of a comparison: `python -m ctrl.experiments.runs.worker FOLDER PARENT`."""

from __future__ import annotations

import sys
from pathlib import Path

from ctrl.experiments.errors import UserError
from ctrl.experiments.runs.run_folder import MARKER, read_json


def main(folder: Path, parent: int) -> int:
    """Train the run whose config is in `folder` and return its exit code.

    The parent reads the results from the summary and the curve in that folder.

    :param folder: folder of the run
    :param parent: process id of the parent; the run stops when the parent ends
    """
    from ctrl.experiments.config import TrainConfig
    from ctrl.experiments.runs.progress import Reporter
    from ctrl.experiments.runs.training import Place, prepared, train

    job = read_json(folder / MARKER)
    place = Place(folder, Path(job["tensorboard"]), job["command"])
    try:
        config = TrainConfig.from_json(job["options"])
        with prepared(config) as model:
            outcome = train(model, config, place, Reporter(), parent=parent)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if outcome.summary.message:
        print(outcome.summary.message, file=sys.stderr)
    return outcome.exit_code


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
