"""From measurements to thresholds: the least similarity at which a step k keeps the quality.

For each k, what reuse changes, d = score from the state - mean score of two seeds from noise, is
taken as a function of the similarity that does not fall, and fitted by isotonic regression. Pairs
are drawn again with replacement (bootstrap), and the floor is the least similarity from which on
the lower confidence bound of the fit stays at or above -(1 - alpha) x the mean score from noise.
That is the paper's rule (NIRVANA, NSDI'24, section 4: alpha = 0.9 of the uncached CLIPScore), with
a bound in place of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.entry import StateKind
from evaluation.calibration.measurements import Measurement
from evaluation.errors import PackageMissing

#: Similarities at which a floor may stand: .20 to .99, and finer where most reuses are.
GRID: Final = (
    *(round(0.2 + 0.01 * number, 2) for number in range(80)),
    *(0.995, 0.998, 0.999, 0.9995),
)
NUM_RESAMPLES: Final = 400
PAIRS_MIN: Final = 8  # at or above a floor: fewer say nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a k keeps the quality; each measure has its own share that must be kept."""

    alphas: Mapping[str, float] = field(default_factory=lambda: {"clip_score": 0.9})
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One measure at one k: what share of the score from noise is kept, over GRID."""

    kind: StateKind
    k: int
    measure: str
    kept: tuple[float, ...]  #: of the fit
    kept_at_least: tuple[float, ...]  #: lower confidence bound
    floor: float | None  #: None: at no similarity measured


def find_curves(measurements: Sequence[Measurement], rule: Rule) -> list[Curve]:
    """Fit each kind, k and measure; raises PackageMissing."""
    rng = np.random.default_rng(rule.seed)
    rows = rng.integers(len(measurements), size=(NUM_RESAMPLES, len(measurements)))
    similarities = np.array([each.similarity for each in measurements])
    curves = []
    for kind in measurements[0].from_state:
        for k in measurements[0].from_state[kind]:
            for measure, alpha in rule.alphas.items():
                changes, base = _changes(measurements, kind, k, measure)
                curves.append(
                    _curve(similarities, changes / base, rows, rule, alpha, (kind, k, measure))
                )
    return curves


def floors(curves: Sequence[Curve], kind: StateKind) -> dict[int, float]:
    """The floor of each k that every measure allows, not falling in k."""
    found: dict[int, float] = {}
    floor = GRID[0]
    for k in sorted({curve.k for curve in curves if curve.kind is kind}):
        needed = [curve.floor for curve in curves if (curve.kind, curve.k) == (kind, k)]
        if any(one is None for one in needed):
            break  # a larger k changes the picture more
        floor = max([floor, *(one for one in needed if one is not None)])
        found[k] = floor
    return found


def _changes(
    measurements: Sequence[Measurement], kind: StateKind, k: int, measure: str
) -> tuple[Floats, float]:
    """What reuse adds to each pair's score, and the mean score from noise."""
    noise = np.array([[each[measure] for each in m.from_noise] for m in measurements]).mean(axis=1)
    reused = np.array([m.from_state[kind][k][measure] for m in measurements])
    return reused - noise, float(noise.mean())


def _curve(
    similarities: Floats,
    changes: Floats,
    rows: NDArray[np.int64],
    rule: Rule,
    alpha: float,
    which: tuple[StateKind, int, str],
) -> Curve:
    fits = np.stack([_fit(similarities[drawn], changes[drawn]) for drawn in rows])
    lower = np.quantile(fits, 1 - rule.confidence, axis=0)
    kind, k, measure = which
    return Curve(
        kind=kind,
        k=k,
        measure=measure,
        kept=_shares(_fit(similarities, changes)),
        kept_at_least=_shares(lower),
        floor=_floor(similarities, lower >= alpha - 1),
    )


def _fit(similarities: Floats, changes: Floats) -> Floats:
    """The isotonic fit on GRID."""
    try:
        isotonic: Any = import_module("sklearn.isotonic")
    except ModuleNotFoundError:
        raise PackageMissing("scikit-learn", needed_for="calibrate") from None
    model = isotonic.IsotonicRegression(out_of_bounds="clip").fit(similarities, changes)
    fitted: Floats = model.predict(np.array(GRID))
    return fitted


def _floor(similarities: Floats, is_kept: NDArray[np.bool_]) -> float | None:
    """The first grid point from which on all are kept, with a pair below it and enough above."""
    kept_on = np.logical_and.accumulate(is_kept[::-1])[::-1]
    for at, floor in enumerate(GRID):
        if kept_on[at] and floor >= similarities.min():
            return floor if np.count_nonzero(similarities >= floor) >= PAIRS_MIN else None
    return None


def _shares(changes: Floats) -> tuple[float, ...]:
    return tuple(round(1 + float(change), 4) for change in changes)
