"""Examples and numbers of the README and the docs: examples run as written, commands exist, tables match results."""

from __future__ import annotations

import inspect
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import fmean, median
from typing import Any

import gymnasium as gym
import pytest
import torch
from rich.console import Console

import ctrl
from ctrl.compressive.attention.novelty import Novelty
from ctrl.envs import TASKS, Rules, external
from ctrl.experiments.report import provenance
from ctrl.experiments.report.summary import count_text

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
COMMAND_LINE_PAGE = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
KEYS_PAGE = (ROOT / "docs" / "reference" / "log-keys.md").read_text(encoding="utf-8")
ARCHITECTURE_PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SPEED_PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
LEARNING_PAGE = (ROOT / "docs" / "research-log.md").read_text(encoding="utf-8")
DETAILS_PAGE = (ROOT / "docs" / "implementation-details.md").read_text(encoding="utf-8")
COMPRESSORS_PAGE = (ROOT / "docs" / "compressors.md").read_text(encoding="utf-8")
TASKS_PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("python")
    assert len(examples) >= 3
    exec("\n".join(examples), {"__name__": "readme"})
    assert (tmp_path / "cartpole_with_memory.zip").is_file()


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_examples() -> list[Path]:
    return [page for page in PAGES if blocks("python", page.read_text(encoding="utf-8"))]


