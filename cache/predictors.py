"""The match predictors that a worker process knows, read behind the jobs' backs."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Engine, Row, text

from cache.database import transaction
from cache.entry import Embedding, Scope, Sharing
from cache.errors import CacheError, PredictorRefused
from cache.predictor import MatchPredictor, decode

logger = logging.getLogger(__name__)

REFRESH_S: Final = 30.0  # a predictor that beat has fitted is used after so long, at most

# Only those that changed come with their weights.
_CHANGED = text("""
    SELECT known.scope_id, m.sha256, m.weights
      FROM unnest(CAST(:scope_ids AS bigint[]), CAST(:hashes AS text[]))
           AS known (scope_id, sha256)
      LEFT JOIN match_predictors m ON m.scope_id = known.scope_id
     WHERE m.sha256 IS DISTINCT FROM known.sha256
""")


class Predictors:
    """The newest usable predictor of each scope that jobs asked for.

    Under namespace sharing only: it was fitted on the prompts of all, and under user sharing what
    it says of a prompt would tell a user of the others'.
    """

    def __init__(self, engine: Engine, *, refresh_s: float = REFRESH_S) -> None:
        self._engine = engine
        self._refresh_s = refresh_s
        self._scopes: dict[int, Scope] = {}
        self._hashes: dict[int, str] = {}  # of what was read last, usable or not
        self._usable: dict[int, MatchPredictor] = {}
        self._refusals: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._one_refresh = threading.Lock()
        self._due = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def expects_match(self, scope: Scope, embedding: Embedding) -> bool:
        """Whether a lookup is worth it; True where nothing usable is known yet. Never waits."""
        if scope.sharing is not Sharing.NAMESPACE:
            return True
        if scope.id not in self._scopes:
            self._watch(scope)
        predictor = self._usable.get(scope.id)
        return predictor is None or predictor.expects_match(embedding)

    def counts(self) -> Mapping[str, int]:
        """Stored predictors that were refused, by reason."""
        with self._lock:
            return {f"predictor_refused_{reason}": num for reason, num in self._refusals.items()}

    def refresh(self) -> None:
        """Read what has changed; keeps what is known where the database is away."""
        with self._one_refresh:
            with self._lock:
                scopes = dict(self._scopes)
            for row in self._changed(list(scopes)):
                self._take(scopes[row.scope_id], row)

    def close(self, *, timeout_s: float) -> None:
        """Stop the thread."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        self._due.set()
        if thread is not None:
            thread.join(timeout_s)

    def _changed(self, scope_ids: list[int]) -> Sequence[Row[tuple[int, str | None, bytes | None]]]:
        known = {"scope_ids": scope_ids, "hashes": [self._hashes.get(id) for id in scope_ids]}
        try:
            with transaction(self._engine) as connection:
                return connection.execute(_CHANGED, known).all()
        except CacheError as error:
            logger.warning("match predictors not read", extra={"error": str(error)})
            return ()

    def _watch(self, scope: Scope) -> None:
        with self._lock:
            self._scopes[scope.id] = scope
            # Not earlier: a thread does not survive the fork of a worker.
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._refresh_when_due, name="cache-predictors", daemon=True
                )
                self._thread.start()
        self._due.set()

    def _take(self, scope: Scope, row: Row[tuple[int, str | None, bytes | None]]) -> None:
        self._usable.pop(scope.id, None)
        if row.sha256 is None or row.weights is None:  # the scope has none any more
            self._hashes.pop(scope.id, None)
            return
        self._hashes[scope.id] = row.sha256
        try:
            self._usable[scope.id] = decode(row.weights, sha256=row.sha256, spec=scope.spec)
        except PredictorRefused as refused:
            with self._lock:
                self._refusals[refused.reason] += 1
            logger.warning(
                "match predictor refused", extra={"scope": scope.id, "reason": refused.reason}
            )

    def _refresh_when_due(self) -> None:
        while not self._closed.is_set():
            self._due.wait(self._refresh_s)
            self._due.clear()
            try:
                self.refresh()
            except Exception:
                logger.exception("match predictors not read")
