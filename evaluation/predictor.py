"""The paper's match predictor over a log: whether looking each prompt up would have been worth it.

The product's own (`cache.predictor`), refitted as the log goes on, on the latest prompts before
each refit, so that it never sees the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import PackageMissing
from evaluation.vectors import HalfVectors, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorOptions:
    """How the predictor is fitted; the defaults are the product's."""

    nu: float = 0.2  # share of its own training prompts that it may call unlike
    gamma: float = 1.0  # of the RBF kernel, on unit vectors
    num_features: int = 256  # that approximate the kernel
    num_latest: int = 20_000  # prompts it is fitted on
    refit_every: int = 2_000  # jobs; until the first fit everything is looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorQuality:
    """The predictor against what lookups without it found."""

    lookups_avoided_share: float
    #: Share of the hits that it lets pass.
    recall: float
    #: Share of the prompts it lets pass that are hits.
    precision: float


def predict_matches(
    vectors: HalfVectors,
    options: PredictorOptions,
    *,
    progress: Progress = lambda _: None,
) -> NDArray[np.bool_]:
    """[n]: whether each prompt is to be looked up, by what came before it."""
    refit = _refit()
    fitting = refit.Fitting(nu=options.nu, gamma=options.gamma, num_features=options.num_features)
    is_asked = np.ones(len(vectors), dtype=bool)
    for start in range(options.refit_every, len(vectors), options.refit_every):
        latest = vectors[max(0, start - options.num_latest) : start].astype(np.float32)
        predictor = refit.fit(latest, fingerprint="", fitting=fitting)
        ahead = vectors[start : start + options.refit_every].astype(np.float32)
        is_asked[start : start + options.refit_every] = predictor.scores(ahead) >= 0
        progress(len(ahead))
    progress(min(options.refit_every, len(vectors)))
    return is_asked


def predictor_quality(is_asked: NDArray[np.bool_], is_hit: NDArray[np.bool_]) -> PredictorQuality:
    """Compare with the hits of a replay that looked everything up."""
    passed = float(np.sum(is_asked & is_hit))
    return PredictorQuality(
        lookups_avoided_share=float(np.mean(~is_asked)),
        recall=passed / max(1.0, float(np.sum(is_hit))),
        precision=passed / max(1.0, float(np.sum(is_asked))),
    )


def _refit() -> Any:
    """Loaded only here: scikit-learn takes a while, and replays without a predictor need none."""
    try:
        return import_module("cache.refit")
    except ModuleNotFoundError:
        raise PackageMissing("scikit-learn", needed_for="the match predictor") from None