@pytest.fixture
def registries_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the compressors and env ids that a page registers."""
    monkeypatch.setattr("ctrl.compressive.compressors._COMPRESSORS", dict(ctrl.compressive.compressors._COMPRESSORS))
    known = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(known)


@pytest.mark.usefixtures("registries_kept")
@pytest.mark.parametrize("page", with_examples(), ids=page_name)
def test_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python", page.read_text(encoding="utf-8")))
    exec(compile(code, str(page), "exec", dont_inherit=True), {"__name__": page.stem})  # without our __future__


def test_pages_with_examples_are_found() -> None:
    found = [page_name(page) for page in with_examples()]
    assert len(found) >= 12 and {"docs/index.md", "docs/tasks.md", "docs/guides/own-task.md"} <= set(found)


def test_every_page_is_in_the_navigation() -> None:
    """`make docs` says it too, with MkDocs; this needs nothing."""
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == [str(page.relative_to(ROOT / "docs")) for page in PAGES]


def test_the_readme_takes_five_minutes() -> None:
    assert len(README.splitlines()) <= 120


COMMAND_PAGES = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
COMMAND_PAGES.append(ROOT / "CHANGELOG.md")
OTHER_TOOLS = {"--no-deps", "--logdir"}
"""Flags of pip and TensorBoard that the pages name."""


def commands_of(page: str) -> list[str]:
    """Return the `ctrl` command lines of a page, in its blocks and inside its text, without `…` at their end."""
    fenced = [line for block in blocks("", page) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(text.split()) for text in (*fenced, *re.findall(r"`([^`]+)`", prose))]
    return [command.removesuffix(" …") for command in found if command.startswith("ctrl ")]


def parse_command(command: str) -> None:
    """Check that the command line parses a command; one that only names a subcommand must have a `--help`."""
    from ctrl.experiments.cli import parse

    arguments = shlex.split(command.replace("PYTHON", sys.executable))[1:]
    if len(arguments) > 1 + (arguments[0] == "bench"):
        parse(arguments)
        return
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        parse([*arguments, "--help"])
    assert f"usage: {command} [" in shown.getvalue()


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=page_name)
def test_every_command_is_one(page: Path) -> None:
    from ctrl.experiments.errors import UserError

    wrong = []
    for command in commands_of(page.read_text(encoding="utf-8")):
        try:
            parse_command(command)
        except (SystemExit, AssertionError, UserError) as error:
            wrong.append(f"{command}: {error}")
    assert not wrong


def test_commands_are_found() -> None:
    page = "`ctrl\ntrain --steps 3`, not `ctrl`:\n\n```\nctrl envs \\\n  --json\npip x\n```\n\n`ctrl bench act …`"
    assert commands_of(page) == ["ctrl envs --json", "ctrl train --steps 3", "ctrl bench act"]
    assert len(commands_of(COMMAND_LINE_PAGE)) >= 10


@pytest.mark.parametrize("command", ["ctrl trian", "ctrl train --steps", "ctrl train --annealing", "ctrl bench fly"])
def test_a_command_that_is_none_is_noticed(command: str) -> None:
    with redirect_stderr(io.StringIO()), pytest.raises((SystemExit, AssertionError)):
        parse_command(command)


def test_every_flag_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    from ctrl.experiments.cli import EXAMPLES, parse

    benches = ("train", "envs", "act", "unroll", "scale", "profile", "impala")
    for arguments in [*([name] for name in EXAMPLES if name), *(["bench", name] for name in benches)]:
        with pytest.raises(SystemExit):
            parse([*arguments, "--help"])
    known = {*re.findall(r"--[a-z-]+", capsys.readouterr().out), *OTHER_TOOLS}
    for page in COMMAND_PAGES:
        named = re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8"))
        assert known >= set(named), page_name(page)


@pytest.mark.parametrize("algorithm", ["MemoryPPO", "MemoryImpala"])
def test_every_key_that_is_logged_is_on_its_page(algorithm: str) -> None:
    from stable_baselines3.common.logger import Logger

    from ctrl import agents

    class Keys(Logger):
        """Remembers the names of all that is recorded."""

        def __init__(self) -> None:
            super().__init__(None, [])
            self.names: set[str] = set()

        def record(self, key: str, value: Any, exclude: Any = None) -> None:
            self.names.add(key)

    special = {"num_actors": 0} if algorithm == "MemoryImpala" else {"clip_range_vf": 0.2}
    core = {"core": "adaptive", "core_kwargs": {"memory": [ctrl.Tier(8), ctrl.Tier(4, 2, "conv")]}}
    model = getattr(agents, algorithm)("MlpMemoryPolicy", "Pendulum-v1", n_steps=32, policy_kwargs=core, **special)
    logger = Keys()
    model.set_logger(logger)
    model.learn(96)
    named = [re.sub(r"\d+", "…", name) for name in logger.names if name != "hparams"]
    missing = [name for name in named if f"`{name}`" not in KEYS_PAGE]
    assert len(named) >= 20 and not missing


def test_shapes_of_the_architecture_page_are_those_of_the_default() -> None:
    from ctrl.compressive.schedule import plan_window

    core = ctrl.make_core("compressive", 64)
    assert isinstance(core, ctrl.CompressiveCore)
    state = core.initial_state(1)
    for name, leaf in state._asdict().items():
        shape = ", ".join(["B", *map(str, leaf.shape[1:])])
        assert f"| `{name}` | `[{shape}]` |" in ARCHITECTURE_PAGE
    assert f"\n{core.state_bytes:,} bytes per env" in ARCHITECTURE_PAGE
    tiers = plan_window(core.tiers[0], state.clock, torch.zeros(1, 64, dtype=torch.bool)).tiers
    for at, tier in enumerate(tiers):
        schedule, columns = tier.schedule, tier.columns.exists.shape[1]
        rate = schedule.rate if at else "–"
        row = (at, schedule.slots, rate, schedule.span, columns - schedule.slots, columns)
        assert f"| {' | '.join(map(str, row))} |" in ARCHITECTURE_PAGE
    _, blocks, steps, width = core.plan(state, torch.zeros(1, 64, dtype=torch.bool))[core.tiers[0]].buckets.shape
    assert f"`[N, {blocks}, {steps}, {width}]`" in ARCHITECTURE_PAGE


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.usefixtures("registries_kept")
def test_the_compressor_of_its_page_is_used_and_learns() -> None:
    (example,) = blocks("python", COMPRESSORS_PAGE)
    made: dict[str, Any] = {"__name__": "compressors"}
    exec(example, made)
    core = made["core"]
    reset = torch.zeros(2, 20, dtype=torch.bool)
    core.unroll(torch.randn(2, 20, 24), core.initial_state(2), reset).reconstruction_loss.backward()
    compressor = core.compressors[0][0]
    assert type(compressor) is made["WeightedMean"] and bool(compressor.places.grad.any())


def test_table_of_the_tasks_page_is_what_the_code_says() -> None:
    found = re.findall(r"^\| `(ctrl/\S+-v0)` \|((?:[ 0-9.,−kM]+\|){6})$", TASKS_PAGE, flags=re.MULTILINE)
    stated = {name: [cell.strip() for cell in cells.split("|")[:-1]] for name, cells in found}
    speeds = measured_speeds()
    assert stated == {name: [*table_row(task.rules()), speeds[name]] for name, task in TASKS.items()}


def table_row(rules: Rules[Any]) -> list[str]:
    scores = (rules.scores.random, rules.scores.memoryless, rules.scores.perfect)
    return [str(rules.max_episode_steps), str(rules.memory_steps), *(f"{score:.4g}" for score in scores)]


def test_table_of_trained_agents_is_what_the_runs_brought() -> None:
    section = TASKS_PAGE.split("## Trained agents")[1]
    stated = [line for line in section.splitlines() if line.startswith("| `")]
    runs = json.loads((ROOT / "docs" / "task_runs.json").read_text(encoding="utf-8"))
    assert stated == [run_row(run) for run in runs]
    assert all(shlex.join(["--env", run["env"]]) in run["command"] for run in runs)


def run_row(run: dict[str, Any]) -> str:
    """Write a run of docs/task_runs.json as a line of the table."""
    arguments = ", ".join(f"{name}={value}" for name, value in run["env_kwargs"].items())
    brought = run["evaluation"]
    scores = (brought["normalised"], run["random"], run["memoryless"], run["best"])
    cells = [
        " ".join(filter(None, [f"`{run['env']}`", arguments])),
        f"{training_length(run['steps'])}, {run['wall_seconds']:,} s",
        f"{brought['return_mean']:.2f}",
        *("–" if score is None else f"{score:.3g}" for score in scores),
    ]
    return f"| {' | '.join(cells)} |"


def training_length(steps: int) -> str:
    return f"{steps / 1e6:.2f}M" if steps >= 1e6 else f"{steps // 1000}k"


def test_table_of_steady_learning_is_what_the_runs_brought() -> None:
    written = json.loads((ROOT / "docs" / "recall.json").read_text(encoding="utf-8"))
    stated = re.findall(r"^\| [\d,]+ \| \d.*$", LEARNING_PAGE, flags=re.MULTILINE)
    assert stated == [recall_row(each["command"], run) for each in written for run in each["runs"]]
    commands = blocks("", LEARNING_PAGE)[0].splitlines()[: len(written)]
    assert [each["command"].split(" --jobs")[0] for each in written] == [line.split(" --out")[0] for line in commands]


def test_staleness_of_recall_is_that_of_the_runs() -> None:
    written = json.loads((ROOT / "docs" / "recall.json").read_text(encoding="utf-8"))
    told = [run["staleness"] for each in written for run in each["runs"]]
    medians = sorted(each["median"] for each in told)
    highest = max(each["highest"] for each in told)
    stated = f"{medians[0]:.2f} to {medians[-1]:.2f} in the median of each run's updates, and at most {highest:.2f}"
    assert stated in LEARNING_PAGE.replace("\n", " ")


def test_table_of_variants_is_what_the_runs_brought() -> None:
    written = [
        each
        for name in ("recall_variants.json", "recall.json")
        for each in json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    ]
    stated = re.findall(
        r"^\| (?:most_used|no gain|by \w+, gain \d), (?:constant|falling) rate.*$", LEARNING_PAGE, flags=re.MULTILINE
    )
    assert stated == [variant_row(each) for each in written]


def variant_row(each: dict[str, Any]) -> str:
    """Write a comparison of docs/recall_variants.json, or the default of docs/recall.json, as a line of the table."""
    length, runs = re.search(r"length=(\d+)", each["command"]), each["runs"]
    assert length
    learned = [(run, at) for run in runs if (at := reached(run)) is not None]
    cells = (
        each.get("variant", f"by slot, gain {Novelty.GAIN:.0f}, falling rate (default)"),
        f"{int(length[1]):,}",
        f"{len(learned)} of {len(runs)}",
        count_text(max(run["checkpoints"][at][0] for run, at in learned)),
        f"{min(lowest_since(run, at) for run, at in learned):.2f}",
        f"{min(run['longer'] for run, _ in learned):.2f}",
    )
    return f"| {' | '.join(cells)} |"


def reached(run: dict[str, Any]) -> int | None:
    """Return the number of the first checkpoint at 0.95 or more."""
    return next((at for at, (_, success) in enumerate(run["checkpoints"]) if success >= 0.95), None)


def lowest_since(run: dict[str, Any], at: int) -> float:
    """Return the lowest success from a checkpoint on, including that of the last model."""
    found: float = min([*(success for _, success in run["checkpoints"][at:]), run["success"]])
    return found


def test_table_of_impala_is_what_the_runs_brought() -> None:
    written = json.loads((ROOT / "docs" / "impala.json").read_text(encoding="utf-8"))
    stated = re.findall(r"^\| Memory(?:PPO|Impala) \| \d.*$", SPEED_PAGE, flags=re.MULTILINE)
    assert stated == [impala_row(name, run) for name, each in written.items() for run in each["runs"]]


def test_table_of_impalas_speed_is_what_the_code_prints_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    written = json.loads((ROOT / "docs" / "bench_impala.json").read_text(encoding="utf-8"))
    table = next(block for block in blocks("", SPEED_PAGE) if "2 × 8 envs" in block)
    monkeypatch.setattr(provenance, "machine", lambda: written["machine"])
    assert lines_of(table) == lines_of(printed_speeds(written))
    stated = re.search(r"`(ctrl bench impala [^`]*)`, \[bench_impala.json\]", SPEED_PAGE)
    assert stated and stated[1].split() == written["command"].split(" --out")[0].split()
    version = re.search(r"ray (\S+) and RLlib", SPEED_PAGE)
    assert version and f'"ray[rllib]=={version[1]}"' in (ROOT / "tools" / "rllib_impala.py").read_text(encoding="utf-8")


BENCHES = (
    "bench_train",
    "bench_train_2_threads",
    "bench_act",
    "bench_act_2_threads",
    "bench_profile",
    "bench_unroll",
    "bench_scale",
)


@pytest.mark.parametrize("name", BENCHES)
def test_tables_of_speed_are_what_the_code_prints_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctrl.experiments.cli import parse

    written = json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(provenance, "machine", lambda: written["machine"])
    printed = io.StringIO()
    for table in TABLES[written["command"].split()[2]](written):
        Console(width=100, file=printed).print(table)
    expected = lines_of(printed.getvalue())
    tables = [lines_of(block) for block in blocks("", SPEED_PAGE)]
    alike = [table for table in tables if (table[0], table[-1]) == (expected[0], expected[-1])]
    assert alike == [expected]
    stated = re.search(rf"`(ctrl bench [^`]*)`,\s+\[{name}.json\]", SPEED_PAGE)
    commands = stated and (stated[1], written["command"].split(" --out")[0])
    assert commands and len({repr(parse(shlex.split(command)[1:])) for command in commands}) == 1, commands


def test_what_the_page_says_of_windows_is_what_the_file_says() -> None:
    written = json.loads((ROOT / "docs" / "bench_unroll.json").read_text(encoding="utf-8"))["models"]
    cases = {(each["model"], each["width"], each["length"]): each for each in written}
    for (model, width, length), each in list(cases.items()):
        if model == "compressive":  # at equal slots: at T = 32 those are its own
            cases.setdefault(("compressive_long", width, length), each)
    widths, lengths = (sorted({each[name] for each in written}) for name in ("width", "length"))
    equal = [cases["compressive_long", width, length] for width in widths for length in lengths]
    assert re.findall(r"^\| width \d.*$", SPEED_PAGE, flags=re.MULTILINE) == [at_the_peak_row(each) for each in equal]
    assert windows_text(equal) in SPEED_PAGE
    few = [cases["compressive", 512, length]["share_of_peak"] for length in lengths]
    long = [cases["compressive_long", 512, length]["share_of_peak"] for length in (128, 512, 2048)]
    shares = ", ".join(f"{100 * share:.0f}" for share in long)
    assert (
        f"{100 * min(few):.0f}–{100 * max(few):.0f} % with 32 + 32 slots; with the package's memory {shares} %"
        in SPEED_PAGE
    )
    kept = [
        speed_of(cases["compressive", width, 2048]) / speed_of(cases["compressive", width, 128]) for width in widths
    ]
    assert f"{min(kept):.2f}–{max(kept):.2f} with 32 + 32 slots" in SPEED_PAGE


def test_table_of_budgets_is_what_the_file_says() -> None:
    from ctrl.experiments.bench.train import LABELS

    written = json.loads((ROOT / "docs" / "bench_train.json").read_text(encoding="utf-8"))["agents"]
    measured = {(LABELS.get(each["agent"], each["agent"]), each["num_envs"]): each for each in written}
    stated = re.findall(r"^\| (\w+), (\d) × ([^|]+) \| (\d+) \| (.*) \|$", SPEED_PAGE, flags=re.MULTILINE)
    assert len(stated) == 6
    for agent, times, reference, envs, numbers in stated:
        assert numbers.split(" | ") == budget(measured[agent, int(envs)], int(times), measured[reference, int(envs)])


def budget(agent: dict[str, Any], times: int, reference: dict[str, Any]) -> list[str]:
    """Return the ms of an update at `times` the speed of a reference, those of acting, the rest, and of learning."""
    allowed = 1e3 * 128 * agent["num_envs"] / (times * reference["steps_per_second"]["median"])
    acting, learning = (
        1e3 * fmean(turn[name] for turn in agent["turns"]) for name in ("acting_seconds", "learning_seconds")
    )
    left = round(allowed) - round(acting)  # so that the printed numbers of the row add up
    return [f"{ms:,.0f}" for ms in (allowed, acting, left, learning)]


def test_table_of_before_and_now_is_what_both_files_say() -> None:
    from ctrl.experiments.bench.profile import PHASES, TOTAL
    from ctrl.experiments.bench.turns import number_of

    before, now = (
        {f"{each['core']}, {each['num_envs']} envs": each["turns"] for each in json.loads(text)["cores"]}
        for text in ((ROOT / "docs" / f"{name}.json").read_text("utf-8") for name in PROFILES)
    )
    assert before.keys() == now.keys()
    table = [["phase", *now]]
    for phase in (*PHASES, TOTAL):
        ms = [[number_of(1e3 * median(turn[phase] for turn in file[case])) for file in (before, now)] for case in now]
        table.append([phase, *(" → ".join(pair) for pair in ms)])
    expected = [f"| {' | '.join(cells)} |" for cells in table]
    section = SPEED_PAGE.split("**Before and now**")[1].split("\n\n")[1].splitlines()
    assert [line for line in section if line.startswith("| ")] == expected


def test_share_of_the_loop_is_what_the_file_says() -> None:
    written = json.loads((ROOT / "docs" / "bench_profile.json").read_text(encoding="utf-8"))["cores"]
    shares = []
    for each in written:
        medians = {phase: seconds["median"] for phase, seconds in each["seconds_per_update"].items()}
        spent = sum(medians[phase] for phase in ("env", "buffer", "advantage", "rest"))
        shares += [spent / medians["total"]] if each["core"] == "compressive" else []
    few, many = shares
    text = " ".join(DETAILS_PAGE.split())
    assert f"are {few:.0%} of an update with compressive memory at 8 envs and {many:.0%} at".replace("%", " %") in text
    assert f"at most {1 / (1 - few):.2f} times at 8 envs and {1 / (1 - many):.2f} at 64" in text


PROFILES = ("bench_profile_before", "bench_profile")


def at_the_peak_row(each: dict[str, Any]) -> str:
    """Write a row of docs/bench_unroll.json as a line of the table of ratios at the machine's peak."""
    ratio, share = each["ratio_to_package"], each["share_of_peak"]
    cells = (f"width {each['width']}", f"{each['length']:,}", f"{ratio:.2f}", f"{share:.0%}", f"{ratio / share:.1f}")
    return f"| {' | '.join(cells)} |".replace("%", " %")


