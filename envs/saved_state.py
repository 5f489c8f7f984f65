"""State of a task's envs as plain data and arrays, so that a run can be stopped and continued in mid-episode."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ctrl.envs.randomness import derive

_GENERATOR = ("_np_random", "_np_random_seed")


class SavedState:
    """Methods `get_state` and `set_state` of an env whose `rules` state its dynamics."""

    KEPT: ClassVar[tuple[str, ...]]
    """Attributes that the env keeps beside the state of its episodes: numbers, or arrays [B]."""
    rules: Any
    _state: Any

    def get_state(self) -> dict[str, Any]:
        """Return the env's whole state as plain data and arrays, so that `set_state` continues its episodes."""
        kept = {name: getattr(self, name) for name in (*self.KEPT, *_GENERATOR)}
        copied = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in kept.items()}
        leaves = None if self._state is None else [leaf.copy() for leaf in self._state]
        return {"rules": repr(self.rules), "kept": copied, "leaves": leaves}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue the episodes of an env with the same arguments; `state` comes from its `get_state`.

        :raises ValueError: if `state` comes from a task with other arguments or another number of copies, or is damaged
        """
        if not isinstance(state, dict) or set(state) != {"rules", "kept", "leaves"}:
            raise ValueError("state must be the result of get_state().")
        if state["rules"] != repr(self.rules):
            raise ValueError(f"state belongs to {state['rules']}, but this env has {self.rules!r}.")
        copies = getattr(self, "num_envs", 1)
        kept, leaves = self._checked(state["kept"], copies), state["leaves"]
        self._state = None if leaves is None else checked_leaves(self.rules, leaves, copies)
        for name, value in kept.items():
            setattr(self, name, value)

    def _checked(self, kept: dict[str, Any], copies: int) -> dict[str, Any]:
        if not isinstance(kept, dict) or set(kept) != {*self.KEPT, *_GENERATOR}:
            raise ValueError(f"state must keep {sorted((*self.KEPT, *_GENERATOR))}.")
        for name in self.KEPT:
            value = kept[name]
            if isinstance(value, np.ndarray) and value.shape != (copies,):
                raise ValueError(f"state has {name} of shape {value.shape}, but there are {copies} copies.")
        return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in kept.items()}


def checked_leaves(rules: Any, leaves: list[Any], copies: int) -> Any:
    """Return saved leaves as the rules' own state.

    :raises ValueError: if their shapes and dtypes are not those of new episodes
    """
    fresh = rules.begin(derive(np.zeros(copies, np.uint64), np.zeros(copies, np.int64)), np.zeros(copies))
    expected = [(leaf.shape, leaf.dtype) for leaf in fresh]
    found = [(leaf.shape, leaf.dtype) for leaf in map(np.asarray, leaves)]
    if found != expected:
        raise ValueError(f"state has leaves {found}, expected {expected}.")
    return type(fresh)(*(leaf.copy() for leaf in leaves))
