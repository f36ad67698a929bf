"""Finds images that no result names: of attempts that lost their claim, or whose worker died."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from sqlalchemy import Engine, text

from cache.database import transaction
from cache.objects import ListedObject, ObjectStore

IMAGES_PREFIX: Final = "images/"
_PAGE: Final = 1_000

# Kept where the job's result names it, or may yet, or a shadow run of it does.
_KEPT: Final = text("""
    SELECT found.key
      FROM unnest(CAST(:keys AS text[]), CAST(:ids AS uuid[])) AS found (key, id)
      JOIN jobs j ON j.id = found.id
     WHERE j.finished_at IS NULL OR j.result -> 'image' ->> 'key' = found.key
        OR EXISTS (SELECT FROM shadow_runs s
                    WHERE s.job_id = j.id AND s.uncached_image_key = found.key)
     LIMIT :limit
""")

_DOOM: Final = text("""
    INSERT INTO doomed_objects (key, doomed_at)
    SELECT key, :now FROM unnest(CAST(:keys AS text[])) AS orphans (key)
        ON CONFLICT (key) DO NOTHING
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSweepReport:
    """What was found and doomed."""

    images_without_results: int
    bytes_without_results: int


def sweep_images(
    engine: Engine, objects: ObjectStore, *, now: datetime, grace_s: float, limit: int = 10_000
) -> ImageSweepReport:
    """Walk all images; doom those that no result names, `limit` and a page of them at most.

    What is younger than the grace time may belong to a job that is being committed. Raises
    DatabaseUnreachable or ObjectStoreError.
    """
    before, num_found, num_bytes = now - timedelta(seconds=grace_s), 0, 0
    listed = (each for each in objects.list(IMAGES_PREFIX) if each.modified_at <= before)
    while num_found < limit and (page := list(islice(listed, _PAGE))):
        orphans = _doom_orphans(engine, page, now)
        num_found += len(orphans)
        num_bytes += sum(orphan.num_bytes for orphan in orphans)
    return ImageSweepReport(images_without_results=num_found, bytes_without_results=num_bytes)


def _doom_orphans(
    engine: Engine, page: Sequence[ListedObject], now: datetime
) -> list[ListedObject]:
    by_key = {each.key: job_id for each in page if (job_id := _job_of(each.key)) is not None}
    wanted = {"keys": list(by_key), "ids": list(by_key.values()), "limit": len(by_key)}
    with transaction(engine) as connection:
        kept = set(connection.execute(_KEPT, wanted).scalars())
        orphans = [each for each in page if each.key in by_key and each.key not in kept]
        connection.execute(_DOOM, {"keys": [orphan.key for orphan in orphans], "now": now})
    return orphans


def _job_of(key: str) -> uuid.UUID | None:
    """Read images/<namespace>/<job>/<attempt>.png; other objects are not ours to judge."""
    parts = key.split("/")
    try:
        return uuid.UUID(parts[2]) if len(parts) == 4 else None
    except ValueError:
        return None
