"""Tables of speed: those of the reports of `ctrl bench`, and what was aimed at beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from operator import ge, le
from statistics import fmean, median
from typing import Any

from ctrl.experiments.bench.harness import Row, milliseconds, values, where
from ctrl.experiments.bench.train import LABELS
from docs_tables.pages import Lines, read

Aim = tuple[str, list[float], Callable[[float, float], bool], float]
"""Text, what was reached, the comparison that it should pass, and the limit to compare with."""


def bench(name: str) -> Lines:
    """Tables and notes that `ctrl bench` prints for a report, below its command and machine."""
    report = read(name)
    command = report["command"].split(" --out")[0]
    yield f"`{command}`, [{name}]({name}); {where(report)}"
    for table in import_module(f"ctrl.experiments.bench.{command.split()[2]}").tables(report):
        yield f"\n{table.title[0].upper()}{table.title[1:]}:"
        yield tuple(column.head.replace("\n", " ").strip() for column in table.columns)
        for row in table.rows:
            yield tuple(column.cell(row) for column in table.columns)
        yield "".join(f"- {note}\n" for note in table.notes)


def agents() -> dict[tuple[str, int], Row]:
    """Return the agents of bench_train.json by name and number of envs."""
    return {(each["agent"], each["num_envs"]): each for each in read("bench_train.json")["agents"]}


def windows(model: str) -> dict[tuple[int, int], Row]:
    """Return the cases of a model in bench_unroll.json, by width and length.

    :param model: `compressive_long` has as many slots as the package, which in short windows `compressive` has too
    """
    chosen = ("compressive", model)
    cases = (each for name in chosen for each in read("bench_unroll.json")["models"] if each["model"] == name)
    return {(each["width"], each["length"]): each for each in cases}


def aims() -> Lines:
    """Table of the aims of November and of what was reached."""
    yield "aim", "reached", "verdict"
    for text, reached, passes, limit in (*_training_aims(), *_window_aims(), *_acting_aims()):
        yield text, ", ".join(f"{value:.2f}" for value in reached), verdict([passes(value, limit) for value in reached])


def verdict(met: Sequence[bool]) -> str:
    """Return in how many cases an aim was met."""
    if all(met):
        return "met"
    return f"met in {sum(met)} of {len(met)}" if any(met) else "missed"


def _training_aims() -> Iterator[Aim]:
    def reached(agent: str, other: str) -> list[float]:
        return [agents()[agent, envs][f"ratio_to_{other}"] for envs in (8, 64)]

    ours, (few, many) = "training, compressive, 8 and 64 envs", reached("lstm", "recurrent_ppo")
    yield f"{ours}: ≥ 3 × `RecurrentPPO`", reached("compressive", "recurrent_ppo"), ge, 3
    yield f"{ours}: ≥ 1 × `PPO` with an MLP of as many parameters", reached("compressive", "matched_ppo"), ge, 1
    yield "training, LSTM, 8 envs: ≥ 5 × `RecurrentPPO`", [few], ge, 5
    yield "training, LSTM, 64 envs: ≥ 6 × `RecurrentPPO`", [many], ge, 6


def _window_aims() -> Iterator[Aim]:
    short, long = windows("compressive"), windows("compressive_long")
    widths, lengths = (sorted({size[place] for size in short}) for place in (0, 1))
    for width in widths:
        what = f"windows, width {width}, T = {', '.join(f'{length:,}' for length in lengths)}"
        ratios = [long[width, length]["ratio_to_package"] for length in lengths]
        yield f"{what}: ≥ 3 × compressive-transformer-pytorch at equal slots", ratios, ge, 3
    for slots, cases in (("32 + 32 slots", short), ("the package's slots", long)):
        shares = [cases[max(widths), length]["share_of_peak"] for length in lengths]
        yield f"windows, width {max(widths)}, {slots}: ≥ 0.5 of the matrix-product peak", shares, ge, 0.5
    speed = {size: case["tokens_per_second"]["median"] for size, case in short.items()}
    what = f"windows, width {', '.join(map(str, widths))}, 32 + 32 slots: tokens/s at T = {max(lengths):,}"
    yield f"{what} ≥ 0.8 of those at 128", [speed[each, max(lengths)] / speed[each, 128] for each in widths], ge, 0.8


def _acting_aims() -> Iterator[Aim]:
    """Yield the aims of acting, with what was reached by one thread and by two."""
    reports = [read(name) for name in ("bench_act.json", "bench_act_2_threads.json")]
    for batch, limit in ((16, 3.0), (256, 1.5)):
        steps = (each for report in reports for each in report["steps"])
        ratios = [each["ratio"] for each in steps if (each["model"], each["batch_size"]) == ("compressive", batch)]
        yield f"acting step, batch {batch}, one thread and two: ≤ {limit:g} × `torch.nn.LSTM`'s", ratios, le, limit
    overheads = [1e3 * report["predict"][0]["overhead_seconds"]["median"] for report in reports]
    yield "`predict` at batch 1, one thread and two: ≤ 1 ms beyond its core", overheads, le, 1


def budgets() -> Lines:
    """Table of the milliseconds an update that the aims of training leave for learning."""
    yield (
        *("aim", "envs", "ms an update may take", "of which acting and envs take", "left for learning"),
        "learning takes",
    )
    n_steps = read("bench_train.json")["sizes"]["n_steps"]
    for agent, times, other, envs in (
        ("compressive", 3, "recurrent_ppo", 8),
        ("compressive", 3, "recurrent_ppo", 64),
        ("compressive", 1, "matched_ppo", 8),
        ("compressive", 1, "matched_ppo", 64),
        ("lstm", 5, "recurrent_ppo", 8),
        ("lstm", 6, "recurrent_ppo", 64),
    ):
        allowed = round(1e3 * n_steps * envs / (times * median(values(agents()[other, envs], "steps_per_second"))))
        acting, learning = (
            round(1e3 * fmean(values(agents()[agent, envs], f"{part}_seconds"))) for part in ("acting", "learning")
        )
        numbers = (envs, allowed, acting, allowed - acting, learning)
        yield f"{agent}, {times} × {LABELS[other]}", *(f"{number:,}" for number in numbers)


def windows_at_peak() -> Lines:
    """Ratios to the package, and what they would be at the machine's peak."""
    yield "width", "T", "ratio to the package", "of peak", "ratio at the peak"
    for (width, length), each in windows("compressive_long").items():
        ratio, share = each["ratio_to_package"], each["share_of_peak"]
        yield str(width), f"{length:,}", f"{ratio:.2f}", f"{share:.0%}", f"{ratio / share:.1f}"


def before_and_now() -> Lines:
    """Phases of an update before and after the first work on speed."""
    before, now = (read(name)["cores"] for name in ("bench_profile_before.json", "bench_profile.json"))
    yield "phase", *(f"{each['core']}, {each['num_envs']} envs" for each in now)

    def taken(case: dict[str, Any], phase: str) -> str:
        return milliseconds(case["seconds_per_update"][phase]["median"])

    for phase in now[0]["seconds_per_update"]:
        yield phase, *(f"{taken(old, phase)} → {taken(new, phase)}" for old, new in zip(before, now, strict=True))


TABLES = (bench, aims, budgets, windows_at_peak, before_and_now)
