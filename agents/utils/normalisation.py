"""Running normalisation shared by many actors: the learner merges their statistics into one `VecNormalize`.

Means and variances are merged as in Chan, Golub & LeVeque 1983, *Algorithms for computing the sample variance*, and
separated again by the same identity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

Moments = dict[str, np.ndarray]
"""Running mean, variance and count by name, in float64."""


def running_moments(normalize: VecNormalize) -> Moments:
    """Return a copy of the running mean, variance and count of observations and returns."""
    moments: Moments = {}
    for name, running in _running(normalize).items():
        moments[f"{name}/mean"] = np.array(running.mean, dtype=np.float64)
        moments[f"{name}/var"] = np.array(running.var, dtype=np.float64)
        moments[f"{name}/count"] = np.array(running.count, dtype=np.float64)
    return moments


def set_running_moments(normalize: VecNormalize, moments: Moments) -> None:
    """Replace the running means, variances and counts of `normalize` by copies of `moments`."""
    for name, running in _running(normalize).items():
        running.mean, running.var = moments[f"{name}/mean"].copy(), moments[f"{name}/var"].copy()
        running.count = float(moments[f"{name}/count"])


def added_moments(before: Moments, after: Moments) -> Moments:
    """Return the mean, variance and count of the data added between `before` and `after`; all 0 where there is none."""
    added: Moments = {}
    for name in {key.rpartition("/")[0] for key in before}:
        mean0, var0, count0 = (before[f"{name}/{kind}"] for kind in ("mean", "var", "count"))
        mean1, var1, count1 = (after[f"{name}/{kind}"] for kind in ("mean", "var", "count"))
        count = count1 - count0
        share = max(float(count), 1.0)
        mean = (mean1 * count1 - mean0 * count0) / share
        spread = var1 * count1 - var0 * count0 - (mean - mean0) ** 2 * count0 * count / count1
        added.update({f"{name}/mean": mean, f"{name}/var": np.maximum(spread, 0.0) / share, f"{name}/count": count})
    return added


def add_moments(normalize: VecNormalize, added: Moments) -> None:
    """Merge the moments of an actor's data into the running ones of `normalize`."""
    for name, running in _running(normalize).items():
        count = float(added[f"{name}/count"])
        if count > 0:
            running.update_from_moments(added[f"{name}/mean"], added[f"{name}/var"], count)


def _running(normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """Return the running statistics of returns, and of observations, key by key, where `normalize` has them."""
    kept: dict[str, Any] = {"returns": normalize.ret_rms}
    observations = getattr(normalize, "obs_rms", None)
    if isinstance(observations, dict):
        kept.update({f"observations/{key}": running for key, running in observations.items()})
    elif observations is not None:
        kept["observations"] = observations
    return kept
