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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import ctrl
from ctrl import Tier
from ctrl.compressive.reconstruction import QUERY_STEPS
from ctrl.experiments.bench.harness import (
    SEED,
    Case,
    Column,
    Row,
    Table,
    Turn,
    calls_per_second,
    measure,
    ratio,
    summarise,
    turns_note,
)
from ctrl.experiments.bench.options import (
    Integers,
    Names,
    TorchOptions,
    require_names,
    require_numbers,
)
from ctrl.experiments.bench.subjects.cores import parameters_of, warm_state
from ctrl.experiments.errors import UserError, require, require_at_least
from ctrl.experiments.report.summary import MISSING

MODELS = ("compressive", "compressive_long", "lstm", "package")
"""Models to measure; `compressive_long` has the memory that the package needs."""
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
class Options(TorchOptions):
    """Speed of forward and backward of a window, beside torch.nn.LSTM, a published package and the hardware's peak."""

    lengths: Integers = (32, 128, 512, 2048)
    """Numbers of steps of a window; each is measured."""
    widths: Integers = (64, 256, 512)
    """Numbers of features of a layer; each is measured."""
    models: Names = MODELS
    """Models to measure; package is compressive-transformer-pytorch, and compressive_long has as much memory."""
    tokens: int = 4096
    """Number of steps in all windows of a batch together; a batch has at least one window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(self, "lengths", least=2)
        require_numbers(self, "widths")
        require_at_least(1, self, "tokens")
        require_names("model", self, MODELS)
        for width in self.widths:
            heads = heads_of(width)
            require(width % heads == 0, f"--widths must be multiples of {heads}, got {width}")


def heads_of(width: int) -> int:
    """Return the number of attention heads for a width."""
    return 4 if width <= 64 else 8


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
    slots, query_steps = sum(memory), min(length, QUERY_STEPS)
    dense = (4 + 12 + 4 + 1 + 4 / RATE + 2 * slots / length) * width**2
    attention = 2 * slots * width + 2 * query_steps * (1 + 1 / RATE) * width
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
        return _trainer(lstm, lambda: _task_loss(lstm(inputs)[0])), parameters_of(lstm)
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

    return _trainer(core, loss), parameters_of(core)


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

    return _trainer(model, loss), parameters_of(model)


def _import_package() -> Any:
    try:
        from compressive_transformer_pytorch import CompressiveTransformer
    except ImportError:
        raise UserError(
            'the benchmark needs compressive-transformer-pytorch: pip install "ctrl-memory[bench]"; '
            "or leave package out of --models"
        ) from None
    return CompressiveTransformer


def turn(work: Work, tokens: int) -> Turn:
    """Measure a batch with `tokens` tokens."""
    return {"tokens_per_second": tokens * calls_per_second(work, TURN_SECONDS)}


def peak_turn(size: int) -> Callable[[], Turn]:
    """Return a function that measures the FLOPs per second of a product of two float32 matrices of `size` × `size`."""
    one, other = torch.randn(2, size, size)
    result = torch.empty(size, size)

    def measure() -> Turn:
        begin = time.perf_counter()
        torch.mm(one, other, out=result)
        return {"flops_per_second": 2 * size**3 / (time.perf_counter() - begin)}

    measure()
    return measure


def shapes(options: Options) -> list[Shape]:
    """Return the sizes of all windows."""
    return [
        Shape(width, length, max(1, options.tokens // length)) for width in options.widths for length in options.lengths
    ]


def models_of(models: Sequence[str], length: int) -> list[str]:
    """Return `models`, without `compressive_long` if it equals `compressive` at this window length."""
    same = memory_of("compressive_long", length) == memory_of("compressive", length)
    return [model for model in models if not (model == "compressive_long" and "compressive" in models and same)]


def case_of(model: str, shape: Shape) -> Case:
    """Build a model and run a first batch, which warms it up."""
    work, parameters = build(model, shape)
    work()
    memory = memory_of(model, shape.length)
    slots = "" if memory is None else f"{memory[0]},{memory[1]}x{RATE}"
    about = {"model": model, **asdict(shape), "parameters": parameters, "memory": slots}
    return Case(model, about, partial(turn, work, shape.tokens))


def share_of_peak(row: Row, peak: Row) -> float | None:
    """Return the share of the peak that a model reaches: the median over turns; None for the package."""
    flops = flops_per_token(row["model"], Shape(row["width"], row["length"], row["batch_size"]))
    return None if flops is None else flops * ratio(row["turns"], peak["turns"])


def measure_shape(
    options: Options, shape: Shape, peak: Callable[[], Turn], console: Console
) -> tuple[list[Row], list[float]]:
    """Measure the models and the peak in turns; return the rows of the models, and the FLOPs per second of the peak."""
    console.print(f"width {shape.width}, {shape.batch_size} × {shape.length} steps")
    cases = [case_of(model, shape) for model in models_of(options.models, shape.length)]
    bases = {f"ratio_to_{name}": name for name in REFERENCES}
    *rows, highest = measure([*cases, Case(PEAK, {}, peak)], options.repeats, console, bases)
    for row in rows:
        row["share_of_peak"] = share_of_peak(row, highest)
    return rows, [turn["flops_per_second"] for turn in highest["turns"]]


def run(options: Options, console: Console) -> Row:
    """Measure the models at all sizes of windows."""
    if "package" in options.models:
        _import_package()
    peak = peak_turn(PEAK_SIZE)
    rows, reached = [], []
    for shape in shapes(options):
        found, flops = measure_shape(options, shape, peak, console)
        rows += found
        reached += flops
    sizes = {"layers": LAYERS, "tokens": options.tokens, "turn_seconds": TURN_SECONDS, "seed": SEED}
    return {
        "sizes": {**sizes, "peak_size": PEAK_SIZE, "num_tokens": NUM_TOKENS},
        "peak_flops_per_second": {"turns": reached, **summarise(reached)},
        "models": rows,
    }


def tables(report: Row) -> list[Table]:
    """List the only table."""
    rows, peak = report["models"], report["peak_flops_per_second"]["median"] / 1e9
    return [
        Table(
            f"forward and backward of windows of T steps, {LAYERS} layers, all losses",
            rows,
            [
                Column("model", _label),
                Column.text("width", "width"),
                Column.count("T", "length"),
                Column.count("params", "parameters"),
                Column.median("tokens/s", "tokens_per_second"),
                Column.range("range", "tokens_per_second"),
                Column.ratio("to\nlstm", "ratio_to_lstm"),
                Column.ratio("to\npackage", "ratio_to_package"),
                Column(
                    "of\npeak", lambda row: MISSING if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
                ),
            ],
            [
                turns_note(rows, "compressive SLOTS,SLOTSxRATE"),
                "lstm: torch.nn.LSTM; package: compressive-transformer-pytorch",
                "to lstm, to package: ratio of tokens/s to theirs at the same width and T",
                f"of peak: share of the {peak:,.0f} GFLOP/s of a float32 product of {PEAK_SIZE} × {PEAK_SIZE}",
            ],
        )
    ]


def _label(row: Row) -> str:
    model: str = row["model"]
    return f"compressive {row['memory']}" if model.startswith("compressive") else model
