"""`save_core` and `load_core`: nothing is lost, and files that are damaged or ask for something else are refused."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_laws import BATCH, INPUTS, LENGTH, OPTIONS, build
from torch import Tensor, nn

import ctrl
from ctrl import CompressiveCore, MemoryCore, Tier
from ctrl.compressive.compressors import MeanCompressor
from ctrl.core_file import KEY
from ctrl.tensor_file import _checksum


@pytest.fixture(autouse=True)
def registries_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the cores and compressors that a test registers."""
    monkeypatch.setattr(ctrl, "_CORES", dict(ctrl._CORES))
    monkeypatch.setattr("ctrl.compressive.compressors._COMPRESSORS", dict(ctrl.compressive.compressors._COMPRESSORS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.safetensors"


def assert_same(one: MemoryCore[Any], other: MemoryCore[Any]) -> None:
    """Compare tensors, outputs, states and acting of two cores, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    assert type(one) is type(other) and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)
    inputs, reset = torch.randn(BATCH, LENGTH, INPUTS).to(one.dtype), torch.rand(BATCH, LENGTH) < 0.1
    unrolled = [core.unroll(inputs, core.initial_state(BATCH), reset) for core in (one, other)]
    assert torch.equal(unrolled[0].outputs, unrolled[1].outputs)
    assert torch.equal(unrolled[0].reconstruction_loss, unrolled[1].reconstruction_loss)
    assert all(map(torch.equal, unrolled[0].state, unrolled[1].state))
    acting = [core.acting(core.make_state(leaf.clone() for leaf in unrolled[0].state)) for core in (one, other)]
    assert torch.equal(*(each.step(inputs[:, 0], reset[:, 0]) for each in acting))


OTHER_DTYPES = [
    ("compressive, most missed", torch.float16),
    ("the paper's", torch.bfloat16),
    ("the paper's", torch.float64),
    ("lstm, two layers", torch.bfloat16),
]


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in OPTIONS), *OTHER_DTYPES], ids=str)
def test_every_core_comes_back_bit_for_bit(name: str, dtype: torch.dtype, path: Path) -> None:
    core = build(name).to(dtype)
    core.adapt({"longest_time": 17.0})
    ctrl.save_core(core, path)
    before = torch.get_rng_state()
    loaded = ctrl.load_core(path)
    assert torch.equal(before, torch.get_rng_state()), "loading draws no random numbers"
    assert ctrl.core_config(loaded) == ctrl.core_config(core)
    assert_same(core, loaded)


def test_a_core_that_its_class_built_comes_back(path: Path) -> None:
    tiers = [Tier(4), Tier(3, 3, "conv")]
    core = CompressiveCore(INPUTS, width=8, heads=2, memory=tiers)
    tiers.append(Tier(2, 2))  # the core has its own tiers
    config = ctrl.core_config(core)
    assert (config.name, config.input_size) == ("compressive", INPUTS)
    assert config.options["memory"] == tiers[:2] and config.options["residual"] == "plain"
    ctrl.save_core(core, path)
    assert_same(core, ctrl.load_core(path))
    assert_same(pickle.loads(pickle.dumps(core)), ctrl.load_core(path))


def test_the_name_of_a_preset_is_kept(path: Path) -> None:
    core = ctrl.make_core("gtrxl", INPUTS, width=8, heads=2, slots=7)
    ctrl.save_core(core, path)
    loaded = ctrl.load_core(path)
    assert ctrl.core_config(loaded).name == "gtrxl" and ctrl.core_config(loaded).options["slots"] == 7


def test_adapted_settings_are_in_the_file(path: Path) -> None:
    core = build("compressive")
    assert isinstance(core, CompressiveCore) and core.clock is not None
    core.adapt({"longest_time": 17.0})
    ctrl.save_core(core, path)
    loaded = ctrl.load_core(path)
    assert isinstance(loaded, CompressiveCore) and loaded.clock is not None and int(loaded.clock.end) == 17


def test_a_file_is_replaced_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = build("gru")
    ctrl.save_core(core, path)
    before = path.read_bytes()
    with torch.no_grad():
        next(core.parameters()).add_(1)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        ctrl.save_core(core, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    ctrl.save_core(core, path)
    assert path.read_bytes() != before


class Traced(ctrl.GRUCore):
    """A core of one's own whose constructor looks at its numbers, so that it can't be laid out without memory."""

    def __init__(self, input_size: int, *, width: int = 7, scale: tuple[float, ...] = (1.0,)) -> None:
        super().__init__(input_size, width=width)
        self.scale = scale
        self.largest = float(self.rnn.weight_ih_l0.detach().abs().max())


class Halved(MeanCompressor):
    """A compressor of one's own."""

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        return super().forward(blocks, importance) / 2


def test_an_own_core_needs_its_name(path: Path) -> None:
    with pytest.raises(ValueError, match=r"core must have a name, got a Traced; give it one with ctrl.register_core"):
        ctrl.save_core(Traced(INPUTS), path)
    ctrl.register_core("traced", Traced)
    core = ctrl.make_core("traced", INPUTS, scale=(0.5, 2.0))
    ctrl.save_core(core, path)
    loaded = ctrl.load_core(path)
    assert isinstance(loaded, Traced) and loaded.scale == (0.5, 2.0)
    assert_same(core, loaded)
    del ctrl._CORES["traced"]
    with pytest.raises(
        ValueError, match=r"memory.safetensors cannot be loaded: it needs the core 'traced', which is not registered"
    ):
        ctrl.load_core(path)


def test_an_own_compressor_needs_its_name(path: Path) -> None:
    ctrl.register_compressor("halved", Halved)
    core = ctrl.make_core("compressive", INPUTS, width=8, memory=[Tier(3), Tier(4, 2, "halved")])
    ctrl.save_core(core, path)
    assert_same(core, ctrl.load_core(path))
    del ctrl.compressive.compressors._COMPRESSORS["halved"]
    with pytest.raises(ValueError, match=r"needs the compressor 'halved', .* ctrl.register_compressor\('halved', "):
        ctrl.load_core(path)


def test_options_that_are_no_data_are_refused(path: Path) -> None:
    def gated(size: int, *, make: Any = ctrl.GRUCore) -> MemoryCore[Any]:
        return make(size, width=7)

    ctrl.register_core("gated", gated)
    with pytest.raises(
        ValueError, match="option make must be of numbers, texts, lists, dicts and Tier to be saved, got"
    ):
        ctrl.save_core(ctrl.make_core("gated", INPUTS), path)
    assert not path.exists()


def test_a_core_that_was_changed_after_it_was_built_is_refused(path: Path) -> None:
    core = build("gru")
    core.extra = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"must have the tensors that its options build, but extra.bias is"):
        ctrl.save_core(core, path)


def test_numbers_that_are_not_finite_are_not_saved(path: Path) -> None:
    core = build("lstm")
    with torch.no_grad():
        core.rnn.weight_hh_l0[0, 0] = torch.nan  # type: ignore[union-attr, index, operator]
    with pytest.raises(ValueError, match="tensor rnn.weight_hh_l0 must be finite"):
        ctrl.save_core(core, path)
    assert not path.exists()


def test_weights_go_into_a_core_of_the_same_kind(path: Path) -> None:
    core = build("compressive")
    ctrl.save_core(core, path)
    options = ctrl.core_config(core).options
    into = CompressiveCore(INPUTS, **options)
    assert ctrl.load_core(path, into=into) is into
    assert_same(core, into)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("compressive", {"heads": 4}),
        ("compressive", {"memory": [Tier(4), Tier(4, 3, "conv")]}),
        ("compressive", {"width": 16}),
        ("compressive", {"novelty_gain": 0.0, "memory": [Tier(4), Tier(3, 3, "mean")]}),
        ("gru", {"width": 8}),
    ],
    ids=lambda given: str(given)[:30],
)
def test_weights_of_another_kind_are_refused(name: str, options: dict[str, Any], path: Path) -> None:
    """A tier with another number of slots has weights of the same shapes, but they mean something else."""
    ctrl.save_core(build("compressive"), path)
    base = {"layers": 2, "width": 8, "heads": 2, "memory": [Tier(4), Tier(3, 3, "conv")]} if name != "gru" else {}
    into = ctrl.make_core(name, INPUTS, **{**base, **options})
    before = {key: tensor.clone() for key, tensor in into.state_dict().items()}
    with pytest.raises(ValueError, match=r"holds a CompressiveCore of .*, but `into` is a"):
        ctrl.load_core(path, into=into)
    assert all(torch.equal(before[key], tensor) for key, tensor in into.state_dict().items())


