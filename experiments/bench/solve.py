"""`ctrl bench solve`: steps and seconds of training until a task is solved, beside sb3-contrib's RecurrentPPO.

A task is solved when `IN_A_ROW` evaluations in a row score at least `SOLVED`, on the scale from 0 for a random agent to
1 for a perfect one. Evaluations play held-out episodes, and their time does not count. Each turn has a seed of its own.
An agent that does not solve the task within its budget of steps is shown as unsolved.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from ctrl.experiments.bench.harness import Case, Column, Row, Table, Turn, measure, number_of, values
from ctrl.experiments.bench.options import Names, TorchOptions, require_names
from ctrl.experiments.bench.subjects.agents import recurrent_ppo_class
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import require_at_least
from ctrl.experiments.options import RECURRENT_CORES, PPOOptions, TaskOptions
from ctrl.experiments.report.summary import MISSING, Evaluation, count_text
from ctrl.experiments.runs.build import build_model, parameter_count
from ctrl.experiments.runs.tasks import (
    BEST,
    PERFECT,
    RANDOM,
    evaluation_seed,
    make_task,
    stated_scores,
    training_seed,
)
from ctrl.experiments.trained.evaluate import evaluate

SOLVED, IN_A_ROW = 0.95, 3
EPISODES = 50
"""Held-out episodes of an evaluation."""
TASKS: dict[str, TaskOptions] = {
    **{f"recall-{length}": TaskOptions(env_kwargs=(f"length={length}",)) for length in (24, 64, 250)},
    "copy-4-8": TaskOptions(env="ctrl/CopySequence-v0", env_kwargs=("length=4", "delay=8")),
    "endless-recall": TaskOptions(env="ctrl/EndlessRecall-v0", env_kwargs=("length=12",)),
    "repeat-first-easy": TaskOptions(env="popgym-RepeatFirstEasy-v0"),
    "repeat-previous-easy": TaskOptions(env="popgym-RepeatPreviousEasy-v0"),
}
CORES = ("compressive", "transformer_xl", "lstm", "gru")
TUNED, DEFAULT = "tuned_recurrent_ppo", "default_recurrent_ppo"
LABELS = {TUNED: "RecurrentPPO, tuned", DEFAULT: "RecurrentPPO, default"}
AGENTS = (*CORES, *LABELS)
"""Agents: MemoryPPO by the name of its core, and RecurrentPPO."""
RECURRENT_RATE = 3e-3
"""Learning rate of LSTM and GRU cores: on most tasks of the suite the best of three."""


@dataclass(frozen=True)
class Options(TorchOptions):
    """Steps and seconds of training until a task is solved, beside sb3-contrib's RecurrentPPO."""

    tasks: Names = tuple(TASKS)
    """Tasks to solve."""
    agents: Names = AGENTS
    """Agents: MemoryPPO by the name of its core, tuned_recurrent_ppo and default_recurrent_ppo."""
    num_envs: int = 64
    """Number of copies of a task that are stepped together."""
    steps: int = 400_000
    """Budget of training steps, all copies together."""
    interval: int = 10_000
    """Least number of training steps between two evaluations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "num_envs", "steps", "interval")
        require_names("task", self, tuple(TASKS))
        require_names("agent", self, AGENTS)


class UntilSolved(BaseCallback):
    """Callback that evaluates the agent now and then, and ends training when the task is solved.

    :param score: plays held-out episodes and returns the normalised score
    :param interval: least number of steps between two evaluations
    """

    def __init__(self, score: Callable[[Any], float], interval: int) -> None:
        super().__init__()
        self.score = score
        self.interval = interval
        self.scores: list[float] = []
        self.seconds = 0.0
        """Seconds of training so far, without evaluations."""
        self._next = interval

    @property
    def solved(self) -> bool:
        """True if the latest evaluations all reach `SOLVED`."""
        latest = self.scores[-IN_A_ROW:]
        return len(latest) == IN_A_ROW and min(latest) >= SOLVED

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_start(self) -> None:
        """Evaluate if it is time to: the update of the last rollout is done by now."""
        if self.num_timesteps < self._next:
            return
        self._next = self.num_timesteps + self.interval
        self._evaluate()

    def _on_step(self) -> bool:
        return not self.solved

    def _on_training_end(self) -> None:
        if not self.solved:
            self._evaluate()

    def _evaluate(self) -> None:
        self.seconds += time.perf_counter() - self._start
        self.scores.append(self.score(self.model))
        self._start = time.perf_counter()


def normalised(task: TaskOptions, evaluation: Evaluation) -> float:
    """Return an evaluation's return on the scale from 0 for a random agent to 1 for a perfect one."""
    known = stated_scores(task)
    random, best = known[RANDOM], known.get(PERFECT, known.get(BEST, 1.0))
    return (evaluation.return_mean - random) / (best - random)


