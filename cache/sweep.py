"""Compare rows and objects in both directions, and remove what has no whole counterpart.

    objects   a1  a2      b1  c1      a listing, in the order of keys
    rows      a1      a3  b1  c1      in the same order
                  |   +-- a row without its object
                  +-- an object without its row

Safe beside running workers: what is younger than the grace time is left alone (a store writes its
objects first), and every finding is looked at again before it counts. Keys are never used twice, so
the length of an object that was listed is final. The counts of bytes are held against the rows too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from sqlalchemy import Engine, text

from cache import live_bytes
from cache.database import transaction
from cache.objects import STATES_PREFIX, ListedObject, ObjectStore
from cache.removal import delete_doomed_objects, lock_states, remove_states

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 1_000  # rows read, findings checked and removed at a time
EXAMPLES_MAX = 10

_ROWS_AFTER = text("""
    SELECT id, key, created_at, num_bytes
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

_NUM_DOOMED = text("SELECT count(*) FROM doomed_objects")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What was found, and with `is_repaired` removed."""

    objects_without_rows: int
    #: Bytes that these hold.
    bytes_without_rows: int
    rows_without_objects: int
    #: Objects of another length than their row says; the row goes, too.
    truncated_objects: int
    prompts_without_states: int
    #: Evicted, and still to be deleted.
    doomed_objects: int
    #: Scopes whose count of bytes was wrong; set right by a repair.
    scopes_miscounted: int
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
    num_bytes: int
    is_truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    orphans: list[ListedObject] = field(default_factory=list)
    #: Rows without an object, or with one of another length.
    dangling: list[_Row] = field(default_factory=list)
    empty_prompt_ids: list[int] = field(default_factory=list)
    miscounted_scope_ids: list[int] = field(default_factory=list)

    @property
    def num_unmatched(self) -> int:
        return len(self.orphans) + len(self.dangling)


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
    found = _find(engine, objects, before=now - timedelta(seconds=grace_s), limit=limit)
    num_doomed = _count_doomed(engine)
    removed = _repair(engine, objects, found, now=now) if repair else 0
    num_truncated = sum(row.is_truncated for row in found.dangling)
    examples = [each.key for each in found.orphans] + [row.key for row in found.dangling]
    return SweepReport(
        objects_without_rows=len(found.orphans),
        bytes_without_rows=sum(orphan.num_bytes for orphan in found.orphans),
        rows_without_objects=len(found.dangling) - num_truncated,
        truncated_objects=num_truncated,
        prompts_without_states=len(found.empty_prompt_ids),
        doomed_objects=num_doomed,
        scopes_miscounted=len(found.miscounted_scope_ids),
        objects_removed=removed,
        is_repaired=repair,
        is_complete=found.num_unmatched < limit and len(found.empty_prompt_ids) < limit,
        examples=tuple(examples[:EXAMPLES_MAX]),
    )


def _find(engine: Engine, objects: ObjectStore, *, before: datetime, limit: int) -> _Findings:
    found = _Findings(
        empty_prompt_ids=_empty_prompts(engine, before, limit),
        miscounted_scope_ids=live_bytes.miscounted(engine, limit=limit),
    )
    unmatched = _unmatched(objects.list(STATES_PREFIX), _rows(engine))
    aged = (each for each in unmatched if _age_of(each) <= before)
    for page in _pages(aged, PAGE):
        found.orphans.extend(_still_without_rows(engine, page))
        found.dangling.extend(_still_without_objects(engine, objects, page))
        if found.num_unmatched >= limit:
            break
    return found


def _unmatched(
    objects: Iterator[ListedObject], rows: Iterator[_Row]
) -> Iterator[ListedObject | _Row]:
    """Walk two streams in the order of their keys; yield what is in one only, or not whole."""
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
            if listed.num_bytes != row.num_bytes:
                yield replace(row, is_truncated=True)
            listed, row = next(objects, None), next(rows, None)


def _rows(engine: Engine) -> Iterator[_Row]:
    """All states in the order of their keys, a page at a time."""
    after = ""
    while True:
        with transaction(engine) as connection:
            page = connection.execute(_ROWS_AFTER, {"after": after, "limit": PAGE}).all()
        yield from (_Row(row.id, row.key, row.created_at, row.num_bytes) for row in page)
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
    """Those rows of a page that exist still, while their objects do not, or not whole."""
    rows = [each for each in page if isinstance(each, _Row)]
    missing = [row for row in rows if row.is_truncated or not objects.exists(row.key)]
    with transaction(engine) as connection:
        wanted = {"ids": [row.id for row in missing], "limit": len(missing)}
        known = set(connection.execute(_KNOWN_IDS, wanted).scalars())
    return [row for row in missing if row.id in known]


def _empty_prompts(engine: Engine, before: datetime, limit: int) -> list[int]:
    with transaction(engine) as connection:
        wanted = {"before": before, "limit": limit}
        return list(connection.execute(_EMPTY_PROMPTS, wanted).scalars())


def _count_doomed(engine: Engine) -> int:
    with transaction(engine) as connection:
        return int(connection.execute(_NUM_DOOMED).scalar_one())


def _repair(engine: Engine, objects: ObjectStore, found: _Findings, *, now: datetime) -> int:
    """Remove the findings in pages; answers how many objects were deleted."""
    for orphans in _pages(found.orphans, PAGE):
        with transaction(engine) as connection:
            keys = [orphan.key for orphan in orphans]
            connection.execute(_DOOM, {"keys": keys, "now": now})
    for rows in _pages(found.dangling, PAGE):
        with transaction(engine) as connection:
            locked = lock_states(connection, [row.id for row in rows])
            remove_states(connection, locked, now=now)
    for prompt_ids in _pages(found.empty_prompt_ids, PAGE):
        with transaction(engine) as connection:
            connection.execute(_DELETE_PROMPTS, {"ids": prompt_ids})
    live_bytes.recount(engine, found.miscounted_scope_ids)
    return delete_doomed_objects(engine, objects, now=now)


def _pages(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while page := list(islice(iterator, size)):
        yield page
