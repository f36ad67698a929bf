"""Sets each arm against no cache, and says which targets it holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from benchmarks.savings.rows import Row
from benchmarks.savings.scores import Floats, Scores
from benchmarks.savings.workload import Request

ALPHA: Final = 0.9  # of a job's uncached CLIPScore: the paper's floor
SAVINGS_MIN: Final = 0.30
SAVINGS_OVER_NIRVANA_MIN: Final = 1.7
JUDGE_RATIO_MIN: Final = 0.97
QUALITY_RATIO_MIN: Final = 0.97
EXCESS_MAX: Final = 0.05
DIVERSITY_RATIO_MIN: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """An arm's rows, and the scores of their pictures."""

    title: str
    rows: Sequence[Row]
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """An arm in numbers; ratios are to no cache, and None where nothing could be compared."""

    title: str
    jobs: int
    hits: int
    k_mean: float | None  #: steps that a hit skipped
    savings: float  #: steps skipped / steps asked for
    latency_mean_s: float | None
    latency_p95_s: float | None
    latency_reduction: float | None  #: of the mean, over the jobs timed in both
    miss_latency_ratio: float | None  #: misses to the same jobs uncached: 1 on a steady machine
    clip_score: float
    quality_ratio: float  #: of the mean CLIPScores
    below_alpha: float  #: share of jobs under ALPHA of their own uncached score
    below_alpha_of_hits: float | None  #: the same among hits
    share_below_alpha_excess: float | None  #: below_alpha less that of two uncached seeds
    judge: float
    judge_ratio: float
    judge_ratio_of_hits: float | None  #: hits against the same jobs uncached
    diversity: float | None  #: of re-rolls: 1 - cosine of two pictures' features
    diversity_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """With four digits, which is more than a run can tell apart."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }

    def missed(self) -> list[str]:
        """Targets of quality that it does not hold; what could not be compared holds none."""
        holds = {
            "judge_ratio": self.judge_ratio >= JUDGE_RATIO_MIN,
            "quality_ratio": self.quality_ratio >= QUALITY_RATIO_MIN,
            "share_below_alpha_excess": self.share_below_alpha_excess is not None
            and self.share_below_alpha_excess <= EXCESS_MAX,
            "diversity_ratio": self.diversity_ratio is not None
            and self.diversity_ratio >= DIVERSITY_RATIO_MIN,
        }
        return [name for name, is_held in holds.items() if not is_held]


def compare(
    arm: Measured, uncached: Measured, requests: Sequence[Request], *, null: float | None
) -> Figures:
    """Figures of an arm that served the same jobs; `null` is the share of `null_below_alpha`."""
    assert [row.row for row in arm.rows] == [row.row for row in uncached.rows]
    seconds, base = _timed(arm.rows, uncached.rows)
    misses, base_of_misses = _timed(
        [row for row in arm.rows if not row.is_hit],
        [base for row, base in zip(arm.rows, uncached.rows, strict=True) if not row.is_hit],
    )
    hits = np.array([row.is_hit for row in arm.rows])
    below = below_alpha(arm.scores.clip, uncached.scores.clip)
    groups = _rerolls(arm.rows, requests)
    diversity = _diversity(arm.scores.features, groups)
    judge, judge_base = arm.scores.judge, uncached.scores.judge
    return Figures(
        title=arm.title,
        jobs=len(arm.rows),
        hits=int(hits.sum()),
        k_mean=_mean(np.array([row.k for row in arm.rows if row.is_hit], dtype=np.float64)),
        savings=1 - sum(r.steps_run for r in arm.rows) / sum(r.steps_asked for r in arm.rows),
        latency_mean_s=_mean(seconds),
        latency_p95_s=float(np.quantile(seconds, 0.95)) if len(seconds) else None,
        latency_reduction=float(1 - seconds.mean() / base.mean()) if len(seconds) else None,
        miss_latency_ratio=_ratio(_mean(misses), _mean(base_of_misses)),
        clip_score=float(arm.scores.clip.mean()),
        quality_ratio=float(arm.scores.clip.mean() / uncached.scores.clip.mean()),
        below_alpha=float(below.mean()),
        below_alpha_of_hits=_mean(below[hits]),
        share_below_alpha_excess=None if null is None else float(below.mean()) - null,
        judge=float(judge.mean()),
        judge_ratio=float(judge.mean() / judge_base.mean()),
        judge_ratio_of_hits=_ratio(_mean(judge[hits]), _mean(judge_base[hits])),
        diversity=diversity,
        diversity_ratio=_ratio(diversity, _diversity(uncached.scores.features, groups)),
    )


def below_alpha(scores: Floats, uncached: Floats) -> Floats:
    """1 where a job has lost more than 1 - ALPHA of its uncached score; [n].

    A score can be negative: what is lost is measured by its size, so that an equal one is never
    below.
    """
    return (scores < uncached - (1 - ALPHA) * np.abs(uncached)).astype(np.float64)


def null_below_alpha(reseeded: Measured, uncached: Measured) -> float | None:
    """What two uncached seeds of a job do to each other: the share that chance alone explains."""
    at = {row.row: number for number, row in enumerate(uncached.rows)}
    if not reseeded.rows:
        return None
    base = uncached.scores.clip[[at[row.row] for row in reseeded.rows]]
    return float(below_alpha(reseeded.scores.clip, base).mean())


def better_of(figures: Mapping[str, Figures], names: Sequence[str]) -> str | None:
    """Of those that ran: fewest targets missed, then the most savings."""
    ran = [name for name in names if name in figures]
    return min(
        ran, key=lambda name: (len(figures[name].missed()), -figures[name].savings), default=None
    )


def _timed(rows: Sequence[Row], uncached: Sequence[Row]) -> tuple[Floats, Floats]:
    """Seconds of the jobs that were timed with and without the cache."""
    pairs = [
        (row.seconds, other.seconds)
        for row, other in zip(rows, uncached, strict=True)
        if row.seconds is not None and other.seconds is not None
    ]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _rerolls(rows: Sequence[Row], requests: Sequence[Request]) -> list[list[int]]:
    """Places of rows in which a user asks for the same prompt, for each asked for more than once.

    Each such job has a seed of its own: its user wants to see another picture.
    """
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[requests[row.row].user, requests[row.row].prompt].append(place)
    return [group for group in places.values() if len(group) > 1]


def _diversity(features: Floats, groups: Sequence[Sequence[int]]) -> float | None:
    """Mean over groups of the mean pairwise cosine distance."""
    distances = [
        np.mean([1 - features[one] @ features[other] for one, other in combinations(group, 2)])
        for group in groups
    ]
    return float(np.mean(distances)) if distances else None


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
