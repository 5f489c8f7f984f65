"""`ctrl bench unroll`: tokens per second of forward and backward of a batch of windows, with all losses.

All models have two layers of the same width. They are:

- the compressive core from a state with all slots full, including planning and reconstruction loss. `compressive` has
  32 raw and 32 compressed slots at every window length T, so its cost for a token does not grow with T.
  `compressive_long` has the package's memory, if that is larger;
- `torch.nn.LSTM`;
- the package `compressive-transformer-pytorch`, with its auxiliary loss and full memories. It needs a memory of at
  least T slots, so it has max(32, T) raw slots, and a quarter as many (at least 32) that are compressed 4 to 1.

The largest case by default takes 7 GB, nearly all of it for the attention of the package and of `compressive_long` over
2048 + 2048 + 512 slots. The package's feed-forward part is twice as wide as the core's; the table shows the parameters.

The share of the matrix-product peak is the number of necessary FLOPs per second, divided by the FLOPs per second of a
product of two large square float32 matrices in the same turn. A multiply-add is 2 FLOPs. Backward counts as twice the
forward, also where an input needs no gradient, so the share is a little too high rather than too low.

The forward of the compressive core has the following multiply-adds for each token, with D features, S slots a layer, m
slots merged into one, and Q = min(T, 32) query steps of the reconstruction loss: D² for the embedding, and for each
layer

    4 D²                    queries, keys, values, output
    12 D²                   two gates, six maps each
    4 D²                    feed-forward part, 2 D hidden units
    2 S D²/T                keys and values of the stored slots, once a window
    D² + 2 D²/m             compressor, keys and values of the slots it forms
    2 S D                   attention
    2 Q D (1 + 1/m) + 2 D²/m    the reconstruction loss: two attentions, keys and values

`torch.nn.LSTM` has 8 D² for each layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console, RenderableType
from torch import Tensor, nn

import ctrl
from ctrl import Tier
from ctrl.compressive.reconstruction import QUERY_STEPS
from ctrl.experiments.bench.config import BenchUnroll, heads_of
from ctrl.experiments.bench.turns import (
    SEED,
    count,
    framed,
    range_text,
    ratio,
    ratio_text,
    ratios,
    shower,
    summarise,
    take_turns,
    use_threads,
    warm_state,
)
from ctrl.experiments.errors import UserError

LAYERS, SLOTS, RATE = 2, 32, 4
PEAK = "peak"
PEAK_SIZE = 2048
"""Number of rows and of columns of the matrices that measure the peak."""
REFERENCES = ("lstm", "package")
NUM_TOKENS = 16
"""Number of token ids of the package; at so few, its embedding and its last linear map cost next to nothing."""
TURN_SECONDS = 0.3
"""Smallest length of a turn; batches are repeated until it is reached."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Sizes of one case."""

    width: int
    length: int
    batch_size: int
    """Number of windows."""

    @property
    def tokens(self) -> int:
        """Number of steps of all windows together."""
        return self.length * self.batch_size


@dataclass(frozen=True)
class UnrollResult:
    """Results of one model in one case, in all turns."""

    model: str
    width: int
    length: int
    batch_size: int
    parameters: int
    memory: str
    """Slots of a layer, such as `32,32x4`; empty if there are none."""
    tokens_per_second: list[float]
    """Tokens per second in each turn."""
    share_of_peak: float | None
    ratios: dict[str, float]
    """Ratios of tokens per second, by `ratio_to_…`; empty if no reference was measured."""

    @property
    def label(self) -> str:
        """Name of the model in the table."""
        return f"compressive {self.memory}" if self.model.startswith("compressive") else self.model

    def to_json(self) -> dict[str, Any]:
        """Return the results of all turns, and their median and range, as plain data."""
        data = asdict(self)
        speeds = data.pop("tokens_per_second")
        return {**data, **data.pop("ratios"), "turns": speeds, "tokens_per_second": summarise(speeds)}


