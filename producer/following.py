"""Follows jobs to their ends by reading their traces, ever less often while nothing changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from producer.errors import BrokerUnavailable, WaitTimeout
from producer.trace import Trace

POLL_MIN_S: Final = 0.02
POLL_MAX_S: Final = 0.1
POLL_GROWTH: Final = 1.3
RESTART_PATIENCE_S: Final = 30.0

AnswerT = TypeVar("AnswerT")


class _Pace:
    """Sleeps between two looks, and knows when to give up."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._give_up_at = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        self._delay_s = POLL_MIN_S

    def quicken(self) -> None:
        self._delay_s = POLL_MIN_S

    def sleep(self, waiting_for: Trace) -> None:
        """Sleep; raises WaitTimeout when the time is over."""
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            raise WaitTimeout(waiting_for.job_id, self.timeout_s or 0.0, waiting_for.status)
        time.sleep(min(self._delay_s, left_s))
        self._delay_s = min(self._delay_s * POLL_GROWTH, POLL_MAX_S)


def changes(read: Callable[[], Trace], *, timeout_s: float | None) -> Iterator[Trace]:
    """Yield the job now and at each change; the last one is terminal. Raises WaitTimeout."""
    pace, seen = _Pace(timeout_s), None
    while True:
        trace = read()
        if trace != seen:
            yield trace
            seen = trace
            pace.quicken()
        if trace.status.is_terminal:
            return
        pace.sleep(trace)


def ends(
    read: Callable[[Sequence[str]], list[Trace]],
    job_ids: Sequence[str],
    *,
    timeout_s: float | None,
    on_look: Callable[[list[Trace]], None] = lambda traces: None,
) -> Iterator[Trace]:
    """Yield each job once it has ended, the first to end first. Raises WaitTimeout.

    `on_look` is given all jobs that had not ended, at each look.
    """
    pace, waiting = _Pace(timeout_s), list(dict.fromkeys(job_ids))
    while waiting:
        traces = read(waiting)
        on_look(traces)
        ended = [trace for trace in traces if trace.status.is_terminal]
        yield from ended
        left = [trace for trace in traces if not trace.status.is_terminal]
        waiting = [trace.job_id for trace in left]
        if ended:
            pace.quicken()
        if left:
            pace.sleep(left[0])


def outlasting(patience_s: float, read: Callable[[], AnswerT]) -> AnswerT:
    """Read, waiting for a broker that is away, at most `patience_s`: it may be restarting."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return read()
        except BrokerUnavailable:
            if time.monotonic() >= give_up_at:
                raise
        time.sleep(POLL_MAX_S)
