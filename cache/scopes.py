"""Scopes as rows."""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import Connection, text

from cache.calibration import thresholds_of
from cache.entry import Scope, ScopeSpec, Sharing, StateKind, ThresholdSource
from cache.selector import PAPER, Selector

_REGISTER_NAMESPACE = text("""
    INSERT INTO namespaces (namespace)
    VALUES (:namespace)
        ON CONFLICT (namespace) DO NOTHING
""")

_REGISTER_SCOPE = text("""
    INSERT INTO scopes (fingerprint, namespace, spec, embedder, embedding_dimension,
                        num_inference_steps, state_kind, k_set, thresholds_version)
    VALUES (:fingerprint, :namespace, CAST(:spec AS jsonb), :embedder, :embedding_dimension,
            :num_inference_steps, :state_kind, :k_set, :thresholds_version)
        ON CONFLICT (fingerprint) DO UPDATE
       SET state_kind = excluded.state_kind,
           k_set = excluded.k_set,
           thresholds_version = excluded.thresholds_version
    RETURNING id
""")

_RECORD_SPEED = text("""
    UPDATE scopes
       SET seconds_per_step = COALESCE(0.9 * seconds_per_step + 0.1 * :seconds, :seconds)
     WHERE id = :scope_id
""")


def register(
    connection: Connection,
    spec: ScopeSpec,
    *,
    sharing: Sharing,
    state_kind: StateKind,
    k_fractions: tuple[float, ...] | None = None,
    source: ThresholdSource = ThresholdSource.CALIBRATED,
) -> Scope:
    """Get or create the scope's row, and its namespace's; it gets the thresholds of the source.

    `k_fractions` of N are kept instead of those that the thresholds name.
    """
    is_paper = source is ThresholdSource.PAPER
    thresholds = PAPER if is_paper else thresholds_of(connection, spec, state_kind)
    selector = Selector.of(thresholds, k_fractions)
    connection.execute(_REGISTER_NAMESPACE, {"namespace": spec.namespace})
    row = {
        "fingerprint": spec.fingerprint,
        "namespace": spec.namespace,
        "spec": json.dumps(asdict(spec)),
        "embedder": spec.embedder,
        "embedding_dimension": spec.embedding_dimension,
        "num_inference_steps": spec.num_inference_steps,
        "state_kind": state_kind.value,
        "k_set": list(selector.k_set(spec.num_inference_steps)),
        "thresholds_version": selector.thresholds.version,
    }
    scope_id = connection.execute(_REGISTER_SCOPE, row).scalar_one()
    return Scope(id=scope_id, spec=spec, sharing=sharing, state_kind=state_kind, selector=selector)


def record_seconds_per_step(connection: Connection, scope_id: int, seconds: float) -> None:
    """Take a measurement into the scope's moving average, which weighs its states' benefit."""
    connection.execute(_RECORD_SPEED, {"scope_id": scope_id, "seconds": seconds})
