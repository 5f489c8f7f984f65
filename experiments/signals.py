"""Ctrl-C as a request: training stops between two steps, when the weights are whole and can be saved."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequests:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second SIGINT interrupts at once.

    :param parent: process id of whoever started this run; its death counts as a request
    """

    def __init__(self, parent: int | None = None) -> None:
        self.parent = parent
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether training should stop."""
        return self.signal is not None or (self.parent is not None and os.getppid() != self.parent)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)

    def __enter__(self) -> StopRequests:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
