"""Which states a job leaves behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What is stored of a finished job; the default is what the worker does.

    That is within 0.3 % of the best rule that a worker can follow, at every capacity tried
    (`python -m benchmarks.admission`; docs/evaluation.md has its tables).

    A final state is stored whole or not at all: `only_above` does not concern it.
    """

    #: Only the steps that the job ran itself: it has no latents of those that it skipped.
    #: False also stores those, as if they were copied from the state it started from.
    only_above: bool = True
    #: Only where no cached prompt in reach is more similar than this; None stores them all.
    novel_below: float | None = None
    #: Only from jobs whose state has at most so many reuses behind it; None for any. A job from
    #: noise has none, one that started from its state has one, and so on.
    chain_max: int | None = None
    #: In place of what the same owner has cached for the same words, instead of beside it.
    replaces_repeats: bool = False

    def admits(self, *, nearest: float, chain: int) -> bool:
        """Whether anything is stored of a job, given its nearest cached prompt and its chain."""
        is_novel = self.novel_below is None or nearest <= self.novel_below
        return is_novel and (self.chain_max is None or chain <= self.chain_max)

    @property
    def label(self) -> str:
        """A name for tables."""
        parts = ["above the reused k" if self.only_above else "all k"]
        if self.novel_below is not None:
            parts.append(f"novel below {self.novel_below:g}")
        if self.chain_max is not None:
            parts.append(f"chain of {self.chain_max} at most")
        if self.replaces_repeats:
            parts.append("in place of repeats")
        return ", ".join(parts)
