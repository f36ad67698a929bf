"""Traces: a submitted job's record in Valkey, which clients read (docs/state.md).

    nirvana:job:<id>              hash    wire form, payload hash, list, sequence, status, result
    nirvana:waiting:<list>        zset    ids of that list's jobs nobody has claimed, by sequence
    nirvana:claimed               hash    list -> highest sequence claimed from it
    nirvana:lists                 set     lists that ever had a job
    nirvana:sequence              int     the last sequence number given

A *list* is one queue at one priority, `<queue>:<number>`: within it the broker keeps the order, so
a job behind which a later one was claimed has lost its message.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, cast

import redis

from producer import trace_scripts as scripts
from producer.contract import GenerationJob, Priority, Status, canonical_json
from producer.errors import JobConflict, QueueFull, UnknownJob
from producer.result import JobResult

_LISTS: Final = "nirvana:lists"
_CLAIMED: Final = "nirvana:claimed"
_SEQUENCE: Final = "nirvana:sequence"
_READ_AT_ONCE: Final = 500  # traces, of some kilobytes each

_SCAN_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running job is."""

    steps_done: int  #: those skipped by a hit included
    steps_asked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What is known of a job, as of the last write."""

    job_id: str
    job: dict[str, Any]  #: the wire form, as submitted
    queue: str
    priority: Priority
    status: Status
    attempt: int
    progress: Progress | None
    result: JobResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """A job that nobody has claimed yet, as the rescuer sees it."""

    job_id: str
    queue: str
    priority: Priority
    sent_at: float  #: seconds since the epoch, of the last time it was published
    is_overtaken: bool  #: a job sent later into the same list was claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedJob:
    """Whose a job with a trace is."""

    job_id: str
    namespace: str
    user: str | None
    is_open: bool  #: it has not ended


def list_name(queue: str, priority: Priority) -> str:
    """Name the broker's list in which jobs of that queue and priority wait in order."""
    return f"{queue}:{priority.celery_number}"


