"""`ctrl explain RUN`: plays one held-out episode and draws what the agent looks at in it; the numbers lie beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents import as_vec_env
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.evaluation import Player
from ctrl.agents.policy.explain import attentive_core
from ctrl.agents.policy.policy_data import each_part
from ctrl.experiments.config import ExplainConfig
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.options import RunOptions, TaskOptions
from ctrl.experiments.report.attention import Episode, draw_episode
from ctrl.experiments.report.plots import save_figure
from ctrl.experiments.runs.build import load_model
from ctrl.experiments.runs.run_folder import write_json
from ctrl.experiments.runs.tasks import evaluation_seed, make_task
from ctrl.experiments.trained.evaluate import OwnRun, find_model, find_task

DIGITS = 5
"""Decimal places of the numbers in the file."""


def play(model: MemoryAlgorithm, env: VecEnv, *, most_steps: int, deterministic: bool) -> Episode:
    """Play one episode and explain it.

    :param env: one copy of the task
    :param most_steps: steps after which a longer episode is left
    """
    player = Player(model.policy, env, model.use_masking)
    observation, state, start = env.reset(), None, np.ones(1, dtype=bool)
    seen: list[Any] = []
    actions, masks = list[np.ndarray](), list[np.ndarray]()
    rewards: list[float] = []
    while len(rewards) < most_steps and not (rewards and start[0]):
        seen.append(each_part(lambda part: part[0].copy(), observation))
        action, state = player.predict(observation, state, start, deterministic)
        observation, reward, start, infos = env.step(action)
        if infos[0].get("reset_step", False):  # the env ignored the action: the episode had ended before
            seen.pop()
            break
        player.tell_rewards(reward)
        actions.append(action[0])
        rewards.append(float(reward[0]))
        if player.masks is not None:
            masks.append(player.masks[0])
    told = np.array(rewards)
    observations = each_part(lambda *parts: np.stack(parts), *seen)
    explanation = model.explain(
        observations,
        np.stack(actions),
        told if model.policy.initial_state(1).previous_reward.numel() else None,
        np.stack(masks) if masks else None,
    )
    return Episode(env.observation_space, env.action_space, observations, told, explanation)


def numbers(episode: Episode) -> dict[str, Any]:
    """Return an episode as plain data: what was done at each step, and the attention by layer and tier."""
    found = episode.explanation
    return {
        "observations": each_part(_plain, episode.observations),
        "actions": _plain(found.actions),
        "rewards": _plain(episode.rewards),
        "log_prob": _plain(found.log_prob),
        "probabilities": None if found.probabilities is None else _plain(found.probabilities),
        "values": _plain(found.values),
        "layers": [[_tier(tier) for tier in tiers] for tiers in found.layers],
    }


def _tier(tier: Any) -> dict[str, Any]:
    return {
        "span": tier.span,
        "share": _plain(tier.attention.sum(axis=2)),
        "mean_age": _plain(tier.mean_age()),
        "attention": _plain(tier.attention),
        "age": _plain(tier.age),
        "error": _plain(tier.error),
    }


def _plain(array: Any) -> Any:
    """Return an array as nested lists; NaN becomes None, since JSON has none."""
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return array.tolist()
    rounded = array.astype(np.float64).round(DIGITS)
    known = rounded.astype(object)
    known[~np.isfinite(rounded)] = None
    return known.tolist()


def explain_saved(config: ExplainConfig) -> tuple[Path, TaskOptions, Episode]:
    """Load a model and explain one held-out episode with it.

    :return: the model's file, the task and the episode
    :raises UserError: if there is no such model, its task is not known, or its core has no attention
    """
    path = find_model(config.path)
    own = OwnRun.of(path)
    run = RunOptions() if own is None else own.run
    task = replace(find_task(config, path, own), num_envs=1)
    seed = evaluation_seed((0 if own is None else own.seed) if config.seed is None else config.seed)
    env = make_task(task, seed=seed, training=False)
    try:
        model = load_model(path, env, config.device or run.device, trust=config.trust)
        _require_attention(model)
        env.seed(seed)  # again: loading seeds the env as in training
        played = as_vec_env(env, monitor_wrapper=False)  # images come with channels first, as in training
        episode = play(model, played, most_steps=config.steps, deterministic=not config.stochastic)
    finally:
        env.close()
    return path, task, episode


def _require_attention(model: MemoryAlgorithm) -> None:
    try:
        attentive_core(model.policy)
    except ValueError as error:
        core = model.policy_kwargs.get("core", "compressive")
        raise UserError(f"the core {core!r} of this agent can't be explained: {error}") from error


def picture_file(config: ExplainConfig, model: Path) -> Path:
    """Return the file of the picture: `--out`, or one in the model's folder, named after the model and the seed.

    :raises UserError: if `--out` is no PNG, or exists and may not be replaced
    """
    if config.out is None:
        own = "" if config.seed is None else f"-seed-{config.seed}"
        return model.with_name(f"{model.stem}-attention{own}.png")
    require(config.out.suffix == ".png", f"--out must name a .png file, got {config.out}")
    for path in (config.out, config.out.with_suffix(".json")):
        require(config.overwrite or not path.exists(), f"--out: {path} exists; name another, or add --overwrite")
    return config.out


def run_command(config: ExplainConfig, console: Console) -> int:
    """Run `ctrl explain` and return its exit code."""
    picture = picture_file(config, find_model(config.path))
    path, task, episode = explain_saved(config)
    figure = draw_episode(episode, f"{path} on {task.title}")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, picture)
        what = {"model": str(path), "env": task.env, "env_kwargs": task.env_arguments}
        write_json(picture.with_suffix(".json"), {**what, **numbers(episode)}, indent=None)
    except OSError as error:
        raise UserError(f"--out {picture} cannot be written: {error}") from error
    console.print(f"{len(episode.rewards)} steps, return {episode.rewards.sum():g}")
    console.print(f"picture: {picture}\nnumbers: {picture.with_suffix('.json')}", soft_wrap=True)
    return 0