def held_out_score(task: TaskOptions, seed: int, model: Any) -> float:
    """Return the agent's normalised score on held-out episodes; RecurrentPPO samples no actions either."""
    copies = replace(task, num_envs=min(EPISODES, task.num_envs))
    env = make_task(copies, seed=evaluation_seed(seed), training=False)
    with closing(env):
        return normalised(task, evaluate(model, env, copies, episodes=EPISODES, seed=evaluation_seed(seed)))


def build(name: str, env: VecEnv, seed: int) -> Any:
    """Build an agent by its name in `AGENTS`."""
    if name == DEFAULT:
        return recurrent_ppo_class()("MlpLstmPolicy", env, seed=seed, device="cpu")
    if name == TUNED:
        return _tuned_recurrent_ppo(env, seed)
    ppo = PPOOptions(learning_rate=RECURRENT_RATE) if name in RECURRENT_CORES else PPOOptions()
    config = TrainConfig(core=name, seed=seed, ppo=ppo)
    return build_model(replace(config, run=replace(config.run, device="cpu")), env)


def _tuned_recurrent_ppo(env: VecEnv, seed: int) -> Any:
    """Build RecurrentPPO with the settings of our LSTM, as far as it has them."""
    ours = PPOOptions()
    return recurrent_ppo_class()(
        "MlpLstmPolicy",
        env,
        learning_rate=LinearSchedule(RECURRENT_RATE, 0.0, 1.0),
        n_steps=ours.n_steps,
        batch_size=ours.n_steps * env.num_envs // 4,
        n_epochs=4,
        gae_lambda=0.9,
        ent_coef=ours.ent_coef,
        policy_kwargs={"lstm_hidden_size": 128, "shared_lstm": True, "enable_critic_lstm": False},
        seed=seed,
        device="cpu",
    )


def turn(name: str, task: TaskOptions, options: Options, seed: int) -> Turn:
    """Train a fresh agent until it solves the task or has used its budget."""
    with closing(make_task(task, seed=training_seed(seed), training=True)) as env:
        model = build(name, env, seed)
        model.set_logger(Logger(folder=None, output_formats=[]))
        until = UntilSolved(partial(held_out_score, task, seed), options.interval)
        model.learn(options.steps, callback=until)
        spent = {"seconds": until.seconds, "steps": model.num_timesteps}
        return {**spent, "solved": until.solved, "scores": until.scores, "parameters": parameter_count(model)}


def run(options: Options, console: Console) -> Row:
    """Let the agents solve each task in turns; turn i has seed i."""
    rows = []
    for name in options.tasks:
        task = replace(TASKS[name], num_envs=options.num_envs)
        console.print(f"{name}: {task.title}", soft_wrap=True, markup=False)
        cases = [Case(agent, {"task": name, "agent": agent}, seeded(agent, task, options)) for agent in options.agents]
        rows += measure(cases, options.repeats, console)
    sizes = {"num_envs": options.num_envs, "steps": options.steps, "interval": options.interval}
    return {"sizes": {**sizes, "episodes": EPISODES, "solved": SOLVED, "in_a_row": IN_A_ROW}, "runs": rows}


def seeded(agent: str, task: TaskOptions, options: Options) -> Callable[[], Turn]:
    """Return a function whose calls are turns with the seeds 0, 1, 2 …"""
    seeds = itertools.count()
    return lambda: turn(agent, task, options, next(seeds))


def tables(report: Row) -> list[Table]:
    """List the only table."""
    sizes = report["sizes"]
    return [
        Table(
            f"training until solved, {sizes['num_envs']} envs, at most {sizes['steps']:,} steps",
            report["runs"],
            [
                Column("task", lambda row: str(row["task"])),
                Column("agent", lambda row: LABELS.get(row["agent"], row["agent"])),
                Column("params", lambda row: f"{values(row, 'parameters')[0]:,}"),
                Column("solved", lambda row: f"{sum(values(row, 'solved'))} of {len(row['turns'])}"),
                Column("steps", lambda row: of_solved(row, "steps", count_text)),
                Column("seconds", lambda row: of_solved(row, "seconds", number_of)),
                Column("last score", lambda row: f"{median(turn['scores'][-1] for turn in row['turns']):.2f}"),
            ],
            [
                f"solved: {sizes['in_a_row']} evaluations of {sizes['episodes']} held-out episodes in a row score at "
                f"least {sizes['solved']} (0 random, 1 perfect),",
                f"one every {sizes['interval']:,} steps or more; steps and seconds: median of the solved runs, range",
                "seconds: of training, without evaluations; last score: median of all runs",
            ],
        )
    ]


def of_solved(row: Row, name: str, form: Callable[[Any], str]) -> str:
    """Return the median and range of a result over the runs that solved the task, or a dash."""
    found = [turn[name] for turn in row["turns"] if turn["solved"]]
    if not found:
        return MISSING
    middle, ends = form(round(median(found))), {form(round(end)) for end in (min(found), max(found))}
    return middle if ends == {middle} else f"{middle} ({form(round(min(found)))}–{form(round(max(found)))})"
