"""Forget a job, a user or a namespace: every row, object, trace and delivery.

    1 remember     what was begun before is written no more: claims and stores look here
    2 traces       with Celery's results; jobs that only wait leave nothing else
    3 jobs         rows, and with them their deliveries; the keys of their images become doomed
    4 endpoints    of a namespace
    5 the cache    rows; the keys of their objects become doomed
    6 objects      the doomed ones

A job that runs meanwhile has lost its row, so its worker stops it at the next heartbeat, commits
nothing and takes its image back. A message that still waits is acknowledged when its turn comes,
and leaves nothing. A run that is killed is made good by running it again.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final, assert_never

from sqlalchemy import Connection, Engine, TextClause, text

from cache.database import transaction
from cache.errors import ObjectStoreError, RowsHeld
from cache.forgotten import (
    JobSubject,
    NamespaceSubject,
    Subject,
    UserSubject,
    remember,
    remember_within,
)
from cache.objects import ObjectStore
from cache.purge import HELD_TIMEOUT_S, holdings, num_doomed, purge_objects, purge_rows
from workers.job_records import JobRecords
from workers.job_removal import remove_jobs

logger = logging.getLogger(__name__)

_BATCH: Final = 500  # jobs of one transaction
_HELD_PAUSE_S: Final = 0.05

# Who has one of these rows locked is not waited for with others in hand.
_LOCK_JOBS: Final = """
    SELECT j.id, j.finished_at IS NULL AS is_open, j.status = 'running' AS is_running,
           j.status = 'succeeded' AND j.image_removed_at IS NULL AS has_image
      FROM jobs j
     WHERE {}
     ORDER BY j.id
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
"""

_HAS_JOBS: Final = "SELECT EXISTS (SELECT FROM jobs j WHERE {})"

_COUNT_JOBS: Final = """
    SELECT count(*) AS num_jobs, count(*) FILTER (WHERE j.status = 'running') AS num_running,
           count(*) FILTER (WHERE j.status = 'succeeded' AND j.image_removed_at IS NULL)
           AS num_images,
           COALESCE(sum((SELECT count(*) FROM webhook_deliveries d WHERE d.job_id = j.id)), 0)
           AS num_deliveries
      FROM jobs j
     WHERE {}
