"""Brings back jobs whose worker died or whose message was lost (docs/state.md, section 2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pydantic import ValidationError

from producer.contract import ErrorCode, GenerationJob, Priority, Status
from producer.errors import UnknownJob
from producer.trace import Traces, WaitingJob
from workers.app import Publisher
from workers.ledger import LapsedJob, Ledger
from workers.unclaimed import UnclaimedJobs

logger = logging.getLogger(__name__)

_JOBS_PER_RUN_MAX = 1_000
_FORGOTTEN_AFTER_S = 60.0


class BrokerLists(Protocol):
    """What the rescuer asks of the broker."""

    def length(self, queue: str, priority: Priority) -> int:
        """Messages that wait in the list of that queue and priority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueReport:
    """What one run did."""

    taken_back: int  #: jobs of dead workers that were sent again
    sent_again: int  #: jobs whose message was lost
    given_up: int  #: jobs out of attempts
    expired: int  #: jobs whose deadline passed before anybody claimed them


class Rescuer:
    """One bounded pass a run; every step is harmless when another rescuer does the same."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        traces: Traces,
        publisher: Publisher,
        unclaimed: UnclaimedJobs,
        lists: BrokerLists,
        attempts_max: int,
        grace_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._traces = traces
        self._publisher = publisher
        self._unclaimed = unclaimed
        self._lists = lists
        self._attempts_max = attempts_max
        self._grace_s = grace_s
        self._clock = clock

    def run(self) -> RescueReport:
        """Look at jobs of dead workers first, then at those nobody has claimed."""
        lapsed = self._ledger.lapsed(limit=_JOBS_PER_RUN_MAX)
        exhausted = [job for job in lapsed if job.attempt >= self._attempts_max]
        returning = [job for job in lapsed if job.attempt < self._attempts_max]
        for job in returning:
            self._take_back(job)
        num_expired, lost = 0, []
        for waiting in list(self._traces.waiting(limit_per_list=_JOBS_PER_RUN_MAX)):
            with _one_job_alone(waiting.job_id):
                if self._expire(waiting):
                    num_expired += 1
                elif self._is_lost(waiting):
                    lost.append(waiting)
        # After the look at all lists: a message sent again makes its list look alive.
        for waiting in lost:
            with _one_job_alone(waiting.job_id):
                self._send_again(waiting)
        return RescueReport(
            taken_back=len(returning),
            sent_again=len(lost) + sum(self._trace_again(job) for job in self._forgotten()),
            given_up=sum(self._give_up(job) for job in exhausted),
            expired=num_expired,
        )

    def _take_back(self, lapsed: LapsedJob) -> None:
        """Publish first: a crash before `give_back` leaves the job lapsed, for the next run."""
        job_id = str(lapsed.job_id)
        logger.warning("worker of attempt %d is gone", lapsed.attempt, extra={"job_id": job_id})
        self._traces.mark_sent_again(job_id, expected=Status.RUNNING)
        self._publisher.send_job(job_id, lapsed.job, queue=lapsed.queue)
        self._ledger.give_back(lapsed)

    def _forgotten(self) -> list[LapsedJob]:
        """Jobs given back long ago; after a loss of the broker's data only their rows remain."""
        return self._ledger.given_back(older_than_s=_FORGOTTEN_AFTER_S, limit=_JOBS_PER_RUN_MAX)

    def _trace_again(self, job: LapsedJob) -> bool:
        """Send a job again whose trace is gone too; one that has a trace waits its turn."""
        job_id = str(job.job_id)
        try:
            self._traces.read(job_id)
        except UnknownJob:
            self._traces.create(job_id, job.job, payload_hash=job.job.payload_hash, queue=job.queue)
        else:
            return False
        logger.warning("trace and message lost, sent again", extra={"job_id": job_id})
        self._publisher.send_job(job_id, job.job, queue=job.queue)
        return True

    def _give_up(self, lapsed: LapsedJob) -> bool:
        """In one transaction: a job given back with no attempt left would be nobody's."""
        ended = self._unclaimed.fail(
            str(lapsed.job_id),
            lapsed.job,
            queue=lapsed.queue,
            code=ErrorCode.ATTEMPTS_EXHAUSTED,
            message=f"none of {lapsed.attempt} attempts came to an end; see the workers' logs",
            attempt=lapsed.attempt,
        )
        return ended is not None

    def _is_lost(self, waiting: WaitingJob) -> bool:
        """A later job of its list was claimed, or the list is empty, and some time has passed."""
        if self._clock() - waiting.sent_at < self._grace_s:
            return False
        return waiting.is_overtaken or self._lists.length(waiting.queue, waiting.priority) == 0

    def _send_again(self, waiting: WaitingJob) -> None:
        trace = self._traces.read(waiting.job_id)
        logger.warning("message lost, sent again", extra={"job_id": waiting.job_id})
        self._traces.mark_sent_again(waiting.job_id, expected=Status.SUBMITTED)
        self._publisher.send_job(
            waiting.job_id, GenerationJob.model_validate(trace.job), queue=trace.queue
        )

    def _expire(self, waiting: WaitingJob) -> bool:
        now = datetime.fromtimestamp(self._clock(), UTC)
        job = GenerationJob.model_validate(self._traces.read(waiting.job_id).job)
        deadline_at = job.deadline_at(now)
        if deadline_at is None or deadline_at > now:
            return False
        ended = self._unclaimed.fail(
            waiting.job_id,
            job,
            queue=waiting.queue,
            code=ErrorCode.DEADLINE_EXCEEDED,
            message=f"not started within {job.deadline_s:g} s",
        )
        return ended is not None


@contextmanager
def _one_job_alone(job_id: str) -> Iterator[None]:
    """Let no trace that has just expired, or that another version wrote, hold up the others."""
    try:
        yield
    except (UnknownJob, ValidationError) as error:
        logger.error("cannot be rescued: %s", error, extra={"job_id": job_id})
