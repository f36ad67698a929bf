"""Compare rows and objects in both directions, and remove what has no counterpart.

    objects   a1  a2      b1  c1      a listing, in the order of keys
    rows      a1      a3  b1  c1      in the same order
                  |   +-- a row without its object
                  +-- an object without its row

Safe beside running workers: what is younger than the grace time is left alone (a store writes its
objects first), and every finding is looked at again before it counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from sqlalchemy import Engine, text

from cache.database import transaction
from cache.objects import STATES_PREFIX, ListedObject, ObjectStore
from cache.removal import delete_doomed_objects, lock_states, remove_states

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 1_000  # rows read, findings checked and removed at a time
EXAMPLES_MAX = 10

_ROWS_AFTER = text("""
    SELECT id, key, created_at
      FROM cached_states
     WHERE key > :after
     ORDER BY key
     LIMIT :limit
""")

_KNOWN_KEYS = text("""
    SELECT key FROM cached_states WHERE key = ANY(:keys)
     UNION ALL
    SELECT key FROM doomed_objects WHERE key = ANY(:keys)
     LIMIT :limit
""")

_KNOWN_IDS = text("SELECT id FROM cached_states WHERE id = ANY(:ids) LIMIT :limit")

_DOOM = text("""
    INSERT INTO doomed_objects (key, doomed_at)
    SELECT key, :now FROM unnest(CAST(:keys AS text[])) AS orphans (key)
        ON CONFLICT (key) DO NOTHING
""")

_EMPTY_PROMPTS = text("""
    SELECT p.id
      FROM cached_prompts p
     WHERE p.created_at <= :before
       AND NOT EXISTS (SELECT FROM cached_states s WHERE s.prompt_id = p.id)
     ORDER BY p.id
     LIMIT :limit
""")

_DELETE_PROMPTS = text("DELETE FROM cached_prompts WHERE id = ANY(:ids)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What was found, and with `is_repaired` removed."""

    objects_without_rows: int
    #: Bytes that these hold.
    bytes_without_rows: int
    rows_without_objects: int
    prompts_without_states: int
    #: Objects deleted, those doomed by earlier evictions included.
    objects_removed: int
    is_repaired: bool
    #: False where the limit was reached: run again for the rest.
    is_complete: bool
    #: A few of the keys, for a person to look at.
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    key: str
    created_at: datetime


def sweep(
    engine: Engine,
    objects: ObjectStore,
    *,
    now: datetime,
    repair: bool = False,
    grace_s: float = 3_600.0,
    limit: int = 10_000,
) -> SweepReport:
    """Walk all rows and all objects of the cache; stop after `limit` findings.

    Without `repair` nothing is changed. Raises DatabaseUnreachable or ObjectStoreError.
    """
    before = now - timedelta(seconds=grace_s)
    unmatched = _unmatched(objects.list(STATES_PREFIX), _rows(engine))
    aged = (each for each in unmatched if _age_of(each) <= before)
    orphans: list[ListedObject] = []
    dangling: list[_Row] = []
    for page in _pages(aged, PAGE):
        orphans += _still_without_rows(engine, page)
        dangling += _still_without_objects(engine, objects, page)
        if len(orphans) + len(dangling) >= limit:
            break
    empty = _empty_prompts(engine, before, limit)
    removed = _repair(engine, objects, orphans, dangling, empty, now=now) if repair else 0
    examples = [orphan.key for orphan in orphans] + [row.key for row in dangling]
    return SweepReport(
        objects_without_rows=len(orphans),
        bytes_without_rows=sum(orphan.num_bytes for orphan in orphans),
        rows_without_objects=len(dangling),
        prompts_without_states=len(empty),
        objects_removed=removed,
        is_repaired=repair,
        is_complete=len(orphans) + len(dangling) < limit and len(empty) < limit,
        examples=tuple(examples[:EXAMPLES_MAX]),
    )


def _unmatched(
    objects: Iterator[ListedObject], rows: Iterator[_Row]
) -> Iterator[ListedObject | _Row]:
    """Walk two streams in the order of their keys; yield what is in one only."""
    listed, row = next(objects, None), next(rows, None)
    while listed is not None or row is not None:
        if row is None or (listed is not None and listed.key < row.key):
            assert listed is not None
            yield listed
            listed = next(objects, None)
        elif listed is None or row.key < listed.key:
            yield row
            row = next(rows, None)
        else:
            listed, row = next(objects, None), next(rows, None)


def _rows(engine: Engine) -> Iterator[_Row]:
    """All states in the order of their keys, a page at a time."""
    after = ""
    while True:
        with transaction(engine) as connection:
            page = connection.execute(_ROWS_AFTER, {"after": after, "limit": PAGE}).all()
        yield from (_Row(row.id, row.key, row.created_at) for row in page)
        if len(page) < PAGE:
            return
        after = page[-1].key


def _age_of(found: ListedObject | _Row) -> datetime:
    return found.created_at if isinstance(found, _Row) else found.modified_at


def _still_without_rows(engine: Engine, page: Sequence[ListedObject | _Row]) -> list[ListedObject]:
    """Those objects of a page that have no row, and are not doomed either."""
    listed = [each for each in page if isinstance(each, ListedObject)]
    keys = [each.key for each in listed]
    with transaction(engine) as connection:
        wanted = {"keys": keys, "limit": 2 * len(keys)}
        known = set(connection.execute(_KNOWN_KEYS, wanted).scalars())
    return [each for each in listed if each.key not in known]


def _still_without_objects(
    engine: Engine, objects: ObjectStore, page: Sequence[ListedObject | _Row]
) -> list[_Row]:
    """Those rows of a page that exist still, while their objects do not."""
    missing = [each for each in page if isinstance(each, _Row) and not objects.exists(each.key)]
    with transaction(engine) as connection:
        wanted = {"ids": [row.id for row in missing], "limit": len(missing)}
        known = set(connection.execute(_KNOWN_IDS, wanted).scalars())
    return [row for row in missing if row.id in known]


def _empty_prompts(engine: Engine, before: datetime, limit: int) -> list[int]:
    with transaction(engine) as connection:
        wanted = {"before": before, "limit": limit}
        return list(connection.execute(_EMPTY_PROMPTS, wanted).scalars())


def _repair(
    engine: Engine,
    objects: ObjectStore,
    orphans: Sequence[ListedObject],
    dangling: Sequence[_Row],
    empty_prompt_ids: Sequence[int],
    *,
    now: datetime,
) -> int:
    """Remove the findings in pages; answers how many objects were deleted."""
    for objects_page in _pages(orphans, PAGE):
        with transaction(engine) as connection:
            keys = [orphan.key for orphan in objects_page]
            connection.execute(_DOOM, {"keys": keys, "now": now})
    for rows_page in _pages(dangling, PAGE):
        with transaction(engine) as connection:
            locked = lock_states(connection, [row.id for row in rows_page])
            remove_states(connection, locked, now=now)
    for ids_page in _pages(empty_prompt_ids, PAGE):
        with transaction(engine) as connection:
            connection.execute(_DELETE_PROMPTS, {"ids": list(ids_page)})
    deleted = 0
    while num := delete_doomed_objects(engine, objects, now=now, limit=PAGE):
        deleted += num
    return deleted


def _pages(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while page := list(islice(iterator, size)):
        yield page
