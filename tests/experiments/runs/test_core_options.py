from __future__ import annotations

from dataclasses import fields

import pytest

import ctrl
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import MemoryOptions, PPOOptions
from ctrl.experiments.runs.core_options import check_options, cores_with, of_core, parameters

COMPRESSING = ["compressive"]
ATTENDING = [*COMPRESSING, "transformer_xl", "gtrxl"]
RECURRENT = ["lstm", "gru", "mingru"]
HAVING = {
    "width": ctrl.core_names(),
    "layers": ctrl.core_names(),
    "heads": ATTENDING,
    "memory": ATTENDING,
    "compressor": COMPRESSING,
    "reconstruction": COMPRESSING,
    "compression_gradient": COMPRESSING,
    "residual": COMPRESSING,
    "forgetting": COMPRESSING,
    "clock": COMPRESSING,
    "chrono_horizon": RECURRENT,
    "memory_learning_rate": COMPRESSING,
    "memory_max_grad_norm": COMPRESSING,
}


@pytest.mark.parametrize("option", HAVING)
def test_the_cores_signatures_say_who_has_an_option(option: str) -> None:
    assert cores_with(option) == HAVING[option]


def test_every_option_is_one_of_some_core_and_may_be_left_open() -> None:
    assert all(cores_with(field.name) and field.default is None for field in fields(MemoryOptions))
    assert MemoryOptions().of_some_cores == PPOOptions(learning_rate=0.1, n_epochs=3).of_some_cores == []


def test_what_is_given_as_the_default_is_given() -> None:
    """Otherwise the user would not notice that the option is ignored."""
    heads = parameters("compressive")["heads"].default
    with pytest.raises(UserError, match="--heads is no option of lstm, gru; it is one of compressive, trans"):
        check_options(["lstm", "gru"], MemoryOptions(heads=heads))
    with pytest.raises(UserError, match="--forgetting is no option of lstm"):
        check_options(["lstm"], MemoryOptions(forgetting=False))
    with pytest.raises(UserError, match="--memory-max-grad-norm is no option of gtrxl"):
        check_options(["gtrxl"], MemoryOptions(width=8), PPOOptions(memory_max_grad_norm=0.1))


def test_one_core_that_has_it_is_enough() -> None:
    check_options(["lstm", "compressive"], MemoryOptions(memory="4,4x2", chrono_horizon=9))


def test_each_core_gets_its_own() -> None:
    memory = MemoryOptions(width=8, memory="4,4x2", clock=False, chrono_horizon=9)
    assert of_core(memory, "lstm") == MemoryOptions(width=8, chrono_horizon=9)
    assert of_core(memory, "gtrxl") == MemoryOptions(width=8, memory="4,4x2")
    assert of_core(memory, "compressive") == MemoryOptions(width=8, memory="4,4x2", clock=False)
    assert of_core(PPOOptions(gamma=0.5, memory_learning_rate=1e-4), "gru") == PPOOptions(gamma=0.5)
