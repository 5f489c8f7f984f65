"""Long runs with memory and descriptors flat: training, one endless episode, envs, actors and models that come and go.

    python tools/soak.py --steps 10000000 --acting-steps 1000000 --cycles 1000 --out soak.json

The JSON has a curve for each part: resident memory in MiB and open descriptors against steps. A part is flat where the
second half of its curve grows by less than `GROWTH` of the memory, and by no descriptor.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import ctrl.envs  # noqa: F401 - registers the tasks
from ctrl.agents import GymnasiumVecEnv, MemoryImpala, MemoryPPO

GROWTH = 0.03
"""Largest growth of resident memory in the second half of a curve, as a share of it."""
POINTS = 50
"""Points of a curve."""
Curve = list[dict[str, float]]


def measured(steps: int) -> dict[str, float]:
    """Return resident memory and open descriptors of this process now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    mebibytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"steps": steps, "rss_mib": round(mebibytes, 2), "descriptors": len(os.listdir("/proc/self/fd"))}


def is_flat(curve: Curve) -> bool:
    """Return True if the second half of a curve does not grow: the means of its two halves are compared.

    Fewer than four points say nothing.
    """
    if len(curve) < 4:
        return True
    half = curve[len(curve) // 2 :]
    first, last = half[: len(half) // 2], half[len(half) // 2 :]
    memory = [float(np.mean([point["rss_mib"] for point in part])) for part in (first, last)]
    descriptors = [max(point["descriptors"] for point in part) for part in (first, last)]
    return memory[1] <= memory[0] * (1 + GROWTH) and descriptors[1] <= descriptors[0]


class Measuring(BaseCallback):
    """Callback that measures at equal distances."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.curve: Curve = []
        self.every = max(1, steps // POINTS)

    def _on_step(self) -> bool:
        if self.num_timesteps >= len(self.curve) * self.every:
            self.curve.append(measured(self.num_timesteps))
        return True


def tasks(copies: int) -> GymnasiumVecEnv:
    """Return native copies of the shortest task."""
    return GymnasiumVecEnv(gym.make_vec("ctrl/Recall-v0", num_envs=copies, length=5, stagger=True))


SMALL: dict[str, Any] = {"policy_kwargs": {"core_kwargs": {"width": 16, "heads": 2}}, "device": "cpu", "seed": 0}


def training(steps: int) -> Curve:
    """Train for some steps."""
    callback = Measuring(steps)
    MemoryPPO("MlpMemoryPolicy", tasks(64), learning_rate=3e-4, n_epochs=1, **SMALL).learn(steps, callback)
    return callback.curve


def acting(steps: int) -> Curve:
    """Act in one episode that never ends."""
    model = MemoryPPO("MlpMemoryPolicy", tasks(1), **SMALL)
    observations = torch.from_numpy(np.random.default_rng(0).random((64, 1, 6), dtype=np.float32))
    curve: Curve = []
    actor = model.policy.actor(model.policy.initial_state(1))
    for step in range(steps):
        acted = actor.act(observations[step % 64], torch.tensor([step == 0]))
        assert bool(torch.isfinite(acted.values).all())
        if step * POINTS // steps >= len(curve):
            assert bool(torch.isfinite(acted.values).all())
            curve.append(measured(step))
    return curve


def cycles(count: int) -> Curve:
    """Create and close envs, actors and models; every tenth model has an actor process."""
    curve: Curve = []
    for number in range(count):
        env = tasks(2)
        kind: Any = MemoryImpala if number % 10 == 0 else MemoryPPO
        model = kind("MlpMemoryPolicy", env, n_steps=8, **({"num_actors": 1} if kind is MemoryImpala else {}), **SMALL)
        model.learn(64)
        env.close()
        if number * POINTS // count >= len(curve):
            curve.append(measured(number))
    return curve


PARTS: dict[str, Callable[[int], Curve]] = {"training": training, "acting": acting, "cycles": cycles}


def soak(sizes: dict[str, int]) -> dict[str, Any]:
    """Run the parts with their sizes and return their curves."""
    found: dict[str, Any] = {}
    for name, size in sizes.items():
        curve = PARTS[name](size)
        found[name] = {"size": size, "flat": is_flat(curve), "curve": curve}
    return found


def main() -> None:
    """Run the soak from the command line; the exit code is 0 if all parts are flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--acting-steps", type=int, default=1_000_000)
    parser.add_argument("--cycles", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    options = parser.parse_args()
    facts = soak({"training": options.steps, "acting": options.acting_steps, "cycles": options.cycles})
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    for name, part in facts.items():
        first, last = part["curve"][0], part["curve"][-1]
        print(f"{name}: {'flat' if part['flat'] else 'GROWS'}, {first} … {last}")
    raise SystemExit(0 if all(part["flat"] for part in facts.values()) else 1)


if __name__ == "__main__":
    main()
