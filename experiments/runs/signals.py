"""Ctrl-C as a request: training stops between two steps, when the weights are complete and can be saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequests:
    """Context in which the first SIGINT or SIGTERM sets `requested`; a SIGINT after that interrupts at once.

    :param parent: id of the process that started this run; its end counts as a request
    """

    def __init__(self, parent: int | None = None) -> None:
        self.parent = parent
        self.signal: int | None = None
        self.at_once = False
        """True where a signal interrupts at once: nothing is in progress that could end in order."""
        self._held = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True if training should stop."""
        return self.signal is not None or (self.parent is not None and os.getppid() != self.parent)

    @property
    def exit_code(self) -> int:
        """Exit code that a shell expects of a process ended by a signal."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal interrupt the `with` block, which must be short: it writes how the run ended."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def __enter__(self) -> StopRequests:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is not None and number == signal.SIGINT
        self.signal = number
        if (again or self.at_once) and not self._held:
            raise KeyboardInterrupt