class Traces:
    """All traces of a fleet. Every change is one atomic step in Valkey."""

    def __init__(
        self,
        connection: redis.Redis,
        *,
        retention_s: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._retention_s = retention_s
        self._clock = clock
        self._create = connection.register_script(scripts.CREATE)
        self._claim = connection.register_script(scripts.CLAIM)
        self._resend = connection.register_script(scripts.RESEND)
        self._progress = connection.register_script(scripts.PROGRESS)
        self._finish = connection.register_script(scripts.FINISH)
        self._remove = connection.register_script(scripts.REMOVE)

    def create(
        self,
        job_id: str,
        job: GenerationJob,
        *,
        payload_hash: str,
        queue: str,
        length_max: int | None = None,
    ) -> bool:
        """Record a job before it is published; False when the same job is there already.

        Raises JobConflict when the id is there with another payload, QueueFull when `length_max`
        jobs wait in its list.
        """
        waiting_in = list_name(queue, job.priority)
        answer = self._create(
            keys=[_key(job_id), _waiting_key(waiting_in), _SEQUENCE, _LISTS],
            args=[
                job_id,
                canonical_json(job.to_wire()),
                payload_hash,
                waiting_in,
                self._clock(),
                self._retention_s,
                uuid.uuid4().hex,
                -1 if length_max is None else length_max,
            ],
        )
        if answer == "full":
            raise QueueFull(queue, length_max or 0)
        if answer not in ("created", payload_hash):
            raise JobConflict(job_id)
        return bool(answer == "created")

    def mark_running(self, job_id: str, attempt: int) -> None:
        """Take the job out of its waiting list; no trace, no effect."""
        self._claim(keys=[_key(job_id), _CLAIMED], args=[job_id, attempt])

    def mark_sent_again(self, job_id: str, *, expected: Status) -> None:
        """Put the job at the end of its waiting list, where its new message is.

        No effect when the trace is gone, or the job has left the `expected` status meanwhile.
        """
        self._resend(keys=[_key(job_id), _SEQUENCE], args=[job_id, self._clock(), expected.value])

    def mark_finished(self, result: JobResult) -> None:
        """Show a terminal status and its result; idempotent; no trace, no effect."""
        self._finish(
            keys=[_key(result.job_id)],
            args=[
                result.job_id,
                result.status.value,
                result.attempt,
                canonical_json(result.to_wire()),
                self._retention_s,
            ],
        )

    def show_progress(self, job_id: str, progress: Progress) -> bool:
        """Show how far a job is; no effect unless it is running. False where it has ended."""
        value = f"{progress.steps_done}/{progress.steps_asked}"
        status = self._progress(keys=[_key(job_id)], args=[value])
        return status is None or not Status(status).is_terminal

    def remove(self, job_ids: Iterable[str]) -> int:
        """Forget jobs, and their places in line; answers how many were known."""
        return sum(int(self._remove(keys=[_key(job_id)], args=[job_id])) for job_id in job_ids)

    def scan(self) -> Iterator[TracedJob]:
        """All jobs that have a trace, in no order; reads every trace there is."""
        keys = self._connection.scan_iter(match=_key("*"), count=_SCAN_PAGE)
        while page := list(islice(keys, _SCAN_PAGE)):
            yield from self._read_page([key.removeprefix(_key("")) for key in page])

    def _read_page(self, job_ids: Sequence[str]) -> Iterator[TracedJob]:
        with self._connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(_key(job_id), ["wire", "status"])
            answers = pipeline.execute()
        for job_id, (wire, status) in zip(job_ids, answers, strict=True):
            if wire is None:  # expired since
                continue
            job = json.loads(wire)
            yield TracedJob(
                job_id=job_id,
                namespace=job.get("namespace", "default"),
                user=job.get("user"),
                is_open=not Status(status).is_terminal,
            )

    def read(self, job_id: str) -> Trace:
        """Tell what is known of a job; raises UnknownJob."""
        fields = cast("dict[str, str]", self._connection.hgetall(_key(job_id)))
        if "list" not in fields:
            raise UnknownJob(job_id)
        return _to_trace(job_id, fields)

    def read_many(self, job_ids: Sequence[str]) -> list[Trace | None]:
        """Tell what is known of each job, None where that is nothing."""
        answers = self._ask_of_each(job_ids, lambda pipeline, key: pipeline.hgetall(key))
        return [
            _to_trace(job_id, fields) if "list" in fields else None
            for job_id, fields in zip(job_ids, answers, strict=True)
        ]

    def known(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the jobs that have a trace."""
        answers = self._ask_of_each(job_ids, lambda pipeline, key: pipeline.hexists(key, "list"))
        return {job_id for job_id, is_there in zip(job_ids, answers, strict=True) if is_there}

    def _ask_of_each(
        self, job_ids: Sequence[str], ask: Callable[[redis.client.Pipeline, str], object]
    ) -> Iterator[Any]:
        for start in range(0, len(job_ids), _READ_AT_ONCE):
            with self._connection.pipeline(transaction=False) as pipeline:
                for job_id in job_ids[start : start + _READ_AT_ONCE]:
                    ask(pipeline, _key(job_id))
                yield from pipeline.execute()

    def num_ahead(self, trace: Trace, *, beside: Sequence[str] = ()) -> int:
        """How many jobs are to be claimed before this one; 0 when it does not wait.

        `beside` are the other queues of the same workers: kombu empties the better lists of all
        queues first, and then takes one job of each queue in turn.
        """
        waiting_in = _waiting_key(list_name(trace.queue, trace.priority))
        rank = cast("int | None", self._connection.zrank(waiting_in, trace.job_id))
        if rank is None:
            return 0
        others = [queue for queue in beside if queue != trace.queue]
        better = [p for p in Priority if p.celery_number < trace.priority.celery_number]
        served_first = [(queue, p) for queue in (trace.queue, *others) for p in better]
        lengths = self._lengths([*served_first, *((queue, trace.priority) for queue in others)])
        in_turn = lengths[len(served_first) :]
        return rank + sum(lengths[: len(served_first)]) + sum(min(n, rank + 1) for n in in_turn)

    def _lengths(self, lists: Sequence[tuple[str, Priority]]) -> list[int]:
        with self._connection.pipeline(transaction=False) as pipeline:
            for queue, priority in lists:
                pipeline.zcard(_waiting_key(list_name(queue, priority)))
            return [int(length) for length in pipeline.execute()]

    def num_waiting(self, queue: str, priority: Priority) -> int:
        """How many jobs of that queue and priority nobody has claimed."""
        return int(self._connection.zcard(_waiting_key(list_name(queue, priority))))

    def waiting(self, *, limit_per_list: int) -> Iterator[WaitingJob]:
        """Jobs that nobody has claimed, the longest waiting of each list first."""
        for waiting_in in cast("set[str]", self._connection.smembers(_LISTS)):
            yield from self._waiting_in(waiting_in, limit_per_list)

    def _waiting_in(self, waiting_in: str, limit: int) -> Iterator[WaitingJob]:
        key = _waiting_key(waiting_in)
        queue, priority = _parse_list(waiting_in)
        highest = float(cast("str | None", self._connection.hget(_CLAIMED, waiting_in)) or 0)
        oldest = cast(
            "list[tuple[str, float]]",
            self._connection.zrange(key, 0, limit - 1, withscores=True),
        )
        with self._connection.pipeline(transaction=False) as pipeline:
            for job_id, _ in oldest:
                pipeline.hget(_key(job_id), "sent_at")
            times = pipeline.execute()
        for (job_id, sequence), sent_at in zip(oldest, times, strict=True):
            if sent_at is None:  # the trace has expired: nobody waits for the job any more
                self._connection.zrem(key, job_id)
                continue
            yield WaitingJob(
                job_id=job_id,
                queue=queue,
                priority=priority,
                sent_at=float(sent_at),
                is_overtaken=sequence < highest,
            )


def _key(job_id: str) -> str:
    return f"nirvana:job:{job_id}"


def _waiting_key(waiting_in: str) -> str:
    return f"nirvana:waiting:{waiting_in}"


def _parse_list(waiting_in: str) -> tuple[str, Priority]:
    queue, _, number = waiting_in.rpartition(":")
    return queue, next(p for p in Priority if p.celery_number == int(number))


def _to_trace(job_id: str, fields: dict[str, str]) -> Trace:
    queue, priority = _parse_list(fields["list"])
    done, _, asked = fields.get("progress", "").partition("/")
    result = fields.get("result")
    return Trace(
        job_id=job_id,
        job=json.loads(fields["wire"]),
        queue=queue,
        priority=priority,
        status=Status(fields["status"]),
        attempt=int(fields["attempt"]),
        progress=Progress(steps_done=int(done), steps_asked=int(asked)) if asked else None,
        result=JobResult.model_validate(json.loads(result)) if result else None,
    )
