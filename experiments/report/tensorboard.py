"""TensorBoard logs beside the agent's own: held-out evaluations, and the scores of baselines."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from ctrl.experiments.options import TaskOptions
from ctrl.experiments.report import provenance
from ctrl.experiments.report.summary import Evaluation
from ctrl.experiments.runs.tasks import BEST, MEMORYLESS, PERFECT, reference_scores

RETURNS = ("eval/mean_reward", "rollout/ep_rew_mean")
SUCCESSES = ("eval/success_rate", "rollout/success_rate")
REFERENCE_RUNS = {MEMORYLESS: "no_memory", PERFECT: "perfect", BEST: "best_known"}
"""Names of the TensorBoard runs that show the scores of baselines."""
RUN_COLOURS = "regex:([^/]+)"
"""Pattern by which TensorBoard colours runs: by the first part of the name, in a comparison the core."""
FIRST_SCALARS = "(eval|rollout)/(success_rate|mean_reward|ep_rew_mean)"
PORT = 6006


def log_evaluation(logger: Logger, evaluation: Evaluation, steps: int) -> None:
    """Write a held-out evaluation at once, under the names of stable-baselines3's `EvalCallback`.

    Other values that the logger has recorded stay in it until the agent writes them.
    """
    values = {"eval/mean_reward": evaluation.return_mean, "eval/mean_ep_length": evaluation.length_mean}
    if evaluation.success is not None:
        values["eval/success_rate"] = evaluation.success
    for writer in logger.output_formats:
        writer.write(values, dict.fromkeys(values, ()), steps)


def drop_after(logger: Logger, steps: int) -> None:
    """Let readers drop what an earlier part of a run wrote after `steps`: the run goes on from there."""
    for writer in logger.output_formats:
        if isinstance(writer, TensorBoardOutputFormat):
            start = SessionLog(status=SessionLog.START)
            writer.writer._get_file_writer().add_event(Event(step=steps + 1, session_log=start))


def write_references(folder: Path, task: TaskOptions, steps: int) -> None:
    """Write the scores of baselines as runs of their own, which are horizontal lines in the charts of the agents.

    :param folder: folder of the agents' runs
    :param task: task with its arguments, which decide the scores
    :param steps: length of the lines in env steps
    """
    tags = (*RETURNS, *SUCCESSES) if reference_scores(task, "success") else RETURNS
    for name, score in reference_scores(task).items():
        _write_level(folder / REFERENCE_RUNS[name], dict.fromkeys(tags, score), steps)


def _write_level(folder: Path, values: dict[str, float], steps: int) -> None:
    logger = configure(str(folder), ["tensorboard"])
    for step in (0, steps):
        for tag, value in values.items():
            logger.record(tag, value)
        logger.dump(step)
    logger.close()


def how_to_look(folder: Path) -> tuple[tuple[str, str], ...]:
    """Return the command that starts TensorBoard, and the address of its most important charts, each with a label."""
    command = f"{provenance.tool('tensorboard')} --logdir {folder}"
    return ("TensorBoard", command), ("then open", address())


def address() -> str:
    """Return the address of a local TensorBoard that has one colour for each core and shows only results."""
    query = urlencode({"runColorGroup": RUN_COLOURS, "tagFilter": FIRST_SCALARS, "smoothing": 0})
    return f"http://localhost:{PORT}/?{query}#timeseries"
