"""How often the same prompt comes again, and whether that follows Zipf's law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_EXPONENTS: Final = (0.0, 4.0)
_ROUNDS: Final = 60
_PLOTTED: Final = 200  # ranks, evenly spread over their logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """Prompts by how often they were asked for, word for word."""

    num_distinct: int
    #: Share of rows whose prompt came before.
    repeat_share: float
    #: Share of rows that the most popular hundredth of the prompts has.
    top_percent_share: float
    #: s of p(rank) ~ rank^-s over all ranks, by maximum likelihood.
    zipf_exponent: float
    #: Largest gap between the log's and the fit's cumulative shares: under 0.05 Zipf describes it.
    zipf_distance: float
    ranks: tuple[int, ...]  #: some of them, for a plot
    counts: tuple[int, ...]  #: rows of each of those


def popularity(prompts: Sequence[str]) -> Popularity:
    """Count equal prompts and fit Zipf's law to them."""
    counts = np.sort(np.fromiter(Counter(prompts).values(), dtype=np.int64))[::-1]
    exponent = fit_zipf(counts)
    top = counts[: max(1, len(counts) // 100)]
    shown = np.unique(np.geomspace(1, len(counts), _PLOTTED).astype(int))
    return Popularity(
        num_distinct=len(counts),
        repeat_share=1 - len(counts) / len(prompts),
        top_percent_share=float(top.sum() / len(prompts)),
        zipf_exponent=exponent,
        zipf_distance=_distance(counts, exponent),
        ranks=tuple(shown.tolist()),
        counts=tuple(counts[shown - 1].tolist()),
    )


def fit_zipf(counts: NDArray[np.int64]) -> float:
    """The exponent s that makes counts by rank (falling) most likely: p(r) = r^-s / sum_i i^-s."""
    log_ranks = np.log(np.arange(1, len(counts) + 1))
    mean_log_rank = float(counts @ log_ranks) / float(counts.sum())

    def cost(exponent: float) -> float:
        return exponent * mean_log_rank + float(np.log(np.exp(-exponent * log_ranks).sum()))

    low, high = _EXPONENTS
    for _ in range(_ROUNDS):  # convex in the exponent
        third = (high - low) / 3
        if cost(low + third) <= cost(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


def _distance(counts: NDArray[np.int64], exponent: float) -> float:
    """Kolmogorov-Smirnov distance of the two cumulative shares over ranks."""
    weights = np.arange(1, len(counts) + 1) ** -exponent
    gap = np.cumsum(counts) / counts.sum() - np.cumsum(weights) / weights.sum()
    return float(np.abs(gap).max())
