"""What computes beside the engine leaves no threads behind."""

from __future__ import annotations

import threading

import pytest

from workers.denoising.threads import run_apart


def test_the_thread_is_gone_when_the_value_is_there() -> None:
    thread = run_apart(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_an_error_comes_out_as_it_was() -> None:
    def fail() -> None:
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        run_apart(fail)
