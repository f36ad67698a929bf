"""Ctrl-C and its kin: one KeyboardInterrupt, never in the middle of a start or of the stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruptions:
    """Turns the first signal into KeyboardInterrupt, and no later one."""

    def __init__(self) -> None:
        self._is_spent = self._is_held = self._is_pending = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._is_pending = True
        self._raise_pending()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put off the exception to the end of the block, which it must not tear apart."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self._raise_pending()

    def ignore(self) -> None:
        """Let the stop run undisturbed."""
        self._is_spent = True

    def _raise_pending(self) -> None:
        if self._is_pending and not self._is_held and not self._is_spent:
            self._is_spent = True
            raise KeyboardInterrupt


@contextmanager
def handled_interruptions() -> Iterator[Interruptions]:
    """Handle the signals that end a fleet; Python allows that in the main thread only."""
    handler = Interruptions()
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    # An ignored SIGHUP stays ignored: that is what nohup asks for.
    handled = [
        s for s in INTERRUPTIONS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN
    ]
    before = {s: signal.signal(s, handler) for s in handled}
    try:
        yield handler
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)
