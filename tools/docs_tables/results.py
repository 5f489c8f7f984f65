"""Tables of results: of the suite, of comparisons and of single trials."""

from __future__ import annotations

import re
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from ctrl.experiments.compare.ablation_results import AblationRun, aggregate, markdown_table
from ctrl.experiments.report.summary import bytes_text, count_text, duration_text, number_text
from ctrl.experiments.suite.results import markdown, read_results, rows, score_text
from docs_tables.pages import DOCS, MISSING, Lines, read

SUITE_TITLES = {
    "recall-24": "a cue 24 steps back",
    "recall-64": "64 back",
    "recall-250": "250 back",
    "recall-250, then length=2500": "the same agents at 2,500 back",
    "recall-1000": "1,000 back",
    "recall-1000, then length=2500": "the same agents at 2,500 back",
    "rewrite": "cues that replace old ones",
    "copy-4-8": "copying 4 symbols in order",
}
"""Rows of the suite that the README shows, with their titles there."""
SUITE_CORES = {
    "compressive": "ours",
    "transformer_xl": "attention without compression",
    "lstm": "LSTM",
    "gru": "GRU",
}


def demo() -> Lines:
    """Results of `ctrl demo`."""
    results = read("demo/summary.json")
    yield "core", "success", "by seed", "parameters", "state", "steps", "steps/s", "time"
    for core in results["cores"].values():
        yield (
            core["core"],
            f"{fmean(core['success']):.2f}",
            hundredths(core["success"]),
            f"{core['parameters']:,}",
            bytes_text(core["state_bytes"]),
            count_text(core["steps"]),
            f"{core['steps_per_second']:,.0f}",
            duration_text(core["wall_seconds"]),
        )
    for name, score in (("no memory", "memoryless"), ("perfect", "perfect")):
        yield name, f"{results['scores'][score]:.2f}", *[""] * 6


def suite() -> Lines:
    """All tables and notes of the suite, without the heading."""
    yield markdown(read_results(DOCS / "suite.json")).split("\n", 2)[2]


def suite_chosen() -> Lines:
    """Rows of the suite for the README; a task that was not run is left out, a core that was not run has a dash."""
    results = read_results(DOCS / "suite.json")
    yield "task", "steps", *SUITE_CORES.values(), "chance"
    found = {row.title: row for row in rows(results)}
    for row in (found[name] for name in SUITE_TITLES if name in found):
        steps = count_text(results.tasks[row.title]["steps"]) if row.title in results.tasks else MISSING
        scores = (score_text(row.scores.get(core, [])) for core in SUITE_CORES)
        yield SUITE_TITLES[row.title], steps, *scores, number_text(row.chance)


def memory_ablation() -> Lines:
    """Variants of the default memory, one seed each."""
    tasks = ("recall-250", "copy-4-8", "rewrite")
    yield "variant", "Recall 250", "copying 4 symbols", "Rewrite", "parameters"
    for name, runs in read("memory_ablation.json")["variants"].items():
        scores = (number_text(runs[task]["score"]) if task in runs else MISSING for task in tasks)
        yield name, *scores, f"{runs[tasks[0]]['parameters']:,}"


def compressors() -> Lines:
    """Results of `ctrl ablate`."""
    yield markdown_table(aggregate(AblationRun(**run) for run in read("compressors.json")["runs"]))


def trained_agents() -> Lines:
    """One run on each of many tasks."""
    yield "task", "training", "return", "normalised", "random", "memoryless", "perfect or best known"
    for run in read("task_runs.json"):
        steps, brought = run["steps"], run["evaluation"]
        arguments = ", ".join(f"{name}={value}" for name, value in run["env_kwargs"].items())
        scores = (brought["normalised"], run["random"], run["memoryless"], run["best"])
        yield (
            f"`{run['env']}` {arguments}".strip(),
            f"{f'{steps / 1e6:.2f}M' if steps >= 1e6 else f'{steps // 1000}k'}, {run['wall_seconds']:,} s",
            f"{brought['return_mean']:.2f}",
            *(MISSING if score is None else f"{score:.3g}" for score in scores),
        )


