"""Evaluation of trained agents on held-out episodes, whose seeds training never uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, RenderableType
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.evaluation import evaluate_policy
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import Windows
from ctrl.agents.rollout import take_step
from ctrl.agents.vec_envs.action_masks import mask_size
from ctrl.agents.vec_envs.checked_env import CheckedEnv
from ctrl.agents.vec_envs.infos import group_of, success_of
from ctrl.agents.vec_envs.vector_env import as_vec_env
from ctrl.experiments.config import EvaluateConfig, ExplainConfig, TrainConfig
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.options import COMPRESSIVE_CORES, RunOptions, TaskOptions, merge_pairs
from ctrl.experiments.report.summary import Evaluation, GroupEvaluation, titled
from ctrl.experiments.runs.build import load_model
from ctrl.experiments.runs.checkpoints import whole_models
from ctrl.experiments.runs.run_folder import MARKER, read_table
from ctrl.experiments.runs.tasks import (
    evaluation_seed,
    known_rules,
    known_scores,
    make_task,
    require_named,
    stated_scores,
)

MOST_ENVS = 50
"""Largest number of copies of the task in an evaluation; another number would play other episodes."""
WINDOW_ENVS = 16
"""Number of copies of the task in which reconstruction errors are measured."""
WINDOWS = 4
"""Number of windows in which reconstruction errors are measured; the first begins with empty memories."""
_ERROR = "reconstruction_error/"


def evaluate(
    model: Any, env: VecEnv, task: TaskOptions, *, episodes: int, seed: int, deterministic: bool = True
) -> Evaluation:
    """Play episodes with the agent and return the results.

    :param model: one of our agents, or another with stable-baselines3's `predict`
    :param env: the task, wrapped so that it reports whole episodes
    :param task: options that `env` was built from
    :param episodes: number of episodes, divided evenly among the copies so that short ones are not preferred
    :param seed: task seed of the first copy
    :param deterministic: take the likeliest action instead of sampling
    """
    scores = known_scores(task)
    successes: list[float] = []
    grouped: dict[int, list[float]] = {}

    def collect(local: dict[str, Any], _: dict[str, Any]) -> None:
        info = local["info"]
        if local["done"] and (success := success_of(info)) is not None:
            successes.append(success)
            if (group := group_of(info)) is not None:
                grouped.setdefault(group, []).append(success)

    env.seed(seed)
    returns, lengths = evaluate_policy(
        model, env, episodes, deterministic=deterministic, callback=collect, return_episode_rewards=True, warn=False
    )
    return Evaluation(
        episodes=len(returns),  # type: ignore[arg-type]
        return_mean=float(np.mean(returns)),
        return_std=float(np.std(returns)),
        length_mean=float(np.mean(lengths)),
        success=float(np.mean(successes)) if successes else None,
        seed=seed,
        deterministic=deterministic,
        normalised=None if scores is None else scores.normalised(float(np.mean(returns))),
        groups=_by_name(task, grouped),
    )


def _by_name(task: TaskOptions, grouped: dict[int, list[float]]) -> dict[str, GroupEvaluation]:
    """Return the number of episodes and the success rate of each group, by name; empty for tasks of other packages."""
    rules = known_rules(task)
    names = () if rules is None else rules.group_names
    return {
        name: GroupEvaluation(len(grouped[index]), float(np.mean(grouped[index])))
        for index, name in enumerate(names)
        if index in grouped
    }


def evaluate_run(model: MemoryAlgorithm, config: TrainConfig, *, episodes: int | None = None) -> Evaluation:
    """Evaluate the agent of a training run on its own task.

    :param model: the agent
    :param config: options of the run
    :param episodes: number of episodes; None for those that `config` asks for after training
    """
    episodes = config.run.eval_episodes if episodes is None else episodes
    task = replace(config.task, num_envs=min(MOST_ENVS, episodes))
    seed = evaluation_seed(config.seed)
    env = make_task(task, seed=seed, training=False)
    try:
        return evaluate(model, env, task, episodes=episodes, seed=seed)
    finally:
        env.close()


def reconstruction_errors(model: MemoryAlgorithm, config: TrainConfig) -> dict[str, float]:
    """Measure how much the agent of a training run loses by compressing, on seeds that training never uses.

    The windows are as long as in training. The copies of the task are not in step, so that query steps come from all
    parts of an episode. Agents that learned from different losses can be compared by this measure.

    :return: mean of `ctrl.compressive.reconstruction.reconstruction_error` by layer and tier, such as `layer0/tier1`:
        0 if nothing is lost, 1 if nothing is kept; empty for a core that does not compress, or if nothing was
        compressed
    """
    if config.core not in COMPRESSIVE_CORES:
        return {}
    found: dict[str, list[float]] = {}
    task = make_task(replace(config.task, num_envs=WINDOW_ENVS), seed=evaluation_seed(config.seed), training=True)
    env = as_vec_env(task, monitor_wrapper=False)  # images come with channels first, as in training
    try:
        length = config.ppo.window or config.ppo.n_steps
        masked = mask_size(env, env.action_space, model.use_masking)
        for windows in held_out_windows(model.policy, env, length=length, mask_size=masked):
            with torch.no_grad():
                diagnostics = model.policy.evaluate_windows(windows, diagnose=True).unrolled.diagnostics
            for name, value in diagnostics.items():
                if name.startswith(_ERROR):
                    found.setdefault(name.removeprefix(_ERROR), []).append(float(value))
    finally:
        env.close()
    return {place: float(np.mean(errors)) for place, errors in found.items()}


def held_out_windows(policy: MemoryPolicy, env: VecEnv, *, length: int, mask_size: int = 0) -> Iterator[Windows]:
    """Play with the likeliest actions and yield `WINDOWS` windows of `length` steps, one after another.

    :param mask_size: entries of an action mask; 0 where masks are not used
    """
    policy.set_training_mode(False)
    spaces = env.observation_space, env.action_space
    buffer = WindowBuffer(length, *spaces, policy.device, n_envs=env.num_envs, window=length, mask_size=mask_size)
    actor = policy.actor(policy.initial_state(env.num_envs))
    checked = CheckedEnv(env)
    observations: Any = checked.reset(0)
    starts = np.ones(env.num_envs, dtype=bool)
    for _ in range(WINDOWS):
        buffer.reset()
        for _ in range(length):
            reset = torch.as_tensor(starts, device=policy.device)
            step = take_step(actor, checked, buffer, observations, reset, 0, deterministic=True)
            actor.tell_rewards(step.result.rewards)
            buffer.add_step(step.obs, step.acted, step.result.rewards, starts)
            observations, starts = step.result.observations, step.result.ends
        yield buffer.windows(policy)


@dataclass(frozen=True)
class OwnRun:
    """Options that an evaluation takes over from the run that a model belongs to."""

    task: TaskOptions
    seed: int
    run: RunOptions

    @classmethod
    def of(cls, model: Path) -> OwnRun | None:
        """Read the config of the run that `model` belongs to; None if it lies in no run's folder."""
        for folder in (model.parent, model.parent.parent):  # a checkpoint lies one folder deeper
            if not (folder / MARKER).is_file() or "options" not in read_table(folder / MARKER):
                continue
            config = TrainConfig.read(folder / MARKER)
            return cls(config.task, config.seed, config.run)
        return None