def windows_text(equal: list[dict[str, Any]]) -> str:
    """Write the ratios to the package as they stand in the table of aims."""
    widths = dict.fromkeys(each["width"] for each in equal)
    ratios = {w: ", ".join(f"{each['ratio_to_package']:.1f}" for each in equal if each["width"] == w) for w in widths}
    return "; ".join(f"width {width}: {text}" for width, text in ratios.items())


def speed_of(each: dict[str, Any]) -> float:
    speed: float = each["tokens_per_second"]["median"]
    return speed


def train_tables(written: dict[str, Any]) -> list[Any]:
    from ctrl.experiments.bench.train import TrainResult, Turn, train_table

    results = [
        TrainResult(
            *values(each, "agent num_envs parameters"), [Turn(**turn) for turn in each["turns"]], ratios_of(each)
        )
        for each in written["agents"]
    ]
    return [train_table(results, written["torch_threads"])]


def act_tables(written: dict[str, Any]) -> list[Any]:
    from ctrl.experiments.bench.act import ActResult, Prediction, predictions_table, steps_table

    steps = [ActResult(*values(each, "model batch_size parameters seconds ratio")) for each in written["steps"]]
    predictions = [Prediction(*values(each, "core predict core_step")) for each in written["predict"]]
    threads = written["torch_threads"]
    return [steps_table(steps, threads), predictions_table(predictions, threads)]


