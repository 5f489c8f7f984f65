"""Presets: the options that each of these names gives to the compressive core."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ctrl
from ctrl import CompressiveCore, Tier
from ctrl.compressive.attention.memory_attention import AgeAttention
from ctrl.compressive.attention.relative import RelativeAttention
from ctrl.compressive.kv_cache import CompressiveActing
from ctrl.compressive.layer import RESIDUALS, GatedLayer, PlainLayer, PostNormLayer
from ctrl.core import PlainActing


def build(name: str, **options: Any) -> CompressiveCore:
    core = ctrl.make_core(name, 5, **options)
    assert isinstance(core, CompressiveCore)
    return core


def kinds(core: CompressiveCore) -> tuple[type, type]:
    """Return the classes of layer and attention, which are the same in all layers."""
    [kind] = {(type(layer), type(layer.attention)) for layer in core.layers}
    return kind


@pytest.mark.parametrize("rate", [1, 2, 4, 8])
def test_the_papers_model_is_as_the_paper_has_it(rate: int) -> None:
    """The model has 64 and 64 slots, the rates of the figure, Transformer-XL's layer, and attention reconstruction."""
    core = build("compressive", **ctrl.paper_config(rate))
    assert core.tiers == [(Tier(64), Tier(64, rate, "conv"))] * 2
    assert kinds(core) == (PostNormLayer, RelativeAttention)
    assert core.reconstruction is ctrl.compressive.reconstruction.attention_reconstruction
    unrolled = core.unroll(torch.randn(2, 80, 5), core.initial_state(2), torch.zeros(2, 80, dtype=torch.bool))
    for layer in range(2):  # at rate 1 conv starts as a copy
        assert (unrolled.diagnostics[f"reconstruction_loss/layer{layer}/tier1"] > 1e-9) == (rate > 1)


def test_the_papers_sizes_can_be_chosen() -> None:
    options = ctrl.paper_config(2, layers=3, width=12, heads=3, slots=5, compressed_slots=7, compressor="max")
    core = build("compressive", **options)
    assert core.tiers == [(Tier(5), Tier(7, 2, "max"))] * 3
    assert (core.output_size, core.heads) == (12, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0}, "rate must be a whole number of at least 1, got 0"),
        ({"slots": 0}, "slots must be a whole number of at least 1, got 0"),
        ({"compressed_slots": 2.5}, "slots must be a whole number of at least 1, got 2.5"),
        ({"rate": 65}, "rate = 65 slots, but tier 0 has only slots = 64"),
        ({"heads": 5}, "heads must divide width, got heads = 5 and width = 64"),
        ({"compressor": "zip"}, "unknown compressor 'zip'"),
    ],
)
def test_what_does_not_fit_the_papers_model_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("compressive", **ctrl.paper_config(**options))


@pytest.mark.parametrize(
    ("option", "valid"),
    [("position", "'age', 'sinusoidal'"), ("residual", "'gated', 'plain', 'post_norm', 'pre_norm'")],
)
def test_unknown_kinds_are_answered_with_the_valid_ones(option: str, valid: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {option} 'gru'; valid are {valid}"):
        build("compressive", **{option: "gru"})


def test_cores_without_compression_differ_in_their_layer() -> None:
    sizes = {"layers": 1, "width": 12, "heads": 3, "slots": 9}
    gtrxl, transformer_xl = build("gtrxl", feedforward=7, **sizes), build("transformer_xl", **sizes)
    assert kinds(gtrxl) == (GatedLayer, RelativeAttention)
    assert kinds(transformer_xl) == (PlainLayer, AgeAttention)
    assert gtrxl.layers[0].widen.out_features == 7
    for core in (gtrxl, transformer_xl):
        assert core.tiers == [(Tier(9),)]
        assert (core.output_size, core.heads) == (12, 3)
        assert core.compression_parameters() == []


def test_presets_of_other_papers_neither_forget_nor_know_the_time() -> None:
    for core in (build("gtrxl"), build("compressive", **ctrl.paper_config())):
        assert core.initial_state(1).carried.shape[2] == 0
        assert not [name for name, _ in core.named_parameters() if "clock" in name or "forget" in name]


@pytest.mark.parametrize("position", ["age", "sinusoidal"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_all_layers_act_in_place_with_positions_by_age(position: str, residual: str) -> None:
    """Law 1 says that both forms of acting mean the same."""
    core = build("compressive", position=position, residual=residual)
    assert core.acts_in_place == (position == "age")
    assert type(core.acting(core.initial_state(2))) is (CompressiveActing if position == "age" else PlainActing)


def test_a_plain_layer_has_no_feedforward_part() -> None:
    with pytest.raises(
        ValueError, match="residual='plain' has no feed-forward part, got feedforward = 32; use residual"
    ):
        build("compressive", feedforward=32)