def evaluate_saved(config: EvaluateConfig) -> tuple[Path, TaskOptions, Evaluation]:
    """Load a model and evaluate it with the options of `ctrl evaluate`; those left open are the run's own.

    :return: the model's file, the task and the results
    :raises UserError: if there is no such model, or its task is not known
    """
    path = find_model(config.path)
    own = OwnRun.of(path)
    run = RunOptions() if own is None else own.run
    episodes = config.episodes or run.eval_episodes or RunOptions.eval_episodes
    task = replace(find_task(config, path, own), num_envs=min(config.num_envs or MOST_ENVS, episodes))
    seed = evaluation_seed((0 if own is None else own.seed) if config.seed is None else config.seed)
    if run.threads is not None:
        torch.set_num_threads(run.threads)  # another order of summing could change the likeliest action
    env = make_task(task, seed=seed, training=False)
    try:
        model = load_model(path, env, config.device or run.device, trust=config.trust)
        brought = evaluate(model, env, task, episodes=episodes, seed=seed, deterministic=not config.stochastic)
    finally:
        env.close()
    return path, task, brought


def find_model(path: Path) -> Path:
    """Find the model that `path` names: a zip file, or the newest whole model in a run's folder.

    That is the run's `model.zip`, or a checkpoint where the run did not end or the file is damaged. Damaged files are
    named on stderr.

    :raises UserError: if there is none; the message says what is there instead
    """
    if path.is_dir():
        newest = next(whole_models(path, lambda text: print(text, file=sys.stderr)), None)
        if newest is not None:
            return newest.path
        runs = sorted(str(run) for run in path.glob("runs/*/*") if (run / MARKER).is_file())
        require(not runs, f"{path} holds several runs; name one of them: {', '.join(runs)}")
        raise UserError(f"{path} holds no whole model or checkpoint; name the folder of a run, or a model's zip")
    if path.is_file():
        return path
    zipped = path.with_name(f"{path.name}.zip")
    require(zipped.is_file(), f"{path} does not exist")
    return zipped


