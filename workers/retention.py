"""What has been kept for as long as the settings say goes: deliveries, images, jobs.

Run by beat in bounded batches; rows that somebody has locked are left for the next run. A job goes
only when it has ended, its client was told, and no webhook of it is still to be delivered.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, TextClause, text

from cache import forgotten
from cache.database import transaction
from workers.job_records import JobRecords
from workers.job_removal import remove_images, remove_jobs
from workers.settings import WorkerSettings

_BATCH: Final = 500  # rows of one transaction

_LOCK_DELIVERIES: Final = text("""
    SELECT id
      FROM webhook_deliveries
     WHERE finished_at < :before AND status <> 'pending'
     ORDER BY finished_at
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
""")

_LOCK_JOBS_WITH_IMAGES: Final = text("""
    SELECT id
      FROM jobs
     WHERE finished_at < :before AND status = 'succeeded' AND image_removed_at IS NULL
     ORDER BY finished_at
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
""")

_LOCK_JOBS: Final = text("""
    SELECT j.id
      FROM jobs j
     WHERE j.finished_at < :before
       AND j.announced_at IS NOT NULL
       AND NOT EXISTS (SELECT FROM webhook_deliveries d
                        WHERE d.job_id = j.id AND d.status = 'pending')
     ORDER BY j.finished_at
     LIMIT :limit
       FOR UPDATE OF j SKIP LOCKED
""")

_DELETE_DELIVERIES: Final = text("DELETE FROM webhook_deliveries WHERE id = ANY(:ids)")

Remove = Callable[[Connection, list[uuid.UUID]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionReport:
    """What one run removed."""

    expired_jobs: int
    expired_images: int  #: before their jobs
    expired_deliveries: int  #: before their jobs
    expired_hashes: int  #: of what was forgotten


class Retention:
    """One bounded pass a run, of at most `expire_max` rows of each kind."""

    def __init__(self, database: Engine, records: JobRecords, settings: WorkerSettings) -> None:
        self._database = database
        self._records = records
        self._settings = settings

    def run(self, *, now: datetime) -> RetentionReport:
        """Remove what is due; raises DatabaseUnreachable, or redis' errors.

        Objects become doomed, and are deleted by the next eviction.
        """
        settings = self._settings
        return RetentionReport(
            expired_deliveries=self._expire(
                _LOCK_DELIVERIES, settings.delivery_retention_s, _delete_deliveries, now=now
            ),
            expired_images=self._expire(
                _LOCK_JOBS_WITH_IMAGES,
                settings.image_retention_s,
                lambda connection, ids: remove_images(connection, ids, now=now),
                now=now,
            ),
            expired_jobs=self._expire(
                _LOCK_JOBS,
                settings.job_retention_s,
                lambda connection, ids: self._remove_jobs(connection, ids, now),
                now=now,
            ),
            expired_hashes=forgotten.expire(
                self._database,
                before=now - timedelta(seconds=settings.job_retention_s),
                limit=settings.expire_max,
            ),
        )

    def _expire(
        self, lock: TextClause, retention_s: float | None, remove: Remove, *, now: datetime
    ) -> int:
        if retention_s is None:
            return 0
        before, num_removed = now - timedelta(seconds=retention_s), 0
        while num_removed < self._settings.expire_max:
            limit = min(_BATCH, self._settings.expire_max - num_removed)
            with transaction(self._database) as connection:
                ids = list(connection.execute(lock, {"before": before, "limit": limit}).scalars())
                if ids:
                    remove(connection, ids)
            num_removed += len(ids)
            if len(ids) < limit:
                break
        return num_removed

    def _remove_jobs(self, connection: Connection, ids: list[uuid.UUID], now: datetime) -> None:
        remove_jobs(connection, ids, now=now)
        # Before the commit: nothing would lead to them afterwards.
        self._records.remove([str(job_id) for job_id in ids])


def _delete_deliveries(connection: Connection, ids: list[uuid.UUID]) -> None:
    connection.execute(_DELETE_DELIVERIES, {"ids": ids})
