"""Store a prompt's states: objects first, then rows. Raises; `cache.approximate` does not."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import torch
from psycopg.errors import ForeignKeyViolation
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from cache import codec, index, scopes
from cache.database import transaction
from cache.entry import Embedding, PromptRow, Scope, StateKind, StateRow, embedding_text
from cache.errors import CacheError, JobForgotten, ObjectStoreError, ScopeGone, StoreTooSlow
from cache.forgotten import is_forgotten
from cache.objects import STATES_PREFIX, ObjectStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewState:
    """Latents to keep: after step k, or at k = N for a `final` state."""

    kind: StateKind
    k: int
    latents: torch.Tensor = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """A prompt and the states to keep for it."""

    #: The job's user; '' for an anonymous job.
    owner: str
    embedding: Embedding = field(repr=False)
    #: Tells equal prompts: what a `refresh` replaces.
    prompt_hash: str
    source_job_id: str | None
    states: tuple[NewState, ...]
    #: As measured in this job; weighs the scope's states against those of other scopes.
    seconds_per_step: float | None = None
    #: When the job began, by the database's clock: is it forgotten later, nothing is kept.
    begun_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What storing needs; `put_max_s` is how old an object may be before its row is there."""

    writer: Engine
    objects: ObjectStore
    clock: Callable[[], datetime]
    ttl_s: float | None
    put_max_s: float

    def store(self, scope: Scope, entry: NewEntry, *, is_refresh: bool) -> int:
        """Write objects, then rows; answers the prompt's id, or raises CacheError."""
        embedding = embedding_text(entry.embedding, scope.spec.embedding_dimension)
        started = time.monotonic()
        states = self._put(scope, entry)
        # Else the sweep may already have taken the objects for orphans.
        if time.monotonic() - started > self.put_max_s:
            raise StoreTooSlow
        prompt = self._prompt_row(entry, embedding, states)
        # Where this fails the commit may yet have happened, so the objects stay for the sweep.
        with self._withdrawn_if_unwanted(states), transaction(self.writer) as connection:
            _require_remembered(connection, scope, entry)
            if entry.seconds_per_step is not None:
                scopes.record_seconds_per_step(connection, scope.id, entry.seconds_per_step)
            write = index.replace if is_refresh else index.insert
            return write(connection, scope, prompt)

    def _put(self, scope: Scope, entry: NewEntry) -> tuple[StateRow, ...]:
        """Write the objects, or none of them."""
        # Never the same twice: a key that was deleted must not come back to life.
        folder = f"{STATES_PREFIX}{scope.id}/{uuid.uuid4().hex}"
        rows: list[StateRow] = []
        try:
            for state in entry.states:
                encoded = codec.encode(state.latents)
                row = StateRow(
                    kind=state.kind,
                    k=state.k,
                    key=f"{folder}/{state.kind}-{state.k}.safetensors",
                    sha256=encoded.sha256,
                    num_bytes=encoded.num_bytes,
                )
                rows.append(row)
                self.objects.put(row.key, encoded.data)
        except CacheError:
            self._take_back(rows)
            raise
        return tuple(rows)

    @contextmanager
    def _withdrawn_if_unwanted(self, states: tuple[StateRow, ...]) -> Iterator[None]:
        """Delete the objects where it is certain that no row will point at them."""
        try:
            yield
        except JobForgotten:
            self._take_back(list(states))
            raise
        except IntegrityError as error:
            if not isinstance(error.orig, ForeignKeyViolation):
                raise
            self._take_back(list(states))
            raise ScopeGone from error

    def _take_back(self, rows: list[StateRow]) -> None:
        try:
            self.objects.delete_many([row.key for row in rows])
        except ObjectStoreError as error:
            logger.warning("objects left to the sweep", extra={"error": str(error)})

    def _prompt_row(
        self, entry: NewEntry, embedding: str, states: tuple[StateRow, ...]
    ) -> PromptRow:
        now = self.clock()
        return PromptRow(
            owner=entry.owner,
            embedding=embedding,
            prompt_hash=entry.prompt_hash,
            source_job_id=entry.source_job_id,
            created_at=now,
            expires_at=None if self.ttl_s is None else now + timedelta(seconds=self.ttl_s),
            states=states,
        )


def _require_remembered(connection: Connection, scope: Scope, entry: NewEntry) -> None:
    """Raise JobForgotten where the job, its user or its namespace was forgotten since it began."""
    if entry.begun_at is None or entry.source_job_id is None:
        return
    if is_forgotten(
        connection,
        uuid.UUID(entry.source_job_id),
        namespace=scope.spec.namespace,
        owner=entry.owner,
        since=entry.begun_at,
    ):
        raise JobForgotten