def find_task(config: EvaluateConfig | ExplainConfig, model: Path, own: OwnRun | None) -> TaskOptions:
    """Return the task to evaluate on: the one in `config`, or the one of the run that `model` belongs to.

    Arguments in `config` replace those of the run's task with the same names.

    :raises UserError: if there is no task in `config` and no run, or the run's task imports a module that nobody named
    """
    if config.env is not None:
        return TaskOptions(env=config.env, env_kwargs=config.env_kwargs)
    if own is None:
        raise UserError(f"{model} lies in no run's folder, so its task is unknown; name it with --env")
    require_named(own.task, "add --trust, or name the task with --env", trust=config.trust)
    return replace(own.task, env_kwargs=merge_pairs(own.task.env_kwargs, config.env_kwargs))


def evaluation_table(path: Path, task: TaskOptions, brought: Evaluation) -> RenderableType:
    """Build the table that `ctrl evaluate` prints."""
    table = Table(show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", justify="right")
    table.add_row("episodes", f"{brought.episodes}")
    table.add_row("return", f"{brought.return_mean:.3f} ± {brought.return_std:.3f}")
    for name, score in stated_scores(task).items():
        table.add_row(f"  {name}", f"{score:.3f}")
    if brought.normalised is not None:
        table.add_row("normalised (random 0, perfect 1)", f"{brought.normalised:.3f}")
    if brought.success is not None:
        table.add_row("success", f"{brought.success:.3f}")
    for name, group in brought.groups.items():
        table.add_row(f"  {name}", f"{group.success:.3f} of {group.episodes}")
    table.add_row("length", f"{brought.length_mean:.1f} steps")
    table.add_row("actions", "the likeliest" if brought.deterministic else "sampled")
    return titled(f"{path} on {task.title}", table)


def run_command(config: EvaluateConfig, console: Console) -> int:
    """Run `ctrl evaluate` and return its exit code."""
    path, task, brought = evaluate_saved(config)
    if config.json:
        what = {"model": str(path), "env": task.env, "env_kwargs": task.env_arguments}
        data = {**what, "scores": stated_scores(task), **asdict(brought)}
        console.print_json(data=data)
    else:
        console.print(evaluation_table(path, task, brought))
    return 0
