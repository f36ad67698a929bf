"""Call something that may hang, and stop waiting for it in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from cache.errors import BudgetExceeded, TooBusy

T = TypeVar("T")


class BoundedCalls:
    """Calls in threads of their own, so many at once.

    No client library bounds everything: a server that is frozen, or sends a byte a second, holds
    its caller for ever. Here it holds a thread, and `calls_max` of them are all it can hold.
    """

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._slots = threading.BoundedSemaphore(calls_max)

    def call(self, function: Callable[[], T], *, budget_s: float) -> T:
        """The function's answer, or what it raised; else TooBusy at once, or BudgetExceeded."""
        if not self._slots.acquire(blocking=False):
            raise TooBusy
        answer: Future[T] = Future()
        # A daemon: a call that hangs must not keep the process from ending.
        thread = threading.Thread(
            target=self._run, args=(function, answer), name="cache-lookup", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no more threads
            self._slots.release()
            raise TooBusy from error
        try:
            return answer.result(budget_s)
        except TimeoutError as error:
            if answer.done():
                raise
            raise BudgetExceeded from error

    def is_idle_within(self, timeout_s: float) -> bool:
        """Wait for the calls in progress; False where some are still hanging after that."""
        deadline = time.monotonic() + timeout_s
        num = 0
        while num < self._calls_max and self._slots.acquire(
            timeout=max(0.0, deadline - time.monotonic())
        ):
            num += 1
        if num:
            self._slots.release(num)
        return num == self._calls_max

    def _run(self, function: Callable[[], T], answer: Future[T]) -> None:
        try:
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001  handed to the caller, who waits for it
            answer.set_exception(error)
        finally:
            self._slots.release()
