"""Options of the command line, as frozen dataclasses that validate themselves.

The text below a field is its `--help`. `tyro` builds the command line from these classes. Each run keeps its options
in `config.json`, so it can be read, compared and repeated without the shell's history.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ctrl.experiments.errors import require, require_at_least, require_distinct
from ctrl.experiments.options import (
    ImpalaOptions,
    KeyValues,
    MemoryOptions,
    Out,
    PPOOptions,
    RunOptions,
    Switch,
    TaskOptions,
    open_option,
    parse_pairs,
    require_core,
    require_cores,
)
from ctrl.experiments.plain_data import build, convert, reading, shown

OF_ONE_COMMAND = ("resume", "trust")
"""Options that belong to one command and not to the run."""


@dataclass(frozen=True)
class TrainConfig:
    """Train one agent; save the model, checkpoints, learning curves and a summary with the costs."""

    core: Annotated[str, tyro.conf.arg(metavar="NAME")] = "compressive"
    """Memory of the agent: compressive, transformer_xl, gtrxl, lstm, gru, mingru or feedforward (none)."""
    seed: int = 0
    """Seed of weights, actions and task."""
    algorithm: Annotated[str, tyro.conf.arg(metavar="ppo|impala")] = "ppo"
    """Learning algorithm."""
    out: Out = None
    """Folder for the results."""
    overwrite: Switch = False
    """Replace the results that --out holds already."""
    resume: Annotated[Path | None, open_option("start a new run", "RUN")] = None
    """Folder of a run to go on with as if it had never stopped. Of its options, only --steps can be raised."""
    trust: Switch = False
    """With --resume: unpickle what the run's files have pickled, such as the states of envs, which can run any code."""
    task: TaskOptions = field(default_factory=TaskOptions)
    run: RunOptions = field(default_factory=RunOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    ppo: PPOOptions = field(default_factory=PPOOptions)
    impala: ImpalaOptions = field(default_factory=ImpalaOptions)

    def __post_init__(self) -> None:
        require_cores((self.core,), self.memory, self.ppo)
        self.impala.check(self.algorithm, self.ppo)
        require_at_least(0, self, "seed")
        heads, width = self.heads, self.memory.width
        require(width is None or width % heads == 0, f"--heads must divide --width, got {heads} and {width}")

    @classmethod
    def read(cls, marker: Path) -> TrainConfig:
        """Read the options of a run from its `config.json`.

        :raises UserError: if the file is missing or holds something else
        """
        from ctrl.experiments.runs.run_folder import read_table

        with reading(marker, "no options of a run"):
            return cls.from_json(read_table(marker)["options"])

    @property
    def heads(self) -> int:
        """Number of attention heads of a layer; 1 if the core has none."""
        from ctrl.experiments.runs.core_options import parameters

        heads = parameters(self.core).get("heads")
        return 1 if heads is None else self.memory.heads or int(heads.default)

    def to_json(self) -> dict[str, Any]:
        """Return the config as plain data, without what only says where to go on."""
        data = asdict(self) | {"out": None if self.out is None else str(self.out)}
        return {name: value for name, value in data.items() if name not in OF_ONE_COMMAND}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        """Rebuild a config from the data of `to_json`.

        :raises UserError: if it is something else
        """
        from ctrl.experiments.runs.core_options import of_core

        require(isinstance(data, dict), f"options must be a table, got {shown(data)}")
        missing = [name for name in ("core", "seed", "task", "run", "memory", "ppo") if name not in data]
        require(not missing, f"options are not sound: there is no {', '.join(missing)}")
        core: str = convert(str, data["core"], "core")
        require_core(core)
        # Older runs have all cores' options, and name no algorithm: all were PPO.
        memory = of_core(MemoryOptions.from_json(data["memory"]), core)
        ppo = of_core(build(PPOOptions, data["ppo"], "ppo"), core)
        return build(cls, {**data, "memory": memory, "ppo": ppo}, "options")


@dataclass(frozen=True)
class CompareConfig:
    """Train several cores on one task with several seeds; show a table, learning curves and TensorBoard logs."""

    cores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ("compressive", "lstm")
    """Memories to compare: compressive, transformer_xl, gtrxl, lstm, gru, mingru, feedforward."""
    seeds: int = 3
    """Number of runs of each core, with seeds 0, 1, 2 …"""
    jobs: Annotated[int | None, open_option("one for each CPU core, fewer with actors")] = None
    """Number of runs at the same time, each in a process of its own."""
    learning_rates: KeyValues = ()
    """Learning rates of single cores, in place of --learning-rate: `compressive=1e-3 lstm=3e-3`."""
    match_parameters: Switch = False
    """Choose the widths of the other cores so that their parameter counts are within 10 % of the first core's."""
    algorithm: Annotated[str, tyro.conf.arg(metavar="ppo|impala")] = "ppo"
    """Learning algorithm."""
    out: Out = None
    """Folder for the results."""
    overwrite: Switch = False
    """Replace the results that --out holds already."""
    resume: Annotated[Path | None, open_option("start anew", "DIR")] = None
    """Folder of a comparison to go on with. Of its options, --steps can be raised, and --jobs can be changed."""
    table: Annotated[Path | None, open_option("train", "DIR")] = None
    """Folder of a comparison whose table and picture are made again from what is there, without training."""
    trust: Switch = False
    """With --resume: unpickle what the runs' files have pickled, such as the states of envs, which can run any code."""
    task: TaskOptions = field(default_factory=TaskOptions)
    run: RunOptions = field(default_factory=RunOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    ppo: PPOOptions = field(default_factory=PPOOptions)
    impala: ImpalaOptions = field(default_factory=ImpalaOptions)

    def __post_init__(self) -> None:
        self.impala.check(self.algorithm, self.ppo)
        require(bool(self.cores), "--cores must name at least one core")
        require_distinct(self, "cores")
        require_at_least(1, self, "seeds", "jobs")
        for core, rate in self.rates.items():
            require(core in self.cores, f"--learning-rates names {core!r}, which is not among --cores")
            positive = isinstance(rate, int | float) and rate > 0
            require(positive, f"--learning-rates: {core} must be above 0, got {rate!r}")
        require_cores(self.cores, self.memory, self.ppo)

    def to_json(self) -> dict[str, Any]:
        """Return the config as plain data, without what only says where to go on."""
        data = asdict(self) | {"out": None if self.out is None else str(self.out)}
        return {name: value for name, value in data.items() if name not in (*OF_ONE_COMMAND, "table")}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CompareConfig:
        """Rebuild a config from the data of `to_json`."""
        parts = {
            "cores": tuple(data["cores"]),
            "learning_rates": tuple(data["learning_rates"]),
            "out": None if data["out"] is None else Path(data["out"]),
            "task": TaskOptions.from_json(data["task"]),
            "run": RunOptions(**data["run"]),
            "memory": MemoryOptions.from_json(data["memory"]),
            "ppo": PPOOptions(**data["ppo"]),
            "impala": ImpalaOptions(**data["impala"]),
        }
        return cls(**{**data, **parts})

    @property
    def rates(self) -> dict[str, Any]:
        """Learning rates of the cores that do not use --learning-rate."""
        return parse_pairs(self.learning_rates, "--learning-rates")


@dataclass(frozen=True)
class EvaluateConfig:
    """Play episodes with a trained agent and report return, success and length.

    Without options it repeats the run's own evaluation, with the same results as in its summary.json.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or a model.zip."""
    env: Annotated[str | None, open_option("the run's", "ID")] = None
    """Gymnasium id of the task."""
    env_kwargs: Annotated[tuple[str, ...], open_option("the run's, unless --env is given", "[KEY=VALUE ...]")] = ()
    """Arguments of the task. Without --env, arguments of the run that are not named here stay as they are."""
    episodes: Annotated[int | None, open_option("those of the run's own evaluation, else 100")] = None
    """Number of episodes to play."""
    seed: Annotated[int | None, open_option("the run's, else 0")] = None
    """Seed of the task; seeds of evaluations never overlap with those of training."""
    num_envs: Annotated[int | None, open_option("those of the run's own evaluation, 50 or one an episode")] = None
    """Number of copies of the task that are stepped together; another number plays other episodes."""
    stochastic: Switch = False
    """Sample the actions, as in training, instead of taking the likeliest."""
    device: Annotated[str | None, open_option("the run's, else auto", "STR")] = None
    """Device of the agent: cpu, cuda or auto."""
    trust: Switch = False
    """Run code that the files ask for: unpickle what the model has pickled, import the module of the run's task."""
    json: Switch = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "episodes", "num_envs")
        require_at_least(0, self, "seed")
        _ = parse_pairs(self.env_kwargs, "--env-kwargs")


@dataclass(frozen=True)
class ExplainConfig:
    """Play one held-out episode with a trained agent and draw what it looks at; write the numbers as JSON beside.

    It needs a core with attention: compressive, transformer_xl or gtrxl.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or a model.zip."""
    out: Annotated[Path | None, open_option("beside the model", "FILE")] = None
    """PNG file for the picture; the numbers get the same name with .json."""
    overwrite: Switch = False
    """Replace the file that --out names."""
    env: Annotated[str | None, open_option("the run's", "ID")] = None
    """Gymnasium id of the task."""
    env_kwargs: Annotated[tuple[str, ...], open_option("the run's, unless --env is given", "[KEY=VALUE ...]")] = ()
    """Arguments of the task. Without --env, arguments of the run that are not named here stay as they are."""
    seed: Annotated[int | None, open_option("the run's, else 0")] = None
    """Seed of the episode; seeds of evaluations never overlap with those of training."""
    steps: int = 500
    """Largest number of steps; a longer episode is left there."""
    stochastic: Switch = False
    """Sample the actions, as in training, instead of taking the likeliest."""
    device: Annotated[str | None, open_option("the run's, else auto", "STR")] = None
    """Device of the agent: cpu, cuda or auto."""
    trust: Switch = False
    """Let the files of the run run code: pickles in its model, and the import of its task's module."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "steps")
        require_at_least(0, self, "seed")
        _ = parse_pairs(self.env_kwargs, "--env-kwargs")


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained agent as a graph for other hosts, and check it step by step against the agent.

    The graph is the whole policy, with the state as input and output. A JSON file beside it describes them.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or a model.zip."""
    out: Annotated[Path | None, open_option("beside the model", "FILE")] = None
    """File for the graph; the description gets the same name with .json."""
    overwrite: Switch = False
    """Replace the files that are there already."""
    format: Annotated[str, tyro.conf.arg(metavar="onnx|torch")] = "onnx"
    """Format of the graph: ONNX, or that of `torch.export`."""
    steps: int = 1000
    """Number of steps of the check, in 3 copies with resets at different times."""
    trust: Switch = False
    """Run code that the file asks for: unpickle what the model has pickled."""

    def __post_init__(self) -> None:
        require(self.format in ("onnx", "torch"), f"--format must be onnx or torch, got {self.format!r}")
        require_at_least(1, self, "steps")
        described = self.out is not None and self.out.suffix == ".json"
        require(not described, f"--out must not end in .json, as the description beside it does, got {self.out}")


@dataclass(frozen=True)
class EnvsConfig:
    """List the memory tasks, ours and those of installed packages; check any task; draw ours."""

    family: Annotated[str | None, open_option("all", "NAME")] = None
    """Family to list, instead of all: ctrl, popgym, minigrid, memory-gym or bsuite."""
    check: Annotated[str | None, open_option("list tasks", "ID")] = None
    """Task to check against the laws that a memory agent relies on; `my_package:My-v0` imports my_package first."""
    env_kwargs: KeyValues = ()
    """Arguments of the task to check, such as `length=64 num_cues=4`."""
    steps: Annotated[int | None, open_option("100000")] = None
    """Number of steps of the check for memory leaks."""
    sheet: Annotated[Path | None, open_option("list tasks", "FILE")] = None
    """PNG file for pictures of episodes of our tasks, as a person sees them."""
    overwrite: Switch = False
    """Replace the file that --sheet names."""
    json: Switch = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        require(self.check is None or self.sheet is None, "--check and --sheet are two commands; give one of them")
        for name in ("check", "sheet"):
            other = getattr(self, name) is not None
            require(self.family is None or not other, f"--family lists tasks; it does not go with --{name}")
        require(self.sheet is None or not self.json, "--sheet draws a picture; it does not go with --json")
        require(self.check is not None or not self.env_kwargs, "--env-kwargs needs --check ID")
        require(self.check is not None or self.steps is None, "--steps needs --check ID")
        require_at_least(1, self, "steps")
        _ = self.env_arguments

    @property
    def checked_steps(self) -> int:
        """Number of steps of the check for memory leaks."""
        return 100_000 if self.steps is None else self.steps

    @property
    def env_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the task to check."""
        return parse_pairs(self.env_kwargs, "--env-kwargs")


@dataclass(frozen=True)
class DemoConfig:
    """Compare compressive memory with an LSTM in under five minutes, on a task that outlasts the raw memory."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results/demo")
    """Folder for the results. Results of an earlier run in it are replaced; other files are not."""
    jobs: int = 2
    """Number of runs at the same time."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "jobs")
