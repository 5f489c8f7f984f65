"""Weights that a learner publishes: a reader gets one complete version, whatever another process does meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import make_impala
from agent_toys import makers, same_weights, weights_of
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ctrl.agents import MemoryImpala
from ctrl.agents.actors.shared_memory import SharedArrays, anonymous_file
from ctrl.agents.actors.shared_weights import SharedWeights
from ctrl.agents.utils.normalisation import running_moments

HOLDER = """
    import fcntl, sys
    fd, place = map(int, sys.argv[1:])
    fcntl.lockf(fd, fcntl.LOCK_SH, 1, place)
    print("held", flush=True)
    sys.stdin.read(1)
"""
READER = """
    import sys, time
    from test_shared_weights import large_agent, uniform
    from ctrl.agents.actors.shared_weights import SharedWeights

    model = large_agent()
    published = SharedWeights(model.policy, model.get_vec_normalize_env(), int(sys.argv[1]))
    versions, until = [], time.monotonic() + float(sys.argv[2])
    print("ready", flush=True)
    while len(set(versions)) <= 20 and time.monotonic() < until:
        versions.append(published.read())
        assert uniform(model) == {float(versions[-1])}, (versions[-1], uniform(model))
    assert versions == sorted(versions)
    print(len(set(versions)), flush=True)
"""


def agent(**options: Any) -> MemoryImpala:
    return make_impala(VecNormalize(DummyVecEnv(makers())), "gru", **options)  # type: ignore[arg-type]


def large_agent() -> MemoryImpala:
    """Return an agent whose weights take a while to copy."""
    return agent(policy_kwargs={"encoder_arch": [256, 512, 256]})


def uniform(model: MemoryImpala) -> set[float]:
    """Return the set of numbers in all weights, means and variances."""
    moments = running_moments(model.get_vec_normalize_env())  # type: ignore[arg-type]
    parts = [part.unique().tolist() for part in model.policy.state_dict().values()]
    return {float(number) for part in [*parts, *(np.unique(m).tolist() for m in moments.values())] for number in part}


def fill(model: MemoryImpala, number: float) -> None:
    """Set all weights, means, variances and counts to one number."""
    normalize: Any = model.get_vec_normalize_env()
    with torch.no_grad():
        for tensor in model.policy.state_dict().values():
            tensor.fill_(number)
    for running in (normalize.obs_rms, normalize.ret_rms):
        running.mean, running.var = np.full_like(running.mean, number), np.full_like(running.var, number)
        running.count = number


def script(text: str, fd: int, *arguments: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), str(fd), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_weights_and_moments_arrive() -> None:
    learner, actor = agent(), agent(seed=1)
    assert not same_weights(weights_of(learner), weights_of(actor))
    learner.get_vec_normalize_env().obs_rms.update(np.arange(12.0).reshape(4, 3))  # type: ignore[union-attr]
    published = SharedWeights(learner.policy, learner.get_vec_normalize_env())
    there = SharedWeights(actor.policy, actor.get_vec_normalize_env(), os.dup(published.fd))
    for version in (0, 1, 2, 7):
        with torch.no_grad():
            learner.policy.value_net.bias += 1
            learner.policy.value_normalisation.scale += 1  # statistics go with the weights
        assert published.write(version)
        assert there.read() == version == there.read()
        assert same_weights(weights_of(learner), weights_of(actor))
    one, other = (running_moments(model.get_vec_normalize_env()) for model in (learner, actor))  # type: ignore[arg-type]
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    published.close()
    there.close()


def test_nothing_is_overwritten_that_somebody_reads() -> None:
    """A reader that holds the other place blocks the learner from writing there, until the reader is done or dead."""
    model = agent()
    published = SharedWeights(model.policy, model.get_vec_normalize_env())
    assert published.write(1)
    current = int(published._array("current"))
    assert published.write(2)
    holder = script(HOLDER, published.fd, current)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert not published.write(3) and published.read() == 2
    holder.kill()
    holder.communicate()
    assert published.write(4) and published.read() == 4
    published.close()


def test_never_half_of_it() -> None:
    """This process writes and another one reads, both without pause. Each version consists of one number."""
    model = large_agent()
    fill(model, 0.0)
    published = SharedWeights(model.policy, model.get_vec_normalize_env())
    published.write(0)
    reader = script(READER, published.fd, 60)
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    written, version = 0, 0
    while reader.poll() is None:
        version += 1
        fill(model, float(version))
        written += published.write(version)
    seen, _ = reader.communicate(timeout=30)
    assert reader.returncode == 0 and int(seen) > 20 and written >= 20  # the first was there before
    published.close()


# The memory itself


def test_arrays_are_shared_by_descriptor() -> None:
    layout = {
        "whole": ((), "int64"),
        "empty": ((3, 0), "float32"),
        "part": ((2, 5), "uint8"),
        "last": ((7,), "float64"),
    }
    one = SharedArrays(layout)
    other = SharedArrays(layout, os.dup(one.fd))
    assert not any(array.any() for array in one.arrays.values())
    for number, array in enumerate(one.arrays.values()):
        array[...] = number + 1
    one.close()
    other.close()
    assert [array.flatten().tolist() for array in other.arrays.values()] == [[1], [], [3] * 10, [4.0] * 7]
    assert all(array.ctypes.data % 64 == 0 for array in other.arrays.values() if array.size)


@pytest.mark.parametrize("has_memfd", [True, False])
def test_a_file_without_a_name(has_memfd: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Systems without such files, such as macOS, are tested too."""
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fd = anonymous_file(b"content")
    assert os.pread(fd, 100, 0) == b"content"
    assert not list(tmp_path.iterdir())
    os.close(fd)