def memory_of(model: str, length: int) -> tuple[int, int] | None:
    """Return the numbers of raw and compressed slots of a layer; None for a model without slots."""
    if model == "lstm":
        return None
    raw = SLOTS if model == "compressive" else max(SLOTS, length)
    return raw, max(SLOTS, raw // RATE)


def forward_multiply_adds(model: str, shape: Shape) -> float | None:
    """Return the multiply-adds of the forward for one token, as in the module's docstring; None for the package."""
    width, length, memory = shape.width, shape.length, memory_of(model, shape.length)
    if memory is None:
        return 8 * LAYERS * width**2
    if model == "package":
        return None
    slots, asked = sum(memory), min(length, QUERY_STEPS)
    dense = (4 + 12 + 4 + 1 + 4 / RATE + 2 * slots / length) * width**2
    attention = 2 * slots * width + 2 * asked * (1 + 1 / RATE) * width
    return width**2 + LAYERS * (dense + attention)


def flops_per_token(model: str, shape: Shape) -> float | None:
    """Return the FLOPs of forward and backward for one token; None for the package."""
    forward = forward_multiply_adds(model, shape)
    return None if forward is None else 3 * 2 * forward


def build(model: str, shape: Shape) -> tuple[Work, int]:
    """Return a function that runs forward and backward of a batch, and the number of parameters of the model."""
    torch.manual_seed(SEED)
    if model == "package":
        return _package(shape)
    inputs = torch.randn(shape.batch_size, shape.length, shape.width)
    if model == "lstm":
        lstm = nn.LSTM(shape.width, shape.width, LAYERS, batch_first=True)
        return _trainer(lstm, lambda: _task_loss(lstm(inputs)[0])), count(lstm)
    return _compressive(model, shape, inputs)


def _compressive(model: str, shape: Shape, inputs: Tensor) -> tuple[Work, int]:
    raw, compressed = memory_of(model, shape.length) or (0, 0)
    memory = [Tier(raw), Tier(compressed, RATE, "conv")]
    core = ctrl.make_core(
        "compressive",
        shape.width,
        layers=LAYERS,
        width=shape.width,
        heads=heads_of(shape.width),
        memory=memory,
        # Layers with a feed-forward part, as in the package, and without parts that the package does not have.
        residual="gated",
        forgetting=False,
        clock=False,
    )
    state = warm_state(core, shape.batch_size)
    reset = torch.zeros(shape.batch_size, shape.length, dtype=torch.bool)

    def loss() -> Tensor:
        unrolled = core.unroll(inputs, state, reset)
        return _task_loss(unrolled.outputs) + unrolled.reconstruction_loss

    return _trainer(core, loss), count(core)


def _task_loss(outputs: Tensor) -> Tensor:
    return outputs.square().mean()


def _trainer(module: nn.Module, loss: Callable[[], Tensor]) -> Work:
    def work() -> None:
        module.zero_grad()
        loss().backward()

    return work


def _package(shape: Shape) -> tuple[Work, int]:
    compressive_transformer = _import_package()
    raw, compressed = memory_of("package", shape.length) or (0, 0)
    model = compressive_transformer(
        num_tokens=NUM_TOKENS,
        dim=shape.width,
        depth=LAYERS,
        heads=heads_of(shape.width),
        seq_len=shape.length,
        mem_len=raw,
        cmem_len=compressed,
        cmem_ratio=RATE,
    )
    tokens, targets = torch.randint(NUM_TOKENS, (2, shape.batch_size, shape.length))
    memories = tuple(torch.randn(LAYERS, shape.batch_size, slots, shape.width) for slots in (raw, compressed))

    def loss() -> Tensor:
        # In each pass the package detaches the weights of keys and values for good. Here they require gradients again,
        # so that the pass does all the work it is meant to do, though the package then drops these gradients.
        model.requires_grad_()
        logits, _, auxiliary = model(tokens, memories=memories)
        total: Tensor = F.cross_entropy(logits.transpose(1, 2), targets) + auxiliary.sum()
        return total

    return _trainer(model, loss), count(model)


def _import_package() -> Any:
    try:
        from compressive_transformer_pytorch import CompressiveTransformer
    except ImportError:
        raise UserError(
            'the benchmark needs compressive-transformer-pytorch: pip install "ctrl-memory[bench]"; '
            "or leave package out of --models"
        ) from None
    return CompressiveTransformer


def tokens_per_second(work: Work, tokens: int, seconds: float) -> float:
    """Return the tokens per second of a batch with `tokens` tokens, measured over at least `seconds`."""
    calls, begin = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        spent = time.perf_counter() - begin
        if spent >= seconds:
            return calls * tokens / spent


def peak_flops(size: int) -> Callable[[], float]:
    """Return a function that measures the FLOPs per second of a product of two float32 matrices of `size` × `size`."""
    one, other = torch.randn(2, size, size)
    result = torch.empty(size, size)

    def measure() -> float:
        begin = time.perf_counter()
        torch.mm(one, other, out=result)
        return 2 * size**3 / (time.perf_counter() - begin)

    measure()
    return measure


def cases(config: BenchUnroll) -> list[Shape]:
    """Return the sizes of all cases."""
    return [
        Shape(width, length, max(1, config.tokens // length)) for width in config.widths for length in config.lengths
    ]


def models_of(models: Sequence[str], length: int) -> list[str]:
    """Return `models`, without `compressive_long` if it equals `compressive` at this window length."""
    same = memory_of("compressive_long", length) == memory_of("compressive", length)
    return [model for model in models if not (model == "compressive_long" and "compressive" in models and same)]


def measured(shape: Shape, counts: Mapping[str, int], turns: Mapping[str, list[float]]) -> list[UnrollResult]:
    """Combine the results of one case.

    :param counts: numbers of parameters by model
    :param turns: tokens per second in each turn by model, and FLOPs per second under `PEAK`
    """
    results = []
    for model in counts:
        flops, memory = flops_per_token(model, shape), memory_of(model, shape.length)
        share = None if flops is None else flops * ratio(turns[model], turns[PEAK])
        slots = "" if memory is None else f"{memory[0]},{memory[1]}x{RATE}"
        sizes = (shape.width, shape.length, shape.batch_size, counts[model], slots)
        results.append(UnrollResult(model, *sizes, turns[model], share, ratios(turns, model, REFERENCES)))
    return results


def measure_case(config: BenchUnroll, shape: Shape, peak: Callable[[], float], console: Console) -> list[UnrollResult]:
    """Measure the models and the peak in turns, in one case."""
    counts, workers = {}, {}
    for model in models_of(config.models, shape.length):
        work, counts[model] = build(model, shape)
        work()  # warms up
        workers[model] = partial(tokens_per_second, work, shape.tokens, TURN_SECONDS)
    console.print(f"width {shape.width}, {shape.batch_size} × {shape.length} steps")
    turns = take_turns(
        {**workers, PEAK: peak}, config.repeats, shower(console, config.repeats, lambda speed: f"{speed:14,.0f} /s")
    )
    return measured(shape, counts, turns)


def unroll_table(results: Sequence[UnrollResult], peak: Sequence[float], threads: int) -> RenderableType:
    """Build the table of the benchmark."""
    rows = [
        [
            result.label,
            str(result.width),
            str(result.length),
            f"{result.parameters:,}",
            f"{median(result.tokens_per_second):,.0f}",
            range_text(result.tokens_per_second),
            *(ratio_text(result.ratios.get(f"ratio_to_{name}")) for name in REFERENCES),
            "–" if result.share_of_peak is None else f"{result.share_of_peak:.0%}",
        ]
        for result in results
    ]
    columns = ["model", "width", "T", "params", "tokens/s", "range", "to\nlstm", "to\npackage", "of\npeak"]
    notes = [
        f"median of {len(results[0].tokens_per_second)} interleaved turns; compressive SLOTS,SLOTSxRATE",
        "lstm: torch.nn.LSTM; package: compressive-transformer-pytorch",
        "to lstm, to package: ratio of tokens/s to theirs at the same width and T",
        f"of peak: share of the {median(peak) / 1e9:,.0f} GFLOP/s of a float32 product of {PEAK_SIZE} × {PEAK_SIZE}",
    ]
    title = f"forward and backward of windows of T steps, {LAYERS} layers, all losses"
    return framed(title, columns, rows, notes, threads)


def run(config: BenchUnroll, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its table and return its part of the report."""
    threads = use_threads(config.threads)
    if "package" in config.models:
        _import_package()
    peak, reached = peak_flops(PEAK_SIZE), []

    def measure_peak() -> float:
        reached.append(peak())
        return reached[-1]

    results = [result for shape in cases(config) for result in measure_case(config, shape, measure_peak, console)]
    console.print(unroll_table(results, reached, threads))
    sizes = {"layers": LAYERS, "tokens": config.tokens, "turn_seconds": TURN_SECONDS, "seed": SEED}
    return {
        "torch_threads": threads,
        "sizes": {**sizes, "peak_size": PEAK_SIZE, "num_tokens": NUM_TOKENS},
        "peak_flops_per_second": {"turns": reached, **summarise(reached)},
        "models": [result.to_json() for result in results],
    }