def rewrite(path: Path, change: Any = None, tensors: Any = None) -> None:
    """Write a file anew, with a right checksum, after changes of its JSON object and its tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()[KEY])
    content = safetensors.torch.load(path.read_bytes())
    if change is not None:
        data = change(data) or data
    if tensors is not None:
        content = tensors(content) or content
    text = data if isinstance(data, str) else json.dumps(data)
    path.write_bytes(safetensors.torch.save(content, {KEY: text, "sha256": _checksum(text, content)}))


def with_options(**options: Any) -> Any:
    return lambda data: {**data, "options": {**data["options"], **options}}


HUGE = 10**12
TIERS = [{"Tier": {"slots": HUGE, "rate": 1, "compressor": "mean"}}]
BAD_JSON: dict[str, tuple[Any, str]] = {
    "a newer version": (lambda data: {**data, "version": 2}, r"version 1, got 2 \(written by ctrl 0\.1\.0\)"),
    "no version": (lambda data: {**data, "version": None}, "version 1, got None"),
    "a version that is true": (lambda data: {**data, "version": True}, "version 1, got True"),
    "no name": (lambda data: {**data, "core": 3}, "its core must be str, got 3"),
    "another name": (
        lambda data: {**data, "core": "os.system"},
        r"needs the core 'os.system', which is not registered",
    ),
    "no object": (lambda data: "[1]", r"its JSON must be an object, got \[1\]"),
    "no JSON": (lambda data: "{", "its JSON is damaged"),
    "NaN": (lambda data: '{"version": NaN}', "NaN is no number of JSON"),
    "deep": (lambda data: "[" * 100_000, "its JSON is damaged"),
    "options as a list": (lambda data: {**data, "options": []}, r"its options must be dict, got \[\]"),
    "an unknown dtype": (
        lambda data: {**data, "dtype": "float32"},
        "its dtype must be one of torch.float16, .*, got float32",
    ),
    "another dtype": (
        lambda data: {**data, "dtype": "torch.float64"},
        "must be torch.float64 of .*, got torch.float32",
    ),
    "an unknown option": (with_options(slots=3), "does not take slots; its options are"),
    "an option of a wrong type": (with_options(width="8"), "width must be a whole number of at least 1, got '8'"),
    "a width of 0": (with_options(width=0), "width must be a whole number of at least 1, got 0"),
    "another width": (with_options(width=16), r"tensor .* must be torch.float32 of .*16.*, got"),
    "a huge width": (with_options(width=HUGE), f"its width cannot be {HUGE}, the file holds"),
    "a width beyond all numbers": (with_options(width=10**4000), "its width cannot be 1000000"),
    "many layers": (with_options(layers=HUGE), f"its layers cannot be {HUGE}"),
    "many heads": (with_options(heads=HUGE), f"its heads cannot be {HUGE}"),
    "a huge input": (lambda data: {**data, "input_size": HUGE}, f"its input_size cannot be {HUGE}"),
    "many slots": (with_options(memory=TIERS), "the state of core 'compressive' must take at most"),
    "many slots in a table": (with_options(memory=TIERS, position="sinusoidal"), "must take at most"),
    "a gain that is no number": (with_options(novelty_gain="a"), "novelty_gain must be a finite number"),
    "tiers of another form": (with_options(memory=[{"Tier": {"slots": 3, "rates": 1}}]), "Tier does not fit"),
    "an object of another kind": (with_options(memory=[{"Path": {}}]), "an option must be plain data"),
    "a tier without slots": (with_options(memory=[{"Tier": {"slots": 0}}]), "slots must be a whole number"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_a_wrong_config_is_refused(kind: str, path: Path) -> None:
    ctrl.save_core(build("compressive"), path)
    change, words = BAD_JSON[kind]
    rewrite(path, change)
    with pytest.raises(ValueError, match=f"memory.safetensors cannot be loaded: .*{words}"):
        ctrl.load_core(path)


def without_embed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("embed")}


BAD_TENSORS: dict[str, tuple[Any, str]] = {
    "missing": (without_embed, "it lacks the tensors embed.bias, embed.weight"),
    "extra": (lambda all_: {**all_, "more": torch.zeros(3)}, "it has the tensors more, which nothing here uses"),
    "another shape": (
        lambda all_: {**all_, "embed.bias": torch.zeros(9)},
        r"embed.bias must be torch.float32 of \(8,\)",
    ),
    "another dtype": (
        lambda all_: {**all_, "embed.bias": torch.zeros(8).half()},
        r"embed.bias must be .*got torch.float16",
    ),
    "NaN": (lambda all_: {**all_, "embed.bias": torch.full((8,), torch.nan)}, "tensor embed.bias must be finite"),
    "infinity": (lambda all_: {**all_, "embed.bias": torch.full((8,), torch.inf)}, "tensor embed.bias must be finite"),
    "a time before the first": (
        lambda all_: {**all_, "clock.end": torch.tensor(-3)},
        "clock.end must be at least 0, got -3",
    ),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_wrong_tensors_are_refused(kind: str, path: Path) -> None:
    core = build("compressive")
    ctrl.save_core(core, path)
    change, words = BAD_TENSORS[kind]
    rewrite(path, tensors=change)
    before = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    for options in ({}, {"into": core}):
        with pytest.raises(ValueError, match=f"memory.safetensors cannot be loaded: .*{words}"):
            ctrl.load_core(path, **options)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in core.state_dict().items())


def test_a_damaged_file_is_refused(path: Path) -> None:
    """Truncated anywhere, or with a flipped bit anywhere: in the header, in a weight, in the checksum."""
    ctrl.save_core(build("gru"), path)
    whole = path.read_bytes()
    random = torch.Generator().manual_seed(0)
    places = torch.randint(len(whole), (60,), generator=random).tolist()
    for place in [0, 3, 7, 8, 9, len(whole) - 1, *places]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for damaged in (whole[:place], bytes(flipped)):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=re.escape(f"{path} cannot be loaded: ")):
                ctrl.load_core(path)


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="memory.safetensors"):
        ctrl.load_core(path)
    os.mkfifo(path)
    for place in (path, tmp_path):
        with pytest.raises(ValueError, match="it is no file"):
            ctrl.load_core(place)
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match="it is no file of this kind, its metadata lacks 'ctrl_core'"):
        ctrl.load_core(other)
    header = b'{"weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    other.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="it is damaged or no safetensors file"):
        ctrl.load_core(other)
