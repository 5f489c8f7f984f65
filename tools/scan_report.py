"""Write docs/bench_scan.json: time of a window of `mingru` as it is, with a parallel scan, and of `torch.nn.GRU`.

    python tools/scan_report.py docs/bench_scan.json

Forward and backward are timed with one thread, in interleaved turns; the windows of the first two have resets. The scan
is parallel in time and works by doubling (Hillis & Steele 1986), with torch's own operations and gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import ctrl
from ctrl.baselines.mingru import MinGRUCore, MinGRUState
from ctrl.experiments.report.provenance import machine, versions
from ctrl.experiments.runs.run_folder import write_json

WIDTH, TURNS = 128, 5
ENVS, LENGTHS = (8, 64), (128, 512, 2048)


def doubling(core: MinGRUCore, inputs: Tensor, state: MinGRUState, reset: Tensor) -> Tensor:
    """Return the outputs [T, B, D] of a layer by doubling: in step k, each state takes in that of 2^k steps before."""
    update, added = core.maps[0](inputs.transpose(0, 1)).chunk(2, dim=-1)
    update = torch.sigmoid(update)
    keep, added = (1 - update).masked_fill(reset.t()[:, :, None], 0), update * added
    back = 1
    while back < len(keep):
        added = torch.cat([added[:back], added[back:] + keep[back:] * added[:-back]])
        keep = torch.cat([keep[:back], keep[back:] * keep[:-back]])
        back *= 2
    outputs: Tensor = added + keep * state.hidden[:, 0]
    return outputs


def works(envs: int, length: int) -> dict[str, Callable[[], Tensor]]:
    """Return functions that compute the outputs of a window, by name."""
    torch.manual_seed(0)
    core, gru = ctrl.make_core("mingru", WIDTH, width=WIDTH), nn.GRU(WIDTH, WIDTH)
    assert isinstance(core, MinGRUCore)
    inputs, state = torch.randn(envs, length, WIDTH), core.initial_state(envs)
    reset = torch.rand(envs, length) < 0.01
    across = doubling(core, inputs, state, reset).transpose(0, 1)
    torch.testing.assert_close(across, core.unroll(inputs, state, reset).outputs)
    steps = inputs.transpose(0, 1).contiguous()
    return {
        "mingru": lambda: core.unroll(inputs, state, reset).outputs,
        "by doubling": lambda: doubling(core, inputs, state, reset),
        "torch.nn.GRU": lambda: gru(steps)[0],
    }


def seconds(outputs: Callable[[], Tensor]) -> float:
    """Return the seconds of one forward and backward."""
    begin = time.perf_counter()
    outputs().square().mean().backward()
    return time.perf_counter() - begin


def case(envs: int, length: int) -> dict[str, Any]:
    """Measure one size."""
    named = works(envs, length)
    for work in named.values():
        seconds(work)
    turns = [{name: seconds(work) for name, work in named.items()} for _ in range(TURNS)]
    ms = {name: round(1e3 * median(turn[name] for turn in turns), 2) for name in named}
    ratios = {name: round(median(turn[name] / turn["mingru"] for turn in turns), 2) for name in named}
    return {"envs": envs, "length": length, "ms": ms, "ratio_to_mingru": ratios, "turns": turns}


def main() -> None:
    """Measure all sizes and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    cases = [case(envs, length) for envs in ENVS for length in LENGTHS]
    told = {"command": f"python tools/scan_report.py {out}", "versions": versions(), "machine": machine()}
    write_json(out, {**told, "width": WIDTH, "cases": cases})


if __name__ == "__main__":
    main()
