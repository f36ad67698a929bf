"""What shadow runs showed: hits beside the same jobs drawn without the cache."""

from __future__ import annotations

import io
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import import_module
from typing import Final

import numpy as np
from sqlalchemy import Connection, text

from cache.errors import ObjectStoreError
from evaluation.calibration.quality import Picture, Quality
from evaluation.errors import PackageMissing

logger = logging.getLogger(__name__)

ALPHA: Final = 0.9  # of the uncached score: the paper's floor
PAIRS_MAX: Final = 1_000  # the newest
BATCH: Final = 32  # pairs scored at once

_READ = text("""
    SELECT s.job_id, j.model, j.job ->> 'prompt' AS prompt, s.k, s.similarity, s.image_key,
           s.uncached_image_key, s.scores, s.drawn_at,
           source.job ->> 'prompt' AS source_prompt,
           source.result #>> '{image,key}' AS source_image_key
      FROM shadow_runs s
      JOIN jobs j ON j.id = s.job_id
      LEFT JOIN jobs source ON source.id = CAST(j.result #>> '{cache,source_job_id}' AS uuid)
     WHERE s.drawn_at >= :since AND s.drawn_at < :until
       AND (CAST(:namespace AS text) IS NULL OR s.namespace = :namespace)
     ORDER BY s.drawn_at DESC
     LIMIT :limit
""")

_SAVE = text("""
    UPDATE shadow_runs
       SET scores = COALESCE(scores, '{}') || CAST(:scores AS jsonb)
     WHERE job_id = :job_id
""")

ReadImage = Callable[[str], bytes]  # by key; raises ObjectStoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPair:
    """A hit and its uncached twin, of the same prompt and seed."""

    job_id: uuid.UUID
    model: str
    prompt: str
    k: int
    similarity: float
    image_key: str
    uncached_image_key: str
    scores: Mapping[str, tuple[float, float]] | None  #: of both, by measure
    drawn_at: datetime
    source_prompt: str | None
    source_image_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How much of the uncached score hits keep."""

    num_pairs: int
    ratio: float  #: of the mean scores
    share_below_alpha: float  #: of the hits, those under 0.9 of their own twin's score


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSummary:
    """Of the pairs of a time."""

    num_pairs: int
    kept: Kept | None  #: None without a scored pair
    by_k: dict[int, Kept]
    by_day: dict[str, Kept]


def read_pairs(
    connection: Connection, *, since: datetime, until: datetime, namespace: str | None = None
) -> list[ShadowPair]:
    """Read the pairs drawn from `since` on and before `until`, the newest first."""
    wanted = {"since": since, "until": until, "namespace": namespace, "limit": PAIRS_MAX}
    return [ShadowPair(**row) for row in connection.execute(_READ, wanted).mappings()]


def score_pairs(pairs: Sequence[ShadowPair], quality: Quality, read: ReadImage) -> list[ShadowPair]:
    """Score those that have no score of this measure yet; one whose images are gone stays so."""
    missing = [pair for pair in pairs if quality.name not in (pair.scores or {})]
    scored: dict[uuid.UUID, tuple[float, float]] = {}
    for first in range(0, len(missing), BATCH):
        scored |= _score(missing[first : first + BATCH], quality, read)
    return [
        replace(pair, scores={**(pair.scores or {}), quality.name: scored[pair.job_id]})
        if pair.job_id in scored
        else pair
        for pair in pairs
    ]


def save_scores(connection: Connection, pairs: Sequence[ShadowPair]) -> None:
    """Keep the scores with their pairs, so that each is scored once."""
    rows = [
        {"job_id": pair.job_id, "scores": json.dumps(pair.scores)} for pair in pairs if pair.scores
    ]
    if rows:
        connection.execute(_SAVE, rows)


def summarize(pairs: Sequence[ShadowPair], measure: str = "clip_score") -> ShadowSummary:
    """Say how much of the uncached score is kept: in all, by k, and by day."""
    scored = [pair for pair in pairs if measure in (pair.scores or {})]
    ks, days = {pair.k for pair in scored}, {_day(pair) for pair in scored}
    return ShadowSummary(
        num_pairs=len(pairs),
        kept=_kept(scored, measure) if scored else None,
        by_k={k: _kept([p for p in scored if p.k == k], measure) for k in sorted(ks)},
        by_day={day: _kept([p for p in scored if _day(p) == day], measure) for day in sorted(days)},
    )


def _kept(pairs: Sequence[ShadowPair], measure: str) -> Kept:
    both = np.array([pair.scores[measure] for pair in pairs if pair.scores])
    return Kept(
        num_pairs=len(pairs),
        ratio=float(both[:, 0].mean() / both[:, 1].mean()),
        share_below_alpha=float((both[:, 0] < ALPHA * both[:, 1]).mean()),
    )


def _day(pair: ShadowPair) -> str:
    return f"{pair.drawn_at:%Y-%m-%d}"


def _score(
    pairs: Sequence[ShadowPair], quality: Quality, read: ReadImage
) -> dict[uuid.UUID, tuple[float, float]]:
    there: list[ShadowPair] = []
    pictures: list[Picture] = []
    for pair in pairs:
        try:
            both = [_picture(read(key)) for key in (pair.image_key, pair.uncached_image_key)]
        except ObjectStoreError as error:  # expired, or the store is down: the others stand
            logger.warning("a pair is left out: %s", error)
            continue
        there.append(pair)
        pictures += both
    if not there:
        return {}
    prompts = [pair.prompt for pair in there for _ in range(2)]
    scores = quality.score(pictures, prompts).reshape(-1, 2).tolist()
    return {pair.job_id: (hit, twin) for pair, (hit, twin) in zip(there, scores, strict=True)}


def _picture(png: bytes) -> Picture:
    try:
        image = import_module("PIL.Image")
    except ModuleNotFoundError:
        raise PackageMissing("pillow", needed_for="image pairs") from None
    picture: Picture = np.asarray(image.open(io.BytesIO(png)).convert("RGB"))
    return picture
