"""Write docs/bench_operators.json: shares of torch's operators in the time of windows and of an acting step.

    python tools/operators_report.py docs/bench_operators.json

The cases are those that miss their performance targets. torch.profiler measures them with one thread. Shares are of the
operators' own time, which does not include the time of Python between operators.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ctrl.experiments.bench.act import models, stepper
from ctrl.experiments.bench.unroll import Shape, build
from ctrl.experiments.report.provenance import machine, versions
from ctrl.experiments.runs.run_folder import write_json

WINDOWS = ((64, 128), (256, 512), (256, 2048), (512, 2048))
"""Width and T of the windows, for a core with the package's memory; see `ctrl.experiments.bench.unroll`."""
TOKENS = 4096
ENVS = 256
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "linear"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "copies": ("copy", "cat", "index_select", "index_copy", "index_add", "index_fill", "scatter_add", "gather", "fill"),
}
"""Operators by kind, including their in-place forms. Most other operators are elementwise or reductions."""
REST = "all else"


def kind_of(operator: str) -> str:
    """Return the kind of an operator with a name such as `aten::bmm`."""
    name = operator.removeprefix("aten::").removesuffix("_")
    return next((kind for kind, names in KINDS.items() if name in names), REST)


def shares(work: Callable[[], object], calls: int) -> dict[str, Any]:
    """Return the milliseconds that a call spends in all operators, and the share of each kind."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(calls):
            work()
    spent: dict[str, float] = defaultdict(float)
    for each in recorded.key_averages():
        spent[kind_of(each.key)] += each.self_cpu_time_total
    total = sum(spent.values())
    order = (*KINDS, REST)
    return {"ms": round(total / calls / 1e3, 2), "shares": {kind: round(spent[kind] / total, 3) for kind in order}}


def measured() -> list[dict[str, Any]]:
    """Profile all cases."""
    cases = []
    for width, length in WINDOWS:
        work, _ = build("compressive_long", Shape(width, length, max(1, TOKENS // length)))
        cases.append({"case": f"window, width {width}, T = {length:,}", **shares(work, 5)})
    step = stepper(models()["compressive"], ENVS)
    cases.append({"case": f"acting step, {ENVS} envs", **shares(step, 200)})
    return cases


def main() -> None:
    """Profile all cases and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    command = f"python tools/operators_report.py {out}"
    told = {"command": command, "versions": versions(), "machine": machine(), "cases": measured()}
    write_json(out, told)


if __name__ == "__main__":
    main()
