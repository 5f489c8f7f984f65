"""Arguments of an algorithm as attributes: numbers are plain ones, and a change takes effect or raises an error."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from ctrl.agents.utils.validation import check_numbers, plain

_MISSING = object()


class ChangeableArguments:
    """Base of algorithms whose arguments may be changed after they were built, also during training.

    A subclass sets `_built` once it is complete, and checks all arguments in `_check_arguments`.
    """

    fixed: ClassVar[tuple[str, ...]] = ()
    """Arguments that decide sizes or parts of the model, and stay as they were when it was built."""
    fixed_while_acting: ClassVar[tuple[str, ...]] = ()
    """Arguments that actor processes have got; they may be changed between two calls of `learn`."""
    changeable: ClassVar[tuple[str, ...]] = ()
    """Arguments whose change takes effect at the next rollout or update."""
    _built = False
    _current_progress_remaining: float
    _memory_lr_schedule: FloatSchedule
    memory_learning_rate: float | Schedule

    def _setup_lr_schedule(self) -> None:
        """Make `lr_schedule` from `learning_rate`; stable-baselines3 has it."""
        super()._setup_lr_schedule()  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in (*self.fixed, *self.fixed_while_acting, *self.changeable):
            super().__setattr__(name, value)
            return
        value, before = plain(value), getattr(self, name, _MISSING)
        if self._built and value is not before and value != before:
            self._refuse_fixed(name, value, before)
        super().__setattr__(name, value)
        if self._built:
            self._checked(name, before)

    def _refuse_fixed(self, name: str, value: Any, before: Any) -> None:
        if name in self.fixed:
            raise ValueError(
                f"{name} is fixed when the model is built, at {before!r}, so it can't become {value!r}; build another "
                "model, and give it the weights by policy.load_state_dict"
            )
        if name in self.fixed_while_acting and getattr(self, "_actors", None) is not None:
            raise ValueError(f"{name} is fixed while actors run, at {before!r}, so it can't become {value!r}")

    def _checked(self, name: str, before: Any) -> None:
        """Check a changed argument, and put the old one back where it does not fit."""
        try:
            self._check_arguments()
        except ValueError:
            super().__setattr__(name, before)
            raise
        self._follow(name)

    def _check_arguments(self) -> None:
        """Raise a ValueError that names the first argument that does not fit."""
        raise NotImplementedError

    def _check_shared(self) -> None:
        """Check the arguments that both algorithms have."""
        check_numbers(
            at_least_1=self._named("n_steps"),
            positive=self._named("learning_rate", "memory_learning_rate", "max_grad_norm", "memory_max_grad_norm"),
            not_negative=self._named("ent_coef", "vf_coef", "gamma"),
            at_most_1=self._named("gamma"),
            constant=("gamma",),
        )

    def _follow(self, name: str) -> None:
        """Adapt what was made of an argument that has changed."""
        if name == "learning_rate":
            self._setup_lr_schedule()
        elif name == "memory_learning_rate":
            self._memory_lr_schedule = FloatSchedule(self.memory_learning_rate)

    def _named(self, *names: str) -> dict[str, Any]:
        """Return attributes by name, as `check_numbers` takes them."""
        return {name: getattr(self, name) for name in names}

    def now(self, name: str) -> float:
        """Return a coefficient at the present progress: a number as it is, a schedule's value.

        :raises ValueError: where a schedule gives no finite number
        """
        value = getattr(self, name)
        if not callable(value):
            return float(value)
        found = plain(value(self._current_progress_remaining))
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise ValueError(f"{name} must be a schedule of finite numbers, got {found!r}")
        return float(found)
