"""Cores of one's own, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ctrl


@pytest.fixture(autouse=True)
def registry_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the cores that a test registers."""
    monkeypatch.setattr(ctrl, "_CORES", dict(ctrl._CORES))


class Own(ctrl.GRUCore):
    """A core that differs from others by its class alone."""


def test_a_registered_core_is_made_by_its_name() -> None:
    ctrl.register_core("own", Own)
    core = ctrl.make_core("own", 5, width=7)
    assert type(core) is Own and (core.input_size, core.output_size) == (5, 7)
    assert ctrl.core_names()[-1] == "own"
    with pytest.raises(ValueError, match="core 'own' does not take widht; its options are width, .* use width$"):
        ctrl.make_core("own", 5, widht=7)


def test_a_factory_may_take_any_options() -> None:
    def wide(size: int, **options: Any) -> ctrl.MemoryCore[Any]:
        return Own(size, width=11, **options)

    ctrl.register_core("wide", wide)
    core = ctrl.make_core("wide", 5, layers=2)
    assert isinstance(core, Own) and (core.input_size, core.width, core.layers) == (5, 11, 2)


@pytest.mark.parametrize(
    ("name", "factory", "words"),
    [
        (7, Own, "name must be a text and factory a class or function, got 7 and"),
        ("a number", 7, "name must be a text and factory a class or function, got 'a number' and 7"),
        ("lstm", Own, "core 'lstm' is already registered"),
        ("none", lambda: Own(5), "factory must take the input size as its first argument, got "),
        ("options", lambda **options: Own(**options), "factory must take the input size as its first argument, got "),
    ],
)
def test_names_and_factories_that_do_not_fit_are_refused(name: Any, factory: Any, words: str) -> None:
    before = dict(ctrl._CORES)
    with pytest.raises(ValueError, match=words):
        ctrl.register_core(name, factory)
    assert before == ctrl._CORES


def test_what_is_registered_must_build_a_core() -> None:
    ctrl.register_core("linear", lambda size: torch.nn.Linear(size, 3))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"core 'linear' must be a ctrl\.MemoryCore, got Linear"):
        ctrl.make_core("linear", 5)
