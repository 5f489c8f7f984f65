"""Presets of the compressive core: Transformer-XL's memory, GTrXL, and the Compressive Transformer of the paper."""

from __future__ import annotations

from typing import Any

from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.tiers import Tier


def transformer_xl(
    input_size: int,
    *,
    layers: int = 1,
    width: int = 64,
    heads: int = 4,
    slots: int = 88,
) -> CompressiveCore:
    """Build Transformer-XL's memory in this package's own layer: the compressive core with tier 0 only.

    All else is the same, so a comparison with "compressive" shows the effect of compression. The layer is not that of
    the Transformer-XL paper. For that one, build a "compressive" core with `[Tier(slots)]`, `position="sinusoidal"`,
    `residual="post_norm"`, `forgetting=False` and `clock=False`. For the published baseline in RL, see `gtrxl`.

    :param slots: how many steps each layer looks back; the other options are those of `CompressiveCore`
    """
    return CompressiveCore(input_size, layers=layers, width=width, heads=heads, memory=[Tier(slots)])


def gtrxl(
    input_size: int,
    *,
    layers: int = 1,
    width: int = 64,
    heads: int = 4,
    slots: int = 64,
    feedforward: int | None = None,
) -> CompressiveCore:
    """Build a Gated Transformer-XL (Parisotto et al. 2020, arXiv 1910.06764): gates, and Transformer-XL's positions.

    It departs from that paper in three points: the reset gate acts after the matrix product (see
    `ctrl.compressive.layer.Gate`), a layer norm ends the core, and a step looks back equally far wherever it is in a
    window.

    :param slots: how many steps each layer looks back; the other options are those of `CompressiveCore`
    """
    return CompressiveCore(
        input_size,
        layers=layers,
        width=width,
        heads=heads,
        memory=[Tier(slots)],
        feedforward=feedforward,
        position="sinusoidal",
        residual="gated",
        forgetting=False,
        clock=False,
    )


def paper_config(
    rate: int = 4,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    slots: int = 64,
    compressed_slots: int = 64,
    compressor: str = "conv",
) -> dict[str, Any]:
    """Return the options that make the model of the paper (Rae et al. 2020, arXiv 1911.05507).

        core = ctrl.make_core("compressive", input_size=24, **ctrl.paper_config(rate=4))

    For RL (section 5.7) the paper states: the model takes the LSTM's place in an IMPALA agent, with 64 slots, 64
    compressed slots and the rates 1, 2, 4 and 8. The layer here is that of its section 3: Transformer-XL's attention
    with sinusoids of the distance in slots and two biases, and normed sums. The compressor and its loss are those that
    did best in the paper's ablation on text. The paper leaves open for RL: layers, width, heads, feed-forward size,
    compressor, loss, window, and the effect of a reset. Layers are two here; the others are this package's defaults.

    Departures from the paper:

    - slots are compressed by each env's own clock, `rate` at a time, and not once per window;
    - a slot that is compressed inside a window can be attended to inside it;
    - the current step is a slot of the memory;
    - the loss is a mean, with the queries of at most 32 steps of a window;
    - there is no dropout.

    The learning rate (1.5e-5) and the entropy cost (2e-3) are options of the agent.

    :param rate: how many slots of the memory become one of the compressed memory
    :param slots: of the memory, one step each
    :param compressed_slots: of the compressed memory
    :param compressor: its compressor; the other options are those of `CompressiveCore`
    :return: keyword arguments of `CompressiveCore`
    :raises ValueError: where a size is not a positive whole number; the core refuses other options that don't fit
    """
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "memory": [Tier(slots), Tier(compressed_slots, rate, compressor)],
        "reconstruction": "attention_reconstruction",
        "position": "sinusoidal",
        "residual": "post_norm",
        "forgetting": False,
        "clock": False,
    }
