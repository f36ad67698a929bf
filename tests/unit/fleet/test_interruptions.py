from __future__ import annotations

import signal
import threading

import pytest

from fleet.interruptions import INTERRUPTIONS, Interruptions, handled_interruptions


@pytest.mark.parametrize("signum", INTERRUPTIONS)
def test_the_first_signal_interrupts_and_later_ones_do_nothing(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with handled_interruptions():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)
        signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


def test_a_held_signal_interrupts_at_the_end_of_the_block() -> None:
    reached = []

    def start(interruptions: Interruptions) -> None:
        with interruptions.held():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end")

    with handled_interruptions() as interruptions, pytest.raises(KeyboardInterrupt):
        start(interruptions)
    assert reached == ["the end"]


def test_nothing_interrupts_a_stop() -> None:
    with handled_interruptions() as interruptions:
        interruptions.ignore()
        signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    def use() -> None:
        with handled_interruptions():
            pass

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
