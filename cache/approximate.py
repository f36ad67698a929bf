"""The approximate cache as a worker uses it: find and fetch, count a use, store.

A job is never failed here and never held longer than its budget: whatever goes wrong in a lookup
is a Miss with a reason, and what goes wrong behind a job's back is counted and logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

from sqlalchemy import Engine

from cache import scopes
from cache.budget import BoundedCalls
from cache.calibration import Calibration, install
from cache.database import connect, transaction
from cache.entry import Embedding, Hit, Miss, MissReason, Scope, ScopeSpec, embedding_text
from cache.errors import CacheError, ScopeGone
from cache.lookup import Asker, Found, Lookup, miss_reason
from cache.namespaces import NamespaceRules, RulesInForce
from cache.nearest_index import search_options
from cache.objects import ObjectStore, S3Objects
from cache.predictors import Predictors
from cache.selector import PAPER, Selector
from cache.settings import CacheSettings
from cache.store import NewEntry, Store
from cache.uses import UseCounter, Uses

logger = logging.getLogger(__name__)

READERS = 8  # connections for lookups; a lookup holds one for a few milliseconds
WRITERS = 4
CLOSE_TIMEOUT_S = 2.0


def utc_now() -> datetime:
    """The clock of rows."""
    return datetime.now(UTC)


class ApproximateCache:
    """The cache of one process; safe to share between its threads."""

    def __init__(
        self,
        settings: CacheSettings,
        objects: ObjectStore,
        *,
        reader: Engine,
        writer: Engine,
        shipped: Sequence[Calibration] = (),
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings, self._shipped = settings, shipped
        self._default_selector = Selector.of(PAPER, settings.cache_k_fractions)
        self._reader, self._writer, self._objects = reader, writer, objects
        self._clock = clock
        self._lookup = Lookup(
            reader=reader,
            writer=writer,
            objects=objects,
            neighbours=settings.cache_neighbours,
            own_newest=settings.cache_own_newest,
            rules=settings.choice_rules,
            clock=clock,
        )
        self._store = Store(
            writer=writer,
            objects=objects,
            clock=clock,
            ttl_s=settings.cache_ttl_s,
            put_max_s=settings.cache_sweep_grace_s / 2,
        )
        self._rules = RulesInForce(reader)
        self._uses = UseCounter(
            writer, batch=settings.cache_uses_batch, flush_s=settings.cache_uses_flush_s
        )
        self._predictors = Predictors(reader) if settings.cache_predictor else None
        self._calls = BoundedCalls(settings.cache_lookups_max)
        self._scopes: dict[ScopeSpec, Scope] = {}
        self._counts: Counter[str] = Counter()
        self._counts_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        settings: CacheSettings,
        *,
        shipped: Sequence[Calibration] = (),
        clock: Callable[[], datetime] = utc_now,
    ) -> Self:
        """A cache on the settings' database and bucket; opens no connection yet.

        `shipped` calibrations came with the models: each is installed with its first scope.
        """
        url, budget_s = settings.database_url.get_secret_value(), settings.cache_budget_s
        reader = connect(
            url,
            pool_size=READERS,
            statement_timeout_s=budget_s,
            pool_timeout_s=budget_s,
            is_reader=True,
            options=search_options(settings),
        )
        objects = S3Objects.from_url(settings.s3_url.get_secret_value())
        writer = connect(url, pool_size=WRITERS)
        return cls(settings, objects, reader=reader, writer=writer, shipped=shipped, clock=clock)

    def scope(self, spec: ScopeSpec) -> Scope:
        """The spec's scope, registered on first sight; raises CacheError.

        A job need not ask: `find` and `store` take the spec itself and do not raise.
        """
        known = self._scopes.get(spec)
        if known is None:
            with transaction(self._writer) as connection:
                for calibration in self._shipped:
                    if calibration.is_for(spec):
                        install(connection, calibration)
                known = scopes.register(
                    connection,
                    spec,
                    sharing=self._settings.cache_sharing,
                    state_kind=self._settings.cache_state_kind,
                    k_fractions=self._settings.cache_k_fractions,
                    source=self._settings.cache_thresholds,
                )
            self._scopes[spec] = known
        return known

    def rules(self, namespace: str) -> NamespaceRules:
        """What the namespace has set, as of its last lookup. Asks no database."""
        return self._rules.last_known(namespace)

    def selector(self, spec: ScopeSpec) -> Selector:
        """The scope's; before its first lookup the paper's. Asks no database."""
        known = self._scopes.get(spec)
        return self._default_selector if known is None else known.selector

    def find(
        self,
        scope: Scope | ScopeSpec,
        embedding: Embedding,
        *,
        owner: str = "",
        prompt_hash: str | None = None,
        choice: int = 0,
    ) -> Found | Miss:
        """The state that saves this prompt the most steps, with its latents.

        `prompt_hash` tells a prompt that the owner has asked for before, which skips fewer steps;
        `choice` (64 bits, signed) decides among equals: draw it once a job, not once an attempt.

        Never raises, and never takes longer than `cache_budget_s` and a few milliseconds. Counts
        no use: say so with `count_use` once the latents were used.
        """
        started = time.monotonic()
        outcome: Found | Miss = Miss(reason=MissReason.INTERNAL)
        with self._never_failing("lookup failed"):
            asker = Asker(owner=owner, prompt_hash=prompt_hash, choice=choice)
            outcome = self._find(scope, embedding, asker)
        if isinstance(outcome, Miss):
            outcome = replace(outcome, lookup_s=time.monotonic() - started)
        self._count("hit" if isinstance(outcome, Found) else f"miss_{outcome.reason}")
        return outcome

    def count_use(self, hit: Hit, steps_saved: int) -> None:
        """Note that a state's latents were used; written in batches, never in the job's way."""
        with self._never_failing("use not counted"):
            uses = Uses(uses=1, steps_saved=steps_saved, last_used_at=self._clock())
            self._uses.count(hit.state_id, uses)

    def store(
        self, scope: Scope | ScopeSpec, entry: NewEntry, *, is_refresh: bool = False
    ) -> int | None:
        """Keep the entry's states, in place of the same prompt's if `is_refresh`.

        Answers the prompt's id, or None where it was not stored, as in a namespace whose cache is
        off: never raises. Takes as long as the object store and the database take, so call it off
        the job's path.
        """
        if not (self._settings.cache_enabled and entry.states):
            return None
        prompt_id = None
        with self._never_failing("entry not stored"):
            spec = scope if isinstance(scope, ScopeSpec) else scope.spec
            if not self._rules.of(spec.namespace).is_cached:
                return None
            prompt_id = self._store_once_more(scope, entry, is_refresh=is_refresh)
        self._count("store_failed" if prompt_id is None else "stored")
        return prompt_id

    def counts(self) -> Mapping[str, int]:
        """Since the start: hit, miss_<reason>, stored, store_failed, uses_dropped.

        With a match predictor also predictor_refused_<reason>.
        """
        refused = {} if self._predictors is None else self._predictors.counts()
        with self._counts_lock:
            return {**self._counts, **refused, "uses_dropped": self._uses.num_dropped}

    def flush(self) -> None:
        """Write the uses counted so far."""
        self._uses.flush()

    def close(self) -> None:
        """Write the uses counted so far and close the connections; takes a few seconds at most.

        Connections that hang in a server are left to the end of the process.
        """
        if self._predictors is not None:
            self._predictors.close(timeout_s=CLOSE_TIMEOUT_S)
        is_written = self._uses.close(timeout_s=CLOSE_TIMEOUT_S)
        if self._calls.is_idle_within(CLOSE_TIMEOUT_S) and is_written:
            self._reader.dispose()
            self._writer.dispose()
        self._objects.close()

    def _find(self, scope: Scope | ScopeSpec, embedding: Embedding, asker: Asker) -> Found | Miss:
        spec = scope if isinstance(scope, ScopeSpec) else scope.spec
        if not self._settings.cache_enabled:
            return Miss(reason=MissReason.DISABLED)
        if not self.selector(spec).allowances(spec.num_inference_steps):
            return Miss(reason=MissReason.TOO_FEW_STEPS)
        # Where the namespace was off, ask whether it still is.
        is_on = self._rules.last_known(spec.namespace).is_cached
        if is_on and not self._expects_match(scope, embedding):
            return Miss(reason=MissReason.PREDICTED)
        try:
            vector = embedding_text(embedding, spec.embedding_dimension)
            return self._calls.call(
                lambda: self._look_up(scope, vector, asker),
                budget_s=self._settings.cache_budget_s,
            )
        except CacheError as error:
            reason = miss_reason(error)
            logger.warning(
                "cache unusable for this job",
                extra={"reason": reason, "namespace": spec.namespace, "error": str(error)},
            )
            return Miss(reason=reason)

    def _expects_match(self, scope: Scope | ScopeSpec, embedding: Embedding) -> bool:
        """Ask the scope's predictor, if there is one; asks no database."""
        known = self._scopes.get(scope) if isinstance(scope, ScopeSpec) else scope
        if self._predictors is None or known is None:
            return True
        return self._predictors.expects_match(known, embedding)

    def _look_up(self, scope: Scope | ScopeSpec, vector: str, asker: Asker) -> Found | Miss:
        """Within the budget's thread: the namespace's switch, then the lookup."""
        spec = scope if isinstance(scope, ScopeSpec) else scope.spec
        if not self._rules.of(spec.namespace).is_cached:
            return Miss(reason=MissReason.DISABLED)
        return self._lookup.look_up_and_fetch(self._registered(scope), vector, asker)

    def _store_once_more(
        self, scope: Scope | ScopeSpec, entry: NewEntry, *, is_refresh: bool
    ) -> int:
        """Store, and again under a new scope where the one we know was forgotten."""
        try:
            return self._store.store(self._registered(scope), entry, is_refresh=is_refresh)
        except ScopeGone:
            spec = scope if isinstance(scope, ScopeSpec) else scope.spec
            self._scopes.pop(spec, None)
            return self._store.store(self.scope(spec), entry, is_refresh=is_refresh)

    def _registered(self, scope: Scope | ScopeSpec) -> Scope:
        return self.scope(scope) if isinstance(scope, ScopeSpec) else scope

    def _count(self, event: str) -> None:
        with self._counts_lock:
            self._counts[event] += 1

    @contextmanager
    def _never_failing(self, event: str) -> Iterator[None]:
        """The one boundary where whatever the cache meets is logged, and no job's concern."""
        try:
            yield
        except CacheError as error:
            logger.warning(event, extra={"error": str(error)})
        except Exception:
            logger.exception(event)
