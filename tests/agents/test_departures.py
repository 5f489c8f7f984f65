"""Tables of departures from stable-baselines3's PPO: they agree with the code, and leave nothing out."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule

from ctrl.agents import MemoryImpala, MemoryPolicy, MemoryPPO
from ctrl.agents.utils.other_names import ALGORITHMS_OWN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "implementation-details.md"
SECTION = PAGE.read_text(encoding="utf-8").split("### Departures from stable-baselines3's PPO")[1].split("\n## ")[0]
MISSING = "–"


def table(first: str) -> dict[str, list[str]]:
    """Return the table whose first column has this title: the other cells of each row, by the name in the first."""
    rows = SECTION.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {name.strip(" `"): rest for name, *rest in cells}


ARGUMENTS, ENTRIES = table("argument"), table("entry")


def stated(cell: str) -> Any:
    """Return the content of a cell: a value, the two ends of a schedule, or `MISSING`."""
    quoted = re.findall(r"`(.*?)`", cell)
    if cell == MISSING:
        return MISSING
    if " to " in cell:
        return [ast.literal_eval(text) for text in quoted]
    return quoted[0] if quoted[0] in ("Tanh", "ReLU") else ast.literal_eval(quoted[0])


def default(kind: type, name: str) -> Any:
    """Return a default value in the form that `stated` returns."""
    parameters = inspect.signature(kind).parameters
    if name not in parameters:
        return MISSING
    value = parameters[name].default
    if isinstance(value, LinearSchedule):
        return [value(1.0), value(0.0)]
    return value.__name__ if isinstance(value, type) else value


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_have_the_stated_defaults(name: str) -> None:
    for kind, cell in zip((PPO, MemoryPPO, MemoryImpala), ARGUMENTS[name], strict=False):
        assert stated(cell) == default(kind, name), kind


def test_every_argument_that_departs_is_stated() -> None:
    names = inspect.signature(PPO).parameters.keys() | inspect.signature(MemoryPPO).parameters.keys()
    of_all = {name: [default(kind, name) for kind in (PPO, MemoryPPO, MemoryImpala)] for name in names}
    assert ARGUMENTS.keys() == {name for name, (theirs, *ours) in of_all.items() if ours != [theirs, theirs]}


def shared(name: str) -> bool:
    """Return True if `MemoryPolicy` passes an argument on unchanged."""
    return name not in inspect.signature(MemoryPolicy).parameters


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_policy_kwargs_have_the_stated_defaults(name: str) -> None:
    theirs, ours, _ = ENTRIES[name]
    assert stated(theirs) == default(ActorCriticPolicy, name)
    assert stated(ours) == default(ActorCriticPolicy if shared(name) else MemoryPolicy, name)


def test_every_entry_of_policy_kwargs_that_departs_is_stated() -> None:
    given = {*ALGORITHMS_OWN, "observation_space", "action_space", "lr_schedule", "kwargs"}
    own = inspect.signature(MemoryPolicy).parameters.keys() - given
    assert ENTRIES.keys() == own | {"optimizer_kwargs", "share_features_extractor"}


@pytest.mark.parametrize("name", ["net_arch", "optimizer_kwargs"])
def test_what_none_stands_for(name: str) -> None:
    models = PPO("MlpPolicy", "CartPole-v1", device="cpu"), MemoryPPO("MlpMemoryPolicy", "CartPole-v1", device="cpu")
    for model, cell in zip(models, ENTRIES[name], strict=False):
        assert ast.literal_eval(re.findall(r"`(.*?)`", cell)[1]) == getattr(model.policy, name)
