from __future__ import annotations

import os
import signal

import pytest

from ctrl.experiments.runs.signals import StopRequests


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_request(number: signal.Signals, exit_code: int) -> None:
    before = signal.getsignal(number)
    with StopRequests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.exit_code == exit_code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts() -> None:
    with StopRequests():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_death_of_the_parent_is_a_request() -> None:
    assert not StopRequests(parent=os.getppid()).requested
    assert StopRequests(parent=os.getppid() + 1).requested