def recall() -> Lines:
    """Runs of Recall over 250 and 1,000 steps."""
    yield (
        *("steps back", "seed", "first 0.95 or more", "lowest from then on", "at the end", "at 2,500 steps back"),
        *("staleness, median (highest)", "steps, time"),
    )
    for compared in read("recall.json"):
        for run in compared["runs"]:
            at = reached(run)
            minutes, seconds = divmod(run["wall_seconds"], 60)
            yield (
                length_of(compared),
                str(run["seed"]),
                MISSING if at is None else count_text(run["checkpoints"][at][0]),
                f"{run['success'] if at is None else lowest_since(run, at):.2f}",
                f"{run['success']:.2f}",
                f"{run['longer']:.2f}",
                f"{run['staleness']['median']:.2f} ({run['staleness']['highest']:.2f})",
                f"{count_text(run['steps'])}, {minutes} min {seconds:02d} s",
            )


def recall_variants() -> Lines:
    """Variants of November's memory on Recall, and its default."""
    yield (
        *("keys and values, learning rate", "steps back", "seeds that reach 0.95", "the last of them after"),
        *("lowest from then on", "lowest at 2,500"),
    )
    for compared in (*read("recall_variants.json"), *read("recall.json")):
        learned = [(run, at) for run in compared["runs"] if (at := reached(run)) is not None]
        yield (
            compared.get("variant", "by slot, gain 4, falling rate (default)"),
            length_of(compared),
            f"{len(learned)} of {len(compared['runs'])}",
            count_text(max(run["checkpoints"][at][0] for run, at in learned)),
            f"{min(lowest_since(run, at) for run, at in learned):.2f}",
            f"{min(run['longer'] for run, _ in learned):.2f}",
        )


def length_of(compared: dict[str, Any]) -> str:
    """Return the steps between cue and query, from the command of a comparison."""
    (length,) = re.findall(r"length=(\d+)", compared["command"])
    return f"{int(length):,}"


def reached(run: dict[str, Any]) -> int | None:
    """Return the number of the first checkpoint at 0.95 or more."""
    return next((at for at, (_, success) in enumerate(run["checkpoints"]) if success >= 0.95), None)


def lowest_since(run: dict[str, Any], at: int) -> float:
    """Return the lowest success from a checkpoint on, with that of the last model."""
    return min([*(float(success) for _, success in run["checkpoints"][at:]), float(run["success"])])


def rewrite() -> Lines:
    """Comparisons on Rewrite, a row for each core."""
    options = ("--compressor conv", "--memory 8,8x4", "--recency 2", "--learning-rate 3e-3")
    yield "core", "score", "by seed", "return", "parameters", "state, bytes", "processor time"
    for compared in read("rewrite.json"):
        for core in compared["cores"]:
            runs = [run for run in compared["runs"] if run["core"] == core]
            scores = [run["evaluation"]["normalised"] for run in runs]
            names = [f"`{name}`" for name in (core, *(option for option in options if option in compared["command"]))]
            yield (
                ", ".join(names).replace("`--recency 2`", "recency 2"),  # an option of its time
                f"{fmean(scores):.2f}",
                hundredths(scores),
                f"{fmean(run['evaluation']['return_mean'] for run in runs):.1f}",
                f"{runs[0]['parameters']:,}",
                f"{runs[0]['state_bytes']:,}",
                f"{fmean(run['cpu_seconds'] for run in runs):.0f} s",
            )


def hundredths(values: Iterable[float]) -> str:
    """Return the values of the seeds as text."""
    return " ".join(f"{value:.2f}" for value in values)


def impala() -> Lines:
    """Runs of PPO and IMPALA on Recall."""
    yield "algorithm", "seed", "success in 200 held-out episodes", "0.9 in training after", "steps, time"
    for name, compared in read("impala.json").items():
        for run in compared["runs"]:
            yield (
                name,
                str(run["seed"]),
                f"{run['evaluation']['success']:.2f}",
                f"{run['steps_to_level'] // 1000}k, {run['seconds_to_level']} s",
                f"{run['steps'] // 1000}k, {run['wall_seconds']:.0f} s",
            )


def impala_rates() -> Lines:
    """Runs of IMPALA with different rates."""
    held_out = "in 100 held-out episodes"
    yield "rate", "seed", "return 30 in training after", "return in training at the end", held_out, "time"
    for name, compared in read("impala_rates.json").items():
        for run in compared["runs"]:
            at = run["steps_to_level"]
            yield (
                name,
                str(run["seed"]),
                MISSING if at is None else f"{at / 1e6:.2f}M",
                f"{run['curve'][-1][2]:.1f}",
                f"{run['evaluation']['return_mean']:.1f}",
                f"{run['wall_seconds'] / 60:.0f} min",
            )


TABLES = (
    demo,
    suite,
    suite_chosen,
    memory_ablation,
    compressors,
    trained_agents,
    recall,
    recall_variants,
    rewrite,
    impala,
    impala_rates,
)
