"""Deletes jobs' rows, with what hangs on them; their images become doomed objects."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

# One image for each attempt, as workers.images names them: those that lost their claim, too. And
# what a shadow run has drawn.
_DOOM_IMAGES: Final = text("""
    INSERT INTO doomed_objects (key, doomed_at)
    SELECT format('images/%s/%s/%s.png', j.namespace, j.id, n), :now
      FROM jobs j
     CROSS JOIN generate_series(1, j.attempt) AS n
     WHERE j.id = ANY(:ids) AND j.image_removed_at IS NULL
     UNION
    SELECT s.uncached_image_key, :now
      FROM shadow_runs s
     WHERE s.job_id = ANY(:ids)
        ON CONFLICT (key) DO NOTHING
""")
_MARK_IMAGES_REMOVED: Final = text("UPDATE jobs SET image_removed_at = :now WHERE id = ANY(:ids)")
_DELETE_DELIVERIES: Final = text("DELETE FROM webhook_deliveries WHERE job_id = ANY(:ids)")
_DELETE_JOBS: Final = text("DELETE FROM jobs WHERE id = ANY(:ids)")


def remove_images(connection: Connection, ids: Sequence[uuid.UUID], *, now: datetime) -> None:
    """Doom the images of locked jobs, whose results stay."""
    connection.execute(_DOOM_IMAGES, {"ids": list(ids), "now": now})
    connection.execute(_MARK_IMAGES_REMOVED, {"ids": list(ids), "now": now})


def remove_jobs(connection: Connection, ids: Sequence[uuid.UUID], *, now: datetime) -> int:
    """Delete locked jobs with images and deliveries; answers how many deliveries there were."""
    connection.execute(_DOOM_IMAGES, {"ids": list(ids), "now": now})
    num_deliveries = connection.execute(_DELETE_DELIVERIES, {"ids": list(ids)}).rowcount
    connection.execute(_DELETE_JOBS, {"ids": list(ids)})
    return num_deliveries
