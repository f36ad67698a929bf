"""Fit the match predictors anew on what is cached: a periodic task, where scikit-learn is.

Each fit starts afresh on the newest prompts that the scope still holds: what was evicted must not
be expected any more, and a one-class SVM cannot unlearn. Random features keep nobody's prompt, as
support vectors would; what is forgotten takes its scope's predictor along (`cache.purge`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import SGDOneClassSVM
from sqlalchemy import Connection, Engine, text

from cache.database import transaction
from cache.predictor import (
    Floats,
    MatchPredictor,
    checksum,
    encode,
    fourier_features,
    unit_rows,
)
from cache.predictor_rows import lock_fitting

PROMPTS_MIN: Final = 1_000  # below, a scope is looked up in a moment, and tells little
PROMPTS_MAX: Final = 20_000  # the newest; fitting them takes about a second
SCOPES_MAX: Final = 100  # of one run, those fitted longest ago first

# Under user sharing there is none: see `cache.predictors`. Counting ends at what is needed.
_SCOPES = text("""
    SELECT c.id, c.fingerprint
      FROM scopes c
      LEFT JOIN match_predictors m ON m.scope_id = c.id
     CROSS JOIN LATERAL (
           SELECT count(*) AS num_prompts
             FROM (SELECT FROM cached_prompts p
                    WHERE p.scope_id = c.id AND p.is_shared
                    LIMIT :prompts_min) enough) counted
     WHERE counted.num_prompts >= :prompts_min
     ORDER BY m.fitted_at NULLS FIRST, c.id
     LIMIT :limit
""")

_NEWEST = text("""
    SELECT halfvec_send(p.embedding) AS embedding
      FROM cached_prompts p
     WHERE p.scope_id = :scope_id
       AND p.is_shared
       AND (p.expires_at IS NULL OR p.expires_at > :now)
     ORDER BY p.id DESC
     LIMIT :limit
""")

_SAVE = text("""
    INSERT INTO match_predictors (scope_id, sha256, weights, num_prompts, fitted_at)
    SELECT c.id, :sha256, :weights, :num_prompts, :now
      FROM scopes c
     WHERE c.id = :scope_id
        ON CONFLICT (scope_id) DO UPDATE
       SET sha256 = excluded.sha256,
           weights = excluded.weights,
           num_prompts = excluded.num_prompts,
           fitted_at = excluded.fitted_at
""")

# A scope that shrank is looked up again.
_DROP = text("""
    DELETE FROM match_predictors m
     WHERE NOT EXISTS (
           SELECT FROM cached_prompts p
            WHERE p.scope_id = m.scope_id AND p.is_shared
           OFFSET :prompts_min - 1
            LIMIT 1)
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How a predictor is fitted."""

    nu: float = 0.2  # share of its own prompts that it may call unlike
    gamma: float = 1.0  # of the RBF kernel, on unit vectors
    num_features: int = 256
    num_epochs: int = 20
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitReport:
    """What a run did."""

    scopes_fitted: int = 0
    prompts_read: int = 0
    predictors_dropped: int = 0


def refit(
    engine: Engine,
    *,
    now: datetime,
    fitting: Fitting | None = None,
    prompts_min: int = PROMPTS_MIN,
    prompts_max: int = PROMPTS_MAX,
) -> RefitReport:
    """Fit every shared scope that has enough prompts; raises CacheError."""
    with transaction(engine) as connection:
        num_dropped = connection.execute(_DROP, {"prompts_min": prompts_min}).rowcount
        wanted = {"prompts_min": prompts_min, "limit": SCOPES_MAX}
        scopes = connection.execute(_SCOPES, wanted).all()
    num_prompts = [
        _refit_scope(
            engine, scope_id, fingerprint, fitting or Fitting(), limit=prompts_max, now=now
        )
        for scope_id, fingerprint in scopes
    ]
    return RefitReport(
        scopes_fitted=sum(num > 0 for num in num_prompts),
        prompts_read=sum(num_prompts),
        predictors_dropped=num_dropped,
    )


def _refit_scope(
    engine: Engine, scope_id: int, fingerprint: str, fitting: Fitting, *, limit: int, now: datetime
) -> int:
    """Fit one scope; answers on how many prompts.

    In one transaction: what is forgotten meanwhile must not come back with the new predictor.
    """
    with transaction(engine) as connection:
        lock_fitting(connection)
        vectors = _newest(connection, scope_id, now=now, limit=limit)
        if len(vectors):
            weights = encode(fit(vectors, fingerprint=fingerprint, fitting=fitting))
            row = {
                "scope_id": scope_id,
                "sha256": checksum(weights),
                "weights": weights,
                "num_prompts": len(vectors),
                "now": now,
            }
            connection.execute(_SAVE, row)
    return len(vectors)


def fit(vectors: Floats, *, fingerprint: str, fitting: Fitting) -> MatchPredictor:
    """Fit on [n, d] embeddings of any length; the same ones give the same predictor."""
    kernel_map = RBFSampler(
        gamma=fitting.gamma, n_components=fitting.num_features, random_state=fitting.seed
    ).fit(vectors[:1])
    projection = kernel_map.random_weights_.astype(np.float32)
    phases = kernel_map.random_offset_.astype(np.float32)
    svm = SGDOneClassSVM(
        nu=fitting.nu, max_iter=fitting.num_epochs, tol=None, random_state=fitting.seed
    ).fit(fourier_features(unit_rows(vectors), projection, phases))
    return MatchPredictor(
        fingerprint=fingerprint,
        projection=projection,
        phases=phases,
        weights=svm.coef_.astype(np.float32),
        offset=float(svm.offset_[0]),
    )


def _newest(connection: Connection, scope_id: int, *, now: datetime, limit: int) -> Floats:
    """[n, d]; halfvec's binary form is two 16-bit numbers, then halves, high bytes first."""
    wanted = {"scope_id": scope_id, "now": now, "limit": limit}
    rows: list[NDArray[np.float16]] = [
        np.frombuffer(embedding, dtype=">f2", offset=4)
        for embedding in connection.execute(_NEWEST, wanted).scalars()
    ]
    return np.asarray(rows, dtype=np.float32)
