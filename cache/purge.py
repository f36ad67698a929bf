"""Remove all that the cache holds of a job, a user or a namespace.

Rows first, objects after, by way of `doomed_objects`: a run that is killed leaves keys whose
objects the next run, or beat, deletes. Every step may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import IntegrityError

from cache.database import transaction
from cache.errors import RowsHeld
from cache.forgotten import JobSubject, NamespaceSubject, Subject, UserSubject
from cache.objects import ObjectStore
from cache.predictor_rows import drop_predictors
from cache.removal import Removed, delete_doomed_objects, lock_states, remove_states

BATCH = 1_000  # states of one transaction
HELD_TIMEOUT_S = 30.0
_HELD_PAUSE_S = 0.05

_OF_JOB = "p.source_job_id = :job_id"
_OF_USER = "p.owner = :owner AND c.namespace = :namespace"
_OF_NAMESPACE = "c.namespace = :namespace"

_STATES = """
    SELECT s.id
      FROM cached_prompts p
      JOIN scopes c ON c.id = p.scope_id
      JOIN cached_states s ON s.prompt_id = p.id
     WHERE {}
     ORDER BY s.id
     LIMIT :limit
"""

# A crash can leave prompts whose states are gone.
_DELETE_EMPTY_PROMPTS = """
    DELETE FROM cached_prompts e
     USING (SELECT p.id
              FROM cached_prompts p
              JOIN scopes c ON c.id = p.scope_id
             WHERE {}
               AND NOT EXISTS (SELECT FROM cached_states s WHERE s.prompt_id = p.id)
             LIMIT :limit) found
     WHERE e.id = found.id
"""

_COUNT = """
    SELECT count(DISTINCT p.id) AS num_prompts, count(s.id) AS num_states,
           COALESCE(sum(s.num_bytes), 0) AS num_bytes
      FROM cached_prompts p
      JOIN scopes c ON c.id = p.scope_id
      LEFT JOIN cached_states s ON s.prompt_id = p.id
     WHERE {}
"""

_DELETE_SCOPES = text("""
    DELETE FROM scopes c
     WHERE c.namespace = :namespace
       AND NOT EXISTS (SELECT FROM cached_prompts p WHERE p.scope_id = c.id)
""")

_DELETE_NAMESPACE = text("""
    DELETE FROM namespaces n
     WHERE n.namespace = :namespace
       AND NOT EXISTS (SELECT FROM scopes c WHERE c.namespace = n.namespace)
""")

_SCOPES = """
    SELECT DISTINCT p.scope_id
      FROM cached_prompts p
      JOIN scopes c ON c.id = p.scope_id
     WHERE {}
"""

_NUM_DOOMED = text("SELECT count(*) FROM doomed_objects")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the cache holds, or held, of somebody."""

    num_prompts: int
    num_states: int
    #: Of the states' objects.
    num_bytes: int


def holdings(connection: Connection, subject: Subject) -> Holdings:
    """Count what the cache holds of a subject."""
    row = connection.execute(_statement(_COUNT, subject), _bound(subject)).one()
    return Holdings(
        num_prompts=row.num_prompts, num_states=row.num_states, num_bytes=int(row.num_bytes)
    )


def purge_rows(engine: Engine, subject: Subject, *, now: datetime) -> Removed:
    """Delete the rows of a subject; their objects become doomed.

    Raises RowsHeld where somebody else keeps rows locked for half a minute: nobody is waited for
    with a lock in hand.
    """
    scope_ids = _scope_ids(engine, subject)
    # First, for a run that is killed; again after, for one that was fitted meanwhile.
    drop_predictors(engine, scope_ids)
    removed = _purge_states(engine, subject, now=now)
    _delete_empty_prompts(engine, subject)
    drop_predictors(engine, scope_ids)
    if isinstance(subject, NamespaceSubject):
        _delete_scopes(engine, subject)
    return removed


def _purge_states(engine: Engine, subject: Subject, *, now: datetime) -> Removed:
    removed, give_up_at = Removed(), time.monotonic() + HELD_TIMEOUT_S
    while True:
        with transaction(engine) as connection:
            found = _states(connection, subject)
            gone = remove_states(connection, lock_states(connection, found), now=now)
        removed += gone
        if not found:
            return removed
        if gone.num_states:
            give_up_at = time.monotonic() + HELD_TIMEOUT_S
        elif time.monotonic() > give_up_at:
            raise RowsHeld(str(subject))
        else:
            time.sleep(_HELD_PAUSE_S)


def purge_objects(engine: Engine, objects: ObjectStore, *, now: datetime) -> int:
    """Delete all doomed objects; answers how many remain.

    Raises ObjectStoreError; then they stay doomed, and beat goes on.
    """
    delete_doomed_objects(engine, objects, now=now)
    return num_doomed(engine)


def num_doomed(engine: Engine) -> int:
    """How many objects are still to be deleted, whoever's they were."""
    with transaction(engine) as connection:
        return int(connection.execute(_NUM_DOOMED).scalar_one())


def _scope_ids(engine: Engine, subject: Subject) -> list[int]:
    with transaction(engine) as connection:
        return list(connection.execute(_statement(_SCOPES, subject), _bound(subject)).scalars())


def _states(connection: Connection, subject: Subject) -> list[int]:
    wanted = {**_bound(subject), "limit": BATCH}
    return list(connection.execute(_statement(_STATES, subject), wanted).scalars())


def _delete_empty_prompts(engine: Engine, subject: Subject) -> None:
    statement = _statement(_DELETE_EMPTY_PROMPTS, subject)
    num_deleted = BATCH
    while num_deleted == BATCH:
        with transaction(engine) as connection:
            wanted = {**_bound(subject), "limit": BATCH}
            num_deleted = connection.execute(statement, wanted).rowcount


def _delete_scopes(engine: Engine, subject: NamespaceSubject) -> None:
    """Delete what nothing of the namespace needs any more: its next job makes it anew."""
    try:
        with transaction(engine) as connection:
            connection.execute(_DELETE_SCOPES, _bound(subject))
            connection.execute(_DELETE_NAMESPACE, _bound(subject))
    except IntegrityError:
        return  # a job that came later has just stored into one of them


def _statement(template: str, subject: Subject) -> TextClause:
    match subject:
        case JobSubject():
            return text(template.format(_OF_JOB))
        case UserSubject():
            return text(template.format(_OF_USER))
        case NamespaceSubject():
            return text(template.format(_OF_NAMESPACE))
        case _ as unreachable:
            assert_never(unreachable)


def _bound(subject: Subject) -> Mapping[str, Any]:
    match subject:
        case JobSubject(job_id=job_id):
            return {"job_id": str(job_id)}
        case UserSubject(namespace=namespace, user=user):
            return {"namespace": namespace, "owner": user}
        case NamespaceSubject(namespace=namespace):
            return {"namespace": namespace}
        case _ as unreachable:
            assert_never(unreachable)
