"""Tables of speed, from the reports of `ctrl bench`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, median
from typing import Any

from ctrl.experiments.report.summary import MISSING, bytes_text, count_text
from docs_tables.pages import Lines, read

AGENTS = {
    "recurrent_ppo": "RecurrentPPO",
    "matched_ppo": "PPO, matched MLP",
    "default_ppo": "PPO, default MLP",
    "impala_compressive": "MemoryImpala compressive",
    "impala_lstm": "MemoryImpala lstm",
    "ppo_compressive": "MemoryPPO compressive",
    "ppo_lstm": "MemoryPPO lstm",
    "rllib_lstm": "RLlib IMPALA lstm",
}
"""Titles of agents whose name is no core's."""


def source(name: str) -> str:
    """Return a line with the command of a report, a link to it, and the machine."""
    report = read(name)
    machine = f"{report['machine']['cpu']}, {report['machine']['cores']} cores"
    threads = f", torch threads: {report['torch_threads']}" if "torch_threads" in report else ""
    return f"`{report['command'].split(' --out')[0]}`, [{name}]({name}); {machine}{threads}"


def digits(value: float) -> str:
    """Return a number with three significant digits; from 100 on, as a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float], scale: float = 1) -> tuple[str, str]:
    """Return the median and the range of a measurement's turns, each times `scale`."""
    return digits(scale * median(values)), f"{digits(scale * min(values))}–{digits(scale * max(values))}"


def ratio(value: float | None) -> str:
    """Return a ratio as text, or a dash if there is none."""
    return MISSING if value is None else f"{value:.2f}"


def milliseconds(agent: dict[str, Any], part: str) -> float:
    """Return the ms an update of acting or learning, mean over the turns of `ctrl bench train`."""
    return 1e3 * fmean(turn[f"{part}_seconds"] for turn in agent["turns"])


def bench_train(name: str) -> Lines:
    """Training beside sb3-contrib and stable-baselines3."""
    yield source(name)
    yield "agent", "envs", "parameters", "steps/s", "range", "act", "learn", "ratio", "ratio to MLP"
    for agent in read(name)["agents"]:
        yield (
            AGENTS.get(agent["agent"], agent["agent"]),
            str(agent["num_envs"]),
            f"{agent['parameters']:,}",
            *spread([turn["steps_per_second"] for turn in agent["turns"]]),
            *(f"{milliseconds(agent, part):,.0f}" for part in ("acting", "learning")),
            *(ratio(agent.get(f"ratio_to_{other}")) for other in ("recurrent_ppo", "matched_ppo")),
        )


def bench_act(name: str) -> Lines:
    """Acting steps of cores."""
    yield source(name)
    yield "core", "batch", "parameters", "ms a step", "range", "env steps/s", "ratio"
    for step in read(name)["steps"]:
        speed = f"{step['batch_size'] / median(step['seconds']):,.0f}"
        sizes = (str(step["batch_size"]), f"{step['parameters']:,}")
        yield step["model"], *sizes, *spread(step["seconds"], 1e3), speed, ratio(step["ratio"])


def bench_predict(name: str) -> Lines:
    """`MemoryPPO.predict` for one env."""
    yield "core", "predict, ms", "range", "core.step, ms", "range", "overhead, ms"
    for each in read(name)["predict"]:
        overhead = digits(1e3 * each["overhead_seconds"])
        yield each["core"], *spread(each["predict"], 1e3), *spread(each["core_step"], 1e3), overhead


def bench_unroll(name: str) -> Lines:
    """Forward and backward of windows."""
    yield source(name)
    yield "model", "width", "T", "parameters", "tokens/s", "range", "to lstm", "to package", "of peak"
    for each in read(name)["models"]:
        yield (
            f"compressive {each['memory']}" if each["model"].startswith("compressive") else each["model"],
            str(each["width"]),
            f"{each['length']:,}",
            f"{each['parameters']:,}",
            *spread(each["turns"]),
            *(ratio(each.get(f"ratio_to_{other}")) for other in ("lstm", "package")),
            MISSING if each["share_of_peak"] is None else percent(each["share_of_peak"]),
        )


def percent(share: float, decimals: int = 0) -> str:
    """Return a share as text."""
    return f"{100 * share:.{decimals}f} %"


