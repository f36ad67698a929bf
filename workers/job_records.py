"""What the broker keeps of jobs: their traces, and Celery's results."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

import redis
from celery import Celery

from cache.forgotten import JobSubject, NamespaceSubject, Subject, UserSubject
from producer.contract import GenerationJob
from producer.errors import UnknownJob
from producer.trace import TracedJob, Traces


class JobRecords:
    """Finds and removes them; raises redis' errors."""

    def __init__(self, connection: redis.Redis, traces: Traces, app: Celery) -> None:
        self._connection = connection
        self._traces = traces
        self._app = app

    def find(self, subject: Subject) -> Iterator[TracedJob]:
        """Traces of a subject; of more than one job by reading all traces that there are."""
        match subject:
            case JobSubject(job_id=job_id):
                yield from self._find_one(job_id)
            case UserSubject(namespace=namespace, user=user):
                for found in self._traces.scan():
                    if found.namespace == namespace and found.user == user:
                        yield found
            case NamespaceSubject(namespace=namespace):
                yield from (each for each in self._traces.scan() if each.namespace == namespace)
            case _ as unreachable:
                assert_never(unreachable)

    def remove(self, job_ids: Sequence[str]) -> int:
        """Remove traces and results; answers how many traces there were."""
        if job_ids:
            # Results first: they are found by way of the trace.
            keys: list[Any] = [self._app.backend.get_key_for_task(job_id) for job_id in job_ids]
            self._connection.delete(*keys)
        return self._traces.remove(job_ids)

    def _find_one(self, job_id: uuid.UUID) -> Iterator[TracedJob]:
        try:
            trace = self._traces.read(str(job_id))
        except UnknownJob:
            return
        job = GenerationJob.model_validate(trace.job)
        yield TracedJob(
            job_id=trace.job_id,
            namespace=job.namespace,
            user=job.user,
            is_open=not trace.status.is_terminal,
        )
