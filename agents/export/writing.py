"""Writing of a policy's graph to files: ONNX or `torch.export`, and a JSON file that describes it."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch.distributions import Distribution

import ctrl
from ctrl.agents.export.graph import PolicyGraph
from ctrl.agents.policy.memory_policy import MemoryPolicy

INSTALL = "pip install 'ctrl-memory[export]'"
"""Command that installs what exports need."""
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""Suffix of the file by format."""
VERSION = 1
"""Version of the JSON file's format."""


def export_policy(policy: MemoryPolicy, path: str | os.PathLike[str], *, kind: str = "onnx") -> Path:
    """Write one step of a policy as a graph, and beside it a JSON file with the names, shapes and dtypes.

    :param policy: the policy of an agent, `model.policy`; it is not changed
    :param path: the file, which is replaced. The JSON file gets the same name with the suffix `.json`
    :param kind: "onnx", or "torch" for `torch.export.load`
    :return: the JSON file
    :raises ValueError: where the kind is unknown, or the policy can't be traced, such as a core of one's own whose step
        looks at numbers
    :raises ModuleNotFoundError: where a package is missing; the message has the command that installs it
    """
    if kind not in SUFFIXES:
        raise ValueError(f"kind must be one of {', '.join(SUFFIXES)}, got {kind!r}")
    path = Path(path)
    if path.suffix == ".json":
        raise ValueError(f"path must not end in .json, as the description beside it does, got {path}")
    if kind == "onnx":
        require("onnx", "onnxscript")
    graph = PolicyGraph(policy)
    with _quiet():
        program = _traced(graph)
        if kind == "torch":
            torch.export.save(program, path)
        else:
            names = [[port.name for port in ports] for ports in (graph.inputs(), graph.outputs())]
            onnx = torch.onnx.export(program, dynamo=True, input_names=names[0], output_names=names[1], verbose=False)
            assert onnx is not None
            onnx.save(path)
    described = path.with_suffix(".json")
    described.write_text(json.dumps(describe(graph, kind, path.name), indent=2) + "\n", encoding="utf-8")
    return described


def require(*packages: str) -> None:
    """Raise a ModuleNotFoundError with the command to install what is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"exporting to ONNX needs {package}: {INSTALL}", name=package) from error


def describe(graph: PolicyGraph, kind: str, file: str) -> dict[str, Any]:
    """Return the description of a graph as plain data."""
    policy = graph.policy
    config = ctrl.core_config(policy.core)
    return {
        "version": VERSION,
        "written_by": f"ctrl {ctrl.__version__}",
        "file": file,
        "format": kind,
        "inputs": [port.to_json() for port in graph.inputs()],
        "outputs": [port.to_json() for port in graph.outputs()],
        "core": config.name,
        "observation_space": describe_space(policy.observation_space),
        "action_space": describe_space(policy.action_space),
    }


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as plain data."""
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {key: describe_space(part) for key, part in space.spaces.items()}}
    described = {"kind": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {**described, "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {**described, "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.Box):  # infinity is no number of JSON
        return {**described, "low": _bounds(space.low.min()), "high": _bounds(space.high.max())}
    return described


def _bounds(bound: Any) -> float | str:
    return str(bound) if abs(bound) == float("inf") else float(bound)


def _traced(graph: PolicyGraph) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    example = graph.example(3)
    try:
        with torch.no_grad(), _unvalidated():
            return torch.export.export(
                graph, example, dynamic_shapes=(tuple({0: batch} for _ in example),), strict=False
            )
    except Exception as error:  # torch raises errors of many kinds here, some of them its own
        name = type(graph.policy.core).__name__
        raise ValueError(
            f"the policy with core {name} cannot be exported, since its step is no fixed graph of tensor operations; "
            f"see MemoryCore.graph_step ({type(error).__name__}: {str(error)[:300]})"
        ) from error


@contextlib.contextmanager
def _unvalidated() -> Iterator[None]:
    """Let torch's distributions not look at their numbers, which a fixed graph does not allow."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter prints and warns of away from users: none of it is theirs to act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
