"""Picture of one episode: what the agent saw and did, and below it what it looked at, by layer and tier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from ctrl.agents import AttendedTier, Explanation
from ctrl.agents.vec_envs.action_masks import choices

WIDTH = 10.0  # inches
SCALE_WIDTH = 0.018
"""Width of a colour scale, as a share of the panels'."""
TITLE = 0.75  # inches
HEIGHTS = {"observation": 1.2, "image": 1.0, "action": 1.2, "reward": 1.0}  # inches
HEIGHTS |= {"tier": 1.4, "steps": 1.9, "share": 0.8, "age": 1.1}
IMAGES = 12
"""Largest number of images that are drawn of an observation."""
FEATURES = 64
"""Largest number of features that are drawn of an observation."""
TIER_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HEAD_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
GREY = "#777777"


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, as it was played and explained."""

    observation_space: spaces.Space[Any]
    """The env's."""
    action_space: spaces.Space[Any]
    observations: Any
    """[T, ...], or a dict of such."""
    rewards: NDArray[np.float64]
    """[T] rewards of the actions."""
    explanation: Explanation


class _Panels:
    """Panels below each other with a common axis of steps, each with room for a colour scale beside it."""

    def __init__(self, heights: list[float]) -> None:
        self.figure = Figure(figsize=(WIDTH, sum(heights) + TITLE), dpi=130, layout="constrained")
        grid = self.figure.add_gridspec(len(heights), 2, width_ratios=[1, SCALE_WIDTH], height_ratios=heights)
        self._places = iter([(grid[row, 0], grid[row, 1]) for row in range(len(heights))])
        self.first: Axes | None = None

    def next(self) -> tuple[Axes, Axes]:
        """Return the next panel, and the place of its colour scale, which is empty so far."""
        panel, scale = next(self._places)
        axes = self.figure.add_subplot(panel, sharex=self.first)
        self.first = axes if self.first is None else self.first
        beside = self.figure.add_subplot(scale)
        beside.set_axis_off()
        axes.spines[["top", "right"]].set_visible(False)
        return axes, beside

    def heat(self, axes: Axes, beside: Axes, values: NDArray[Any], label: str, **options: Any) -> None:
        """Draw [rows, T] as colours, the first row at the bottom, with a scale."""
        image = axes.imshow(values, aspect="auto", origin="lower", interpolation="nearest", **options)
        beside.set_axis_on()
        scale = self.figure.colorbar(image, cax=beside)
        scale.set_label(label, fontsize=7)
        scale.ax.tick_params(labelsize=7)
        scale.ax.yaxis.set_major_locator(MaxNLocator(3))


def draw_episode(episode: Episode, title: str) -> Figure:
    """Draw observations, actions, values and rewards of an episode, and the attention of each of its steps."""
    seen = list(_observation_parts(episode.observation_space, episode.observations))
    layers = [[tier for tier in tiers if (tier.age >= 0).any()] for tiers in episode.explanation.layers]
    kinds = [_kind(space) for _, space, _ in seen] + ["action", "reward"]
    for tiers in layers:
        kinds += ["tier"] * len(tiers) + ["steps"] + ["share"] * (len(tiers) > 1) + ["age"]
    panels = _Panels([HEIGHTS[kind] for kind in kinds])
    for name, space, values in seen:
        _draw_observation(panels, name, space, values)
    _draw_actions(panels, episode)
    _draw_values(panels, episode)
    for layer, tiers in enumerate(layers):
        name = f"layer {layer}, " if len(layers) > 1 else ""
        _draw_layer(panels, name, tiers)
    _finish(panels, title, len(episode.rewards))
    return panels.figure