def profile_tables(written: dict[str, Any]) -> list[Any]:
    from ctrl.experiments.bench.profile import ProfileResult, profile_table

    results = [ProfileResult(*values(each, "core num_envs turns")) for each in written["cores"]]
    cores = dict.fromkeys(result.core for result in results)
    return [profile_table([each for each in results if each.core == core], written["torch_threads"]) for core in cores]


def unroll_tables(written: dict[str, Any]) -> list[Any]:
    from ctrl.experiments.bench.unroll import UnrollResult, unroll_table

    names = "model width length batch_size parameters memory turns share_of_peak"
    results = [UnrollResult(*values(each, names), ratios_of(each)) for each in written["models"]]
    return [unroll_table(results, written["peak_flops_per_second"]["turns"], written["torch_threads"])]


def scale_tables(written: dict[str, Any]) -> list[Any]:
    from ctrl.experiments.bench.scale import (
        Case,
        Rollout,
        ScaleResult,
        Slice,
        cases_table,
        episode_table,
        rollouts_table,
    )

    slices = [Slice(**each) for each in written["episode"]["slices"]]
    steps, before, threads = (
        written["sizes"]["episode_steps"],
        written["episode"]["resident_bytes_before"],
        written["torch_threads"],
    )
    cases = [
        ScaleResult(each["varied"], Case(**each["case"]), *values(each, "state_bytes seconds ratio"))
        for each in written["cases"]
    ]
    rollouts = [Rollout(*values(each, "core window snapshots rest every_step")) for each in written["rollouts"]]
    return [episode_table(slices, steps, before, threads), cases_table(cases, threads), rollouts_table(rollouts)]