"""

_COUNT_ENDPOINTS = text("SELECT count(*) FROM endpoints WHERE namespace = :namespace")
_DELETE_ENDPOINTS = text("DELETE FROM endpoints WHERE namespace = :namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReport:
    """What was removed, or with `is_dry_run` would be."""

    subject: str
    is_dry_run: bool
    jobs: int
    running_jobs: int  #: of those, stopped by having lost their rows
    images: int  #: of the jobs' results
    deliveries: int
    traces: int
    endpoints: int
    cached_prompts: int
    cached_states: int
    cached_bytes: int
    objects_left: int  #: whose rows are gone, and which the object store has not deleted yet


@dataclass(frozen=True, slots=True, kw_only=True)
class _Removed:
    num_jobs: int = 0
    num_running: int = 0
    num_images: int = 0
    num_deliveries: int = 0
    num_traces: int = 0

    def __add__(self, other: _Removed) -> _Removed:
        return _Removed(
            num_jobs=self.num_jobs + other.num_jobs,
            num_running=self.num_running + other.num_running,
            num_images=self.num_images + other.num_images,
            num_deliveries=self.num_deliveries + other.num_deliveries,
            num_traces=self.num_traces + other.num_traces,
        )


class Forgetter:
    """Removes what belongs to a subject; every step may be repeated."""

    def __init__(self, *, database: Engine, objects: ObjectStore, records: JobRecords) -> None:
        self._database = database
        self._objects = objects
        self._records = records

    def preview(self, subject: Subject) -> ForgetReport:
        """Count what `forget` would remove now; writes nothing."""
        with transaction(self._database) as connection:
            jobs = connection.execute(_statement(_COUNT_JOBS, subject), _bound(subject)).one()
            cached = holdings(connection, subject)
            num_endpoints = connection.execute(_COUNT_ENDPOINTS, _bound_namespace(subject))
            return ForgetReport(
                subject=str(subject),
                is_dry_run=True,
                jobs=jobs.num_jobs,
                running_jobs=jobs.num_running,
                images=jobs.num_images,
                deliveries=int(jobs.num_deliveries),
                traces=sum(1 for _ in self._records.find(subject)),
                endpoints=num_endpoints.scalar_one(),
                cached_prompts=cached.num_prompts,
                cached_states=cached.num_states,
                cached_bytes=cached.num_bytes,
                objects_left=0,
            )

    def forget(self, subject: Subject, *, now: datetime) -> ForgetReport:
        """Remove all of it; raises DatabaseUnreachable, RowsHeld, or redis' errors.

        An object store that is away keeps its objects: `objects_left` counts them, and beat deletes
        them when it is back.
        """
        remember(self._database, [subject])
        num_traces = self._remove_traces(subject)
        jobs = self._remove_jobs(subject, now=now)
        with transaction(self._database) as connection:
            endpoints = connection.execute(_DELETE_ENDPOINTS, _bound_namespace(subject)).rowcount
            num_prompts = holdings(connection, subject).num_prompts
        cached = purge_rows(self._database, subject, now=now)
        return ForgetReport(
            subject=str(subject),
            is_dry_run=False,
            jobs=jobs.num_jobs,
            running_jobs=jobs.num_running,
            images=jobs.num_images,
            deliveries=jobs.num_deliveries,
            traces=num_traces + jobs.num_traces,
            endpoints=endpoints,
            cached_prompts=num_prompts,
            cached_states=cached.num_states,
            cached_bytes=cached.num_bytes,
            objects_left=self._delete_objects(now),
        )

    def _remove_traces(self, subject: Subject) -> int:
        """Before a trace goes, its job is remembered: its message may be anywhere."""
        num_removed = 0
        found = self._records.find(subject)
        while page := list(islice(found, _BATCH)):
            with transaction(self._database) as connection:
                remember_within(connection, [_job(job.job_id) for job in page if job.is_open])
            num_removed += self._records.remove([job.job_id for job in page])
        return num_removed

    def _remove_jobs(self, subject: Subject, *, now: datetime) -> _Removed:
        """Delete in batches; rows that others hold, for milliseconds, are tried again."""
        removed, give_up_at = _Removed(), time.monotonic() + HELD_TIMEOUT_S
        while True:
            with transaction(self._database) as connection:
                batch = self._remove_batch(connection, subject, now)
                remaining = connection.execute(_statement(_HAS_JOBS, subject), _bound(subject))
                is_done = not remaining.scalar_one()
            removed += batch
            if is_done:
                return removed
            if batch.num_jobs:
                give_up_at = time.monotonic() + HELD_TIMEOUT_S
            elif time.monotonic() > give_up_at:
                raise RowsHeld(str(subject))
            else:
                time.sleep(_HELD_PAUSE_S)

    def _remove_batch(self, connection: Connection, subject: Subject, now: datetime) -> _Removed:
        wanted = {**_bound(subject), "limit": _BATCH}
        rows = connection.execute(_statement(_LOCK_JOBS, subject), wanted).all()
        ids = [row.id for row in rows]
        remember_within(connection, [_job(row.id) for row in rows if row.is_open])
        num_deliveries = remove_jobs(connection, ids, now=now)
        # Before the commit: without the rows a run after a crash would not know of these.
        num_traces = self._records.remove([str(job_id) for job_id in ids])
        return _Removed(
            num_jobs=len(rows),
            num_running=sum(row.is_running for row in rows),
            num_images=sum(row.has_image for row in rows),
            num_deliveries=num_deliveries,
            num_traces=num_traces,
        )

    def _delete_objects(self, now: datetime) -> int:
        try:
            return purge_objects(self._database, self._objects, now=now)
        except ObjectStoreError as error:
            logger.warning("doomed objects not deleted", extra={"error": str(error)})
            return num_doomed(self._database)


def _job(job_id: object) -> JobSubject:
    return JobSubject(job_id=uuid.UUID(str(job_id)))


def _statement(template: str, subject: Subject) -> TextClause:
    match subject:
        case JobSubject():
            return text(template.format("j.id = :job_id"))
        case UserSubject():
            return text(template.format("j.namespace = :namespace AND j.owner = :owner"))
        case NamespaceSubject():
            return text(template.format("j.namespace = :namespace"))
        case _ as unreachable:
            assert_never(unreachable)


def _bound(subject: Subject) -> dict[str, Any]:
    match subject:
        case JobSubject(job_id=job_id):
            return {"job_id": job_id}
        case UserSubject(namespace=namespace, user=user):
            return {"namespace": namespace, "owner": user}
        case NamespaceSubject(namespace=namespace):
            return {"namespace": namespace}
        case _ as unreachable:
            assert_never(unreachable)


def _bound_namespace(subject: Subject) -> dict[str, str | None]:
    """Endpoints are the namespace's, and nobody's else."""
    return {"namespace": subject.namespace if isinstance(subject, NamespaceSubject) else None}
