"""Model files of a run: written whole, the last few and the best kept, the newest found again."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctrl.experiments.errors import UserError
from ctrl.experiments.runs.run_folder import CHECKPOINTS, MODEL, PROGRESS, SUMMARY, read_json, write_json, written_whole

_STEP = re.compile(r"step_(\d+)\.zip")


@dataclass(frozen=True)
class Progress:
    """State of a run's recording when a model file was written, so that a resumed run records on."""

    steps: int
    """Env steps trained."""
    curve_rows: int
    held_out_rows: int
    next_checkpoint: int
    next_evaluation: int
    returns: list[float] = field(default_factory=list)
    """Returns of the episodes since the last row of the curve."""
    successes: list[float] = field(default_factory=list)
    learning: tuple[float, float] = (0.0, 0.0)
    """Wall and processor time of learning so far, in seconds."""
    score: float | None = None
    """Latest result, by which the best checkpoint is chosen; None before the first."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """Rebuild the progress from plain data.

        :raises TypeError: where the data are something else
        """
        found = cls(**data | {"learning": tuple(data.get("learning", (0.0, 0.0)))})
        counts = (found.steps, found.curve_rows, found.held_out_rows, found.next_checkpoint, found.next_evaluation)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError(f"counts must be whole numbers, got {counts}")
        if len(found.learning) != 2 or not all(math.isfinite(number) for number in (*found.learning, *found.returns)):
            raise TypeError("times and returns must be finite numbers")
        return found


@dataclass(frozen=True)
class Start:
    """Model file that a run is resumed from."""

    path: Path
    progress: Progress


class ModelFiles:
    """Model files in the folder of a run.

    :param folder: the run's folder
    :param keep: number of the newest checkpoints that are kept, beside the best one
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def add_checkpoint(self, model: Any, progress: Progress) -> Path:
        """Save a checkpoint, and remove older ones that are neither among the newest nor the best."""
        path = self.folder / CHECKPOINTS / f"step_{progress.steps:012d}.zip"
        self._save(model, path, progress)
        self._remove_old()
        return path

    def add_model(self, model: Any, progress: Progress) -> Path:
        """Save the model at the end of training."""
        path = self.folder / MODEL
        self._save(model, path, progress)
        return path

    def _save(self, model: Any, path: Path, progress: Progress) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is gone")  # saving must not make a folder that somebody removed
        with written_whole(path) as partial:
            model.save(partial)
            known = known_progress(self.folder)
            write_json(self.folder / PROGRESS, _to_json({**known, path.name: progress}), indent=None)

    def _remove_old(self) -> None:
        known = known_progress(self.folder)
        newest = sorted((self.folder / CHECKPOINTS).glob("step_*.zip"))
        best = best_checkpoint(known)
        for path in newest[: -self.keep]:
            if path.name != best:
                path.unlink()
                known.pop(path.name, None)
        write_json(self.folder / PROGRESS, _to_json(known), indent=None)


def _to_json(known: dict[str, Progress]) -> dict[str, Any]:
    return {"best": best_checkpoint(known), "files": {name: asdict(progress) for name, progress in known.items()}}


def best_checkpoint(known: dict[str, Progress]) -> str | None:
    """Return the name of the checkpoint with the best result, the newest of several; None before any result."""
    scored = [
        (progress.score, name) for name, progress in known.items() if progress.score is not None and name != MODEL
    ]
    return max(scored)[1] if scored else None


def known_progress(folder: Path) -> dict[str, Progress]:
    """Return the progress of a run at each of its model files, by name; empty where none can be read."""
    try:
        files = read_json(folder / PROGRESS)["files"]
        return {str(name): Progress.from_json(data) for name, data in files.items()}
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        return {}


def is_whole(path: Path) -> bool:
    """Return True if a model file is not cut off or damaged; reads all of it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError):
        return False


def whole_models(folder: Path, say: Callable[[str], None]) -> Iterator[Start]:
    """Yield the whole model files of a run, the one with the most steps first.

    :param folder: the run's folder
    :param say: told in one line about each file that is passed over because it is damaged
    """
    known = known_progress(folder)
    found = [*(folder / CHECKPOINTS).glob("step_*.zip"), folder / MODEL]
    starts = [Start(path, known.get(path.name) or _guess(path)) for path in found if path.is_file()]
    for start in sorted(starts, key=lambda start: (start.progress.steps, start.path.name == MODEL), reverse=True):
        if is_whole(start.path):
            yield start
        else:
            say(f"{start.path} is damaged and passed over")


def _guess(path: Path) -> Progress:
    """Return the progress at a file of which none is known: its name tells the steps of a checkpoint."""
    match = _STEP.fullmatch(path.name)
    steps = int(match[1]) if match else _steps_in_summary(path.parent)
    return Progress(steps, curve_rows=10**9, held_out_rows=10**9, next_checkpoint=steps, next_evaluation=steps)


def _steps_in_summary(folder: Path) -> int:
    try:
        return int(read_json(folder / SUMMARY)["steps"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0