def windows(model: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the cases of a model in bench_unroll.json, by width and length.

    :param model: `compressive_long` has as many slots as the package, which in short windows `compressive` has too
    """
    chosen = ("compressive", model)
    cases = (each for name in chosen for each in read("bench_unroll.json")["models"] if each["model"] == name)
    return {(each["width"], each["length"]): each for each in cases}


def windows_at_peak() -> Lines:
    """Ratios to the package, and what they would be at the machine's peak."""
    yield "width", "T", "ratio to the package", "of peak", "ratio at the peak"
    for (width, length), each in windows("compressive_long").items():
        to_package, share = each["ratio_to_package"], each["share_of_peak"]
        yield str(width), f"{length:,}", ratio(to_package), percent(share), f"{to_package / share:.1f}"


def aims() -> Lines:
    """What was aimed at in November, and what was reached."""
    yield "aim", "reached", "verdict"
    for text, values, limit in _floors():
        yield text, ", ".join(map(ratio, values)), verdict([value >= limit for value in values])
    for text, values, limit in _ceilings():
        yield text, ", ".join(map(ratio, values)), verdict([value <= limit for value in values])


def verdict(met: Sequence[bool]) -> str:
    """Return in how many cases an aim was met."""
    if all(met):
        return "met"
    return f"met in {sum(met)} of {len(met)}" if any(met) else "missed"


def _floors() -> Iterator[tuple[str, list[float], float]]:
    """Yield aims that a value must reach: text, values, limit."""
    agents = {(each["agent"], each["num_envs"]): each for each in read("bench_train.json")["agents"]}
    ours = [agents["compressive", envs] for envs in (8, 64)]
    few, many = (agents["lstm", envs]["ratio_to_recurrent_ppo"] for envs in (8, 64))
    to_theirs = [each["ratio_to_recurrent_ppo"] for each in ours]
    yield "training, compressive, 8 and 64 envs: ≥ 3 × `RecurrentPPO`", to_theirs, 3
    to_mlp = [each["ratio_to_matched_ppo"] for each in ours]
    yield "training, compressive, 8 and 64 envs: ≥ 1 × `PPO` with an MLP of as many parameters", to_mlp, 1
    yield "training, LSTM, 8 envs: ≥ 5 × `RecurrentPPO`", [few], 5
    yield "training, LSTM, 64 envs: ≥ 6 × `RecurrentPPO`", [many], 6
    cases, long = windows("compressive"), windows("compressive_long")
    widths, lengths = (sorted({size[place] for size in cases}) for place in (0, 1))
    for width in widths:
        ratios = [long[width, length]["ratio_to_package"] for length in lengths]
        what = f"windows, width {width}, T = {', '.join(f'{length:,}' for length in lengths)}"
        yield f"{what}: ≥ 3 × compressive-transformer-pytorch at equal slots", ratios, 3
    for slots, each in (("32 + 32 slots", cases), ("the package's slots", long)):
        shares = [each[max(widths), length]["share_of_peak"] for length in lengths]
        yield f"windows, width {max(widths)}, {slots}: ≥ 0.5 of the matrix-product peak", shares, 0.5
    kept = [
        cases[width, max(lengths)]["tokens_per_second"]["median"] / cases[width, 128]["tokens_per_second"]["median"]
        for width in widths
    ]
    what = f"windows, width {', '.join(map(str, widths))}, 32 + 32 slots"
    yield f"{what}: tokens/s at T = {max(lengths):,} ≥ 0.8 of those at 128", kept, 0.8


def _ceilings() -> Iterator[tuple[str, list[float], float]]:
    """Yield aims that a value must stay below: text, values with one thread and with two, limit."""
    reports = [read(name) for name in ("bench_act.json", "bench_act_2_threads.json")]
    for batch, limit in ((16, 3.0), (256, 1.5)):
        steps = [each for report in reports for each in report["steps"] if each["model"] == "compressive"]
        ratios = [each["ratio"] for each in steps if each["batch_size"] == batch]
        yield f"acting step, batch {batch}, one thread and two: ≤ {limit:g} × `torch.nn.LSTM`'s", ratios, limit
    overheads = [1e3 * report["predict"][0]["overhead_seconds"] for report in reports]
    yield "`predict` at batch 1, one thread and two: ≤ 1 ms beyond its core", overheads, 1


def budgets() -> Lines:
    """What the aims of training leave for learning, in ms an update."""
    yield (
        *("aim", "envs", "ms an update may take", "of which acting and envs take", "left for learning"),
        "learning takes",
    )
    report = read("bench_train.json")
    agents = {(each["agent"], each["num_envs"]): each for each in report["agents"]}
    for agent, times, other, envs in (
        ("compressive", 3, "recurrent_ppo", 8),
        ("compressive", 3, "recurrent_ppo", 64),
        ("compressive", 1, "matched_ppo", 8),
        ("compressive", 1, "matched_ppo", 64),
        ("lstm", 5, "recurrent_ppo", 8),
        ("lstm", 6, "recurrent_ppo", 64),
    ):
        speed = median(turn["steps_per_second"] for turn in agents[other, envs]["turns"])
        allowed = round(1e3 * report["sizes"]["n_steps"] * envs / (times * speed))
        acting, learning = (round(milliseconds(agents[agent, envs], part)) for part in ("acting", "learning"))
        numbers = (envs, allowed, acting, allowed - acting, learning)
        yield f"{agent}, {times} × {AGENTS[other]}", *(f"{number:,}" for number in numbers)


def bench_profile(name: str) -> Lines:
    """Phases of an update: ms and share of all of it."""
    yield source(name)
    cores = read(name)["cores"]
    yield "phase", *(text for each in cores for text in (f"{each['core']}, {each['num_envs']} envs", "share"))
    for phase in cores[0]["seconds_per_update"]:
        shares = (each["share"].get(phase) for each in cores)
        cells = zip(phase_milliseconds(cores, phase), shares, strict=True)
        yield phase, *(text for ms, share in cells for text in (ms, "" if share is None else percent(share, 1)))


def before_and_now() -> Lines:
    """Phases of an update before and after the first work on speed."""
    before, now = (read(name)["cores"] for name in ("bench_profile_before.json", "bench_profile.json"))
    yield "phase", *(f"{each['core']}, {each['num_envs']} envs" for each in now)
    for phase in now[0]["seconds_per_update"]:
        pairs = zip(phase_milliseconds(before, phase), phase_milliseconds(now, phase), strict=True)
        yield phase, *(" → ".join(pair) for pair in pairs)


def phase_milliseconds(cores: Iterable[dict[str, Any]], phase: str) -> list[str]:
    """Return the ms of a phase for each core and number of envs."""
    return [digits(1e3 * each["seconds_per_update"][phase]["median"]) for each in cores]


def bench_impala(name: str) -> Lines:
    """IMPALA's actors, beside PPO and RLlib."""
    yield source(name)
    yield "agent", "parameters", "steps/s", "range", "lag", "ratio"
    agents = read(name)["agents"]
    theirs = [turn["steps_per_second"] for turn in agents[-1]["turns"]]
    for agent in agents:
        turns = agent["turns"]
        speeds = [turn["steps_per_second"] for turn in turns]
        lags = [turn["policy_lag"] for turn in turns if turn["policy_lag"] is not None]
        yield (
            AGENTS[agent["agent"]],
            f"{turns[0]['parameters']:,}",
            *spread(speeds),
            f"{median(lags):.1f}" if lags else MISSING,
            ratio(median(one / other for one, other in zip(speeds, theirs, strict=True))),
        )


def bench_episode(name: str) -> Lines:
    """Tenths of one long episode."""
    yield source(name)
    report = read(name)
    yield "step", "ms a step", "ratio", "resident memory"
    slices = report["episode"]["slices"]
    for number, each in enumerate(slices, start=1):
        step = f"{number * report['sizes']['episode_steps'] // len(slices):,}"
        seconds = each["seconds_per_step"]
        slower = ratio(seconds / slices[0]["seconds_per_step"])
        yield step, digits(1e3 * seconds), slower, bytes_text(each["resident_bytes"])


def bench_sizes(name: str) -> Lines:
    """Acting steps as one size varies."""
    yield "with", "ms a step", "range", "ratio", "state of an env"
    for each in read(name)["cases"]:
        what = f"{each['varied']} {each['case'][each['varied']]}"
        yield what, *spread(each["seconds"], 1e3), ratio(each["ratio"]), bytes_text(each["state_bytes"])


def bench_rollouts(name: str) -> Lines:
    """Bytes of rollouts."""
    yield "core", "window", "states", "the rest", "each step", "ratio"
    for each in read(name)["rollouts"]:
        sizes = (bytes_text(each[part]) for part in ("snapshots", "rest", "every_step"))
        yield each["core"], str(each["window"]), *sizes, ratio(each["ratio"])


def bench_envs(name: str) -> Lines:
    """Native vector envs beside gymnasium's."""
    yield source(name)
    yield "task", "native, steps/s", "range", "`SyncVectorEnv`, steps/s", "ratio"
    for each in read(name)["tasks"]:
        native, sync = each["native"], each["sync"]
        low, high = (count_text(round(speed)) for speed in (min(native), max(native)))
        speeds = [count_text(round(median(form))) for form in (native, sync)]
        task = ", ".join([f"`{each['task']}`", *each["arguments"].values()])
        yield task, speeds[0], f"{low}–{high}", speeds[1], f"{each['ratio']:.0f}"


TABLES = (
    *(aims, budgets, windows_at_peak, bench_train, bench_impala, bench_profile, before_and_now, bench_act),
    *(bench_predict, bench_unroll, bench_episode, bench_sizes, bench_rollouts, bench_envs),
)
