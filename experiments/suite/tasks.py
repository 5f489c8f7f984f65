"""Tasks of `ctrl suite`: the arguments of each, its training steps and the score that is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ctrl.experiments.options import TaskOptions, merge_pairs
from ctrl.experiments.runs.tasks import external_task, known_scores

Score = Literal["success", "normalised", "return"]
"""Score of a task: success rate, return scaled to 0 for random and 1 for perfect play, or the return as it is."""


@dataclass(frozen=True)
class SuiteTask:
    """One task of the suite."""

    name: str
    """Name of the task, as `--tasks` takes it."""
    env: str
    """Gymnasium id."""
    arguments: tuple[str, ...]
    """Arguments of the task, as `--env-kwargs` takes them."""
    steps: int
    """Env steps of training, all copies together."""
    score: Score
    transfer: tuple[str, ...] = ()
    """Changed arguments for a second evaluation of the trained agents; empty for no second evaluation."""

    def options(self, num_envs: int) -> TaskOptions:
        """Return the task to train on, with `num_envs` copies."""
        return TaskOptions(env=self.env, env_kwargs=self.arguments, num_envs=num_envs)

    def transferred(self) -> SuiteTask:
        """Return the task of the second evaluation."""
        return replace(self, arguments=merge_pairs(self.arguments, self.transfer), transfer=())

    @property
    def chance(self) -> float | None:
        """Score of the best agent without memory; for tasks of other packages that of random play, or None."""
        scores, known = known_scores(self.options(1)), external_task(self.env)
        if scores is None:
            return None if known is None else known.random
        return scores.normalised(scores.memoryless) if self.score == "normalised" else scores.memoryless

    @property
    def perfect(self) -> float | None:
        """Score of a perfect agent; for tasks of other packages the best known score, or None."""
        scores, known = known_scores(self.options(1)), external_task(self.env)
        if scores is None:
            return None if known is None else known.best
        return 1.0 if self.score == "normalised" else scores.perfect


def _popgym(name: str, steps: int) -> SuiteTask:
    """Return a task of popgym, such as `repeat-first-medium` for RepeatFirstMedium. Returns lie between -1 and 1."""
    words = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name)
    return SuiteTask(words.removeprefix("-"), f"popgym-{name}-v0", (), steps, "return")


RECALL = "ctrl/Recall-v0"
COPY = "ctrl/CopySequence-v0"
SELECT = "ctrl/SelectNonmatchingObject-v0"
FARTHEST = ("length=2500",)

SUITE = (
    SuiteTask("recall-24", RECALL, ("length=24",), 200_000, "success"),
    SuiteTask("recall-64", RECALL, ("length=64",), 200_000, "success"),
    SuiteTask("recall-250", RECALL, ("length=250",), 200_000, "success", transfer=FARTHEST),
    SuiteTask("recall-1000", RECALL, ("length=1000",), 800_000, "success", transfer=FARTHEST),
    SuiteTask("copy-4-8", COPY, ("length=4", "delay=8"), 400_000, "normalised"),
    SuiteTask("copy-8-16", COPY, ("length=8", "delay=16"), 1_000_000, "normalised"),
    SuiteTask("endless-recall", "ctrl/EndlessRecall-v0", ("length=12",), 400_000, "normalised"),
    SuiteTask("endless-copy", "ctrl/EndlessCopy-v0", ("delay=2", "max_length=8"), 400_000, "normalised"),
    SuiteTask("rare-cue", "ctrl/RareCue-v0", ("length=12", "num_cues=16"), 400_000, "success"),
    SuiteTask("rewrite", "ctrl/Rewrite-v0", (), 500_000, "normalised"),
    SuiteTask("t-maze", "ctrl/TMaze-v0", ("length=64",), 400_000, "success"),
    SuiteTask("select-small", SELECT, ("depth=2", "steps=60"), 1_000_000, "normalised"),
    SuiteTask("select-room", SELECT, (), 3_000_000, "normalised"),
    _popgym("RepeatFirstMedium", 500_000),
    _popgym("RepeatPreviousEasy", 300_000),
    _popgym("RepeatPreviousMedium", 1_500_000),
    _popgym("AutoencodeEasy", 1_500_000),
    _popgym("CountRecallEasy", 1_500_000),
    _popgym("PositionOnlyCartPoleMedium", 500_000),
    # With the default view of 7 x 7 cells, the task needs no memory.
    SuiteTask("minigrid-memory-s7", "MiniGrid-MemoryS7-v0", ("agent_view_size=3",), 500_000, "return"),
)
TASKS: dict[str, SuiteTask] = {task.name: task for task in SUITE}