TABLES = {
    "train": train_tables,
    "act": act_tables,
    "profile": profile_tables,
    "unroll": unroll_tables,
    "scale": scale_tables,
}
"""Functions that rebuild the tables of a report, by the benchmark's name."""


def values(each: dict[str, Any], names: str) -> list[Any]:
    return [each[name] for name in names.split()]


def ratios_of(each: dict[str, Any]) -> dict[str, float]:
    return {name: ratio for name, ratio in each.items() if name.startswith("ratio_to_")}


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def printed_speeds(written: dict[str, Any]) -> str:
    """Print the table of a report of `ctrl bench impala`."""
    from ctrl.experiments.bench import impala as bench_impala
    from ctrl.experiments.cli import parse

    command = written["command"].replace("PYTHON", sys.executable)
    asked: Any = parse(shlex.split(command)[1:])
    turns = {each["agent"]: [bench_impala.Turn(**turn) for turn in each["turns"]] for each in written["agents"]}
    printed = io.StringIO()
    Console(width=100, file=printed).print(bench_impala.impala_table(turns, asked.what, written["torch_threads"]))
    return printed.getvalue()


def test_what_ppo_alone_takes_is_what_the_code_says() -> None:
    from ctrl.agents import MemoryImpala, MemoryPPO

    section = DETAILS_PAGE.split("### From `MemoryPPO` to `MemoryImpala`")[1].split("\n## ")[0]
    stated = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)))
    ppo, impala = (inspect.signature(kind).parameters for kind in (MemoryPPO, MemoryImpala))
    assert sorted(stated) == sorted(ppo.keys() - impala.keys())
    in_place = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| `.*? \| (.*) \|$", section, flags=re.MULTILINE)))
    assert in_place and impala.keys() >= {*in_place, "windows_per_update", "batch_size", "ent_coef"}
    defaults = dict(re.findall(r"`(\w+)` \(([\d.]+)\)", section))
    assert len(defaults) == 6
    for name, default in defaults.items():
        assert float(default) == {**ppo, **impala}[name].default, name


def test_table_of_rates_is_what_the_runs_brought() -> None:
    written = json.loads((ROOT / "docs" / "impala_rates.json").read_text(encoding="utf-8"))
    stated = re.findall(r"^\| rate \d.*$", SPEED_PAGE, flags=re.MULTILINE)
    assert stated == [rate_row(name, run) for name, each in written.items() for run in each["runs"]]
    assert all(len(each["runs"]) == 3 for each in written.values())
    means = [sum(run["evaluation"]["return_mean"] for run in each["runs"]) / 3 for each in written.values()]
    assert "{:.1f}, {:.1f}, {:.1f} and {:.1f} for the four rates".format(*means) in SPEED_PAGE


def rate_row(name: str, run: dict[str, Any]) -> str:
    """Write a run of docs/impala_rates.json as a line of the table."""
    at = run["steps_to_level"]
    cells = (
        name,
        str(run["seed"]),
        "–" if at is None else f"{at / 1e6:.2f}M",
        f"{run['curve'][-1][2]:.1f}",
        f"{run['evaluation']['return_mean']:.1f}",
        f"{run['wall_seconds'] / 60:.0f} min",
    )
    return f"| {' | '.join(cells)} |"


def impala_row(name: str, run: dict[str, Any]) -> str:
    """Write a run of docs/impala.json as a line of the table."""
    cells = (
        name,
        str(run["seed"]),
        f"{run['evaluation']['success']:.2f}",
        f"{run['steps_to_level'] // 1000}k, {run['seconds_to_level']} s",
        f"{run['steps'] // 1000}k, {run['wall_seconds']:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def recall_row(command: str, run: dict[str, Any]) -> str:
    """Write a run of docs/recall.json as a line of the table."""
    length = re.search(r"length=(\d+)", command)
    assert length
    at = reached(run)
    minutes, seconds = divmod(run["wall_seconds"], 60)
    cells = (
        f"{int(length[1]):,}",
        str(run["seed"]),
        "–" if at is None else count_text(run["checkpoints"][at][0]),
        f"{run['success'] if at is None else lowest_since(run, at):.2f}",
        f"{run['success']:.2f}",
        f"{run['longer']:.2f}",
        f"{count_text(run['steps'])}, {minutes} min {seconds:02d} s",
    )
    return f"| {' | '.join(cells)} |"


def test_table_of_rewriting_is_what_the_runs_brought() -> None:
    comparisons = json.loads((ROOT / "docs" / "rewrite.json").read_text(encoding="utf-8"))
    stated = re.findall(r"^\| `.*$", LEARNING_PAGE, flags=re.MULTILINE)
    assert stated == [
        rewriting_row(compared["command"], [run for run in compared["runs"] if run["core"] == core])
        for compared in comparisons
        for core in compared["cores"]
    ]
    assert not any(compared["failures"] for compared in comparisons)
    commands = [compared["command"].split(" --jobs")[0] for compared in comparisons]
    assert [command for command in commands if "--recency" not in command] == [  # it was an option then
        line.split(" --out")[0] for line in blocks("", LEARNING_PAGE)[-1].splitlines()
    ]