def _finish(panels: _Panels, title: str, steps: int) -> None:
    panels.figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    shared = [axes for axes in panels.figure.axes if axes.get_shared_x_axes().joined(axes, panels.first)]
    for axes in shared:
        axes.tick_params(labelsize=7)
        axes.tick_params(labelbottom=axes is shared[-1])
    shared[-1].set_xlim(-0.5, steps - 0.5)
    shared[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    shared[-1].set_xlabel("step of the episode", fontsize=8)


def _name(axes: Axes, title: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=8.5, pad=3)
    axes.set_ylabel(y_label, fontsize=7.5)


# What it saw


def _observation_parts(space: spaces.Space[Any], observations: Any) -> Iterator[tuple[str, spaces.Space[Any], Any]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield f"observation {key!r}", part, observations[key]
    else:
        yield "observation", space, observations


def _kind(space: spaces.Space[Any]) -> str:
    return "image" if _is_image(space) else "observation"


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and min(space.shape[0], space.shape[2]) in (1, 3, 4)


def _draw_observation(panels: _Panels, name: str, space: spaces.Space[Any], values: Any) -> None:
    axes, beside = panels.next()
    array = np.asarray(values)
    if _is_image(space):
        _draw_images(axes, name, array)
        return
    rows = _one_hot(space, array) if isinstance(space, spaces.Discrete) else array.reshape(len(array), -1).T
    hidden = len(rows) - FEATURES
    rest = f" (the first {FEATURES} of {len(rows)} features)" if hidden > 0 else ""
    panels.heat(axes, beside, rows[:FEATURES].astype(np.float64), "value", cmap="Greys")
    _name(axes, f"{name}{rest}", "feature")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _one_hot(space: spaces.Discrete, array: NDArray[Any]) -> NDArray[Any]:
    rows: NDArray[Any] = np.arange(space.n)[:, None] == (array.reshape(-1) - space.start)[None]
    return rows


def _draw_images(axes: Axes, name: str, images: NDArray[Any]) -> None:
    """Draw up to `IMAGES` images at the steps that they belong to."""
    apart = -(-len(images) // IMAGES)
    steps, half = np.arange(0, len(images), apart), 0.46 * apart  # they do not touch
    for step in steps:
        image = images[step] if images.shape[-1] in (1, 3, 4) else np.moveaxis(images[step], 0, -1)
        shown = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
        low, high = (0, 255) if image.dtype == np.uint8 else (float(images.min()), float(images.max()))
        axes.imshow(shown, extent=(step - half, step + half, 0, 1), aspect="auto", cmap="gray", vmin=low, vmax=high)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    _name(axes, f"{name} ({len(steps)} of {len(images)} steps)", "")


# What it did


def _draw_actions(panels: _Panels, episode: Episode) -> None:
    axes, beside = panels.next()
    explanation, steps = episode.explanation, np.arange(len(episode.rewards))
    parts = explanation.actions.reshape(len(steps), -1)
    if explanation.probabilities is None:
        for part in range(parts.shape[1]):
            axes.plot(steps, parts[:, part], color=HEAD_COLOURS[part % len(HEAD_COLOURS)], **_line(len(steps)))
        _name(axes, "action", "value")
        return
    panels.heat(axes, beside, explanation.probabilities.T, "probability", cmap="Blues", vmin=0, vmax=1)
    taken = parts - (episode.action_space.start if isinstance(episode.action_space, spaces.Discrete) else 0)
    starts = np.cumsum([0, *choices(episode.action_space)[:-1]])
    for part, first in enumerate(starts):
        axes.plot(steps, taken[:, part] + first, "o", color="#D55E00", markersize=_dot(len(steps)), zorder=3)
        if first:
            axes.axhline(first - 0.5, color=GREY, linewidth=0.7)
    _name(axes, "probabilities of the actions, and the action taken (dots)", "action")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _line(steps: int) -> dict[str, Any]:
    """Return the options of a line; that of a single step would not be seen without a mark."""
    return {"linewidth": 1.1, "marker": "o" if steps == 1 else None, "markersize": 3}


def _dot(steps: int) -> float:
    return float(np.clip(240 / steps, 1.2, 4.5))


def _draw_values(panels: _Panels, episode: Episode) -> None:
    axes, _ = panels.next()
    steps = np.arange(len(episode.rewards))
    axes.bar(steps, episode.rewards, width=0.8, color="#009E73", label="reward of the action")
    axes.plot(steps, episode.explanation.values, color="black", label="value", **_line(len(steps)))
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
    _name(axes, f"value and reward (return {episode.rewards.sum():g})", "")


# What it looked at


def _draw_layer(panels: _Panels, name: str, tiers: list[AttendedTier]) -> None:
    for at, tier in enumerate(tiers):
        axes, beside = panels.next()
        steps = f"{tier.span} steps a slot" if tier.span > 1 else "single steps"
        ages = _unseen_white(tier.by_age().T * tier.span)  # in the weight of the slot, whatever its span
        seen = np.flatnonzero(~np.isnan(ages).all(axis=1))
        panels.heat(axes, beside, ages, "attention", cmap="magma_r", norm=PowerNorm(0.5, vmin=0))
        axes.set_ylim(seen[0] - 0.5, seen[-1] + 0.5)
        _name(axes, f"{name}tier {at} ({steps}): attention by age, mean over heads", "steps ago")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes, beside = panels.next()
    looked = sum(tier.by_step().T for tier in tiers)
    panels.heat(axes, beside, _unseen_white(looked), "attention", cmap="magma_r", norm=PowerNorm(0.5, vmin=0))
    together = ", all tiers together" if len(tiers) > 1 else ""
    _name(axes, f"{name}attention to each step of the episode{together}", "step looked at")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(tiers) > 1:
        _draw_shares(panels, name, tiers)
    _draw_ages(panels, name, tiers)


def _unseen_white(attention: Any) -> NDArray[Any]:
    """Return attention with NaN, which is drawn white, for steps of which no slot is left or there yet."""
    return np.where(np.asarray(attention) > 0, attention, np.nan)


def _draw_shares(panels: _Panels, name: str, tiers: list[AttendedTier]) -> None:
    axes, beside = panels.next()
    shares = [tier.attention.sum(axis=2).mean(axis=1) for tier in tiers]
    colours = [TIER_COLOURS[at % len(TIER_COLOURS)] for at in range(len(tiers))]
    labels = [f"tier {at}" for at in range(len(tiers))]
    axes.stackplot(np.arange(len(shares[0])), shares, colors=colours, labels=labels, alpha=0.75)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _explain_colours(axes, beside)
    _name(axes, f"{name}share of attention by tier", "")


def _explain_colours(axes: Axes, beside: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    beside.legend(
        handles[::-1], labels[::-1], fontsize=7, loc="center left", frameon=False, borderpad=0, handlelength=1
    )


def _draw_ages(panels: _Panels, name: str, tiers: list[AttendedTier]) -> None:
    axes, beside = panels.next()
    attended = sum((tier.attention * tier.age.clip(0)[:, None]).sum(axis=2) for tier in tiers)
    ages: NDArray[Any] = np.asarray(attended)
    for head in range(ages.shape[1]):
        colour = HEAD_COLOURS[head % len(HEAD_COLOURS)]
        axes.plot(np.arange(len(ages)), ages[:, head], color=colour, label=f"head {head}", **_line(len(ages)))
    _explain_colours(axes, beside)
    _name(axes, f"{name}mean age looked at, by head", "steps ago")