def rewriting_row(command: str, runs: list[dict[str, Any]]) -> str:
    """Write a core's runs of a comparison in docs/rewrite.json as a line of the table."""
    options = [
        option
        for option in ("--compressor conv", "--memory 8,8x4", "--recency 2", "--learning-rate 3e-3")
        if option in command
    ]
    scores = [run["evaluation"]["normalised"] for run in runs]
    cells = (
        ", ".join(f"`{name}`" for name in [runs[0]["core"], *options]).replace("`--recency 2`", "recency 2"),
        f"{sum(scores) / len(runs):.2f}",
        " ".join(f"{score:.2f}" for score in scores),
        f"{sum(run['evaluation']['return_mean'] for run in runs) / len(runs):.1f}",
        f"{runs[0]['parameters']:,}",
        f"{runs[0]['state_bytes']:,}",
        f"{sum(run['cpu_seconds'] for run in runs) / len(runs):.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def test_table_of_compressors_is_what_the_runs_brought() -> None:
    from ctrl.experiments.compare.ablation import read
    from ctrl.experiments.compare.ablation_results import AblationRun, aggregate, markdown_table

    data = read(ROOT / "docs" / "compressors.json")
    table = markdown_table(aggregate([AblationRun(**run) for run in data["runs"]]))
    assert table in COMPRESSORS_PAGE
    assert not data["failures"] and f"{data['steps']:,} steps" in COMPRESSORS_PAGE


def measured_speeds() -> dict[str, str]:
    """Return steps/s of each task with its default arguments, as `ctrl bench envs` measured and prints them."""
    tasks = json.loads((ROOT / "docs" / "bench_envs.json").read_text(encoding="utf-8"))["tasks"]
    medians = {each["task"]: each["steps_per_second"]["native"]["median"] for each in tasks if not each["arguments"]}
    return {name: count_text(round(speed)) for name, speed in medians.items()}


def test_install_commands_of_the_tasks_page_are_those_of_the_errors() -> None:
    for family in external.FAMILIES.values():
        assert f"`{' && '.join(family.install)}`" in TASKS_PAGE


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
