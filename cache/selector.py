"""How many steps a similarity lets a job skip (NIRVANA, NSDI'24: the cache selector).

And which of several states it starts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Self

STEPS_MIN = 4  # below this there is nothing worth skipping


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """A table: a cosine above `floor` allows k up to `fraction` of N."""

    version: str
    #: Whether measured for the model at hand.
    is_calibrated: bool
    #: (fraction of N, floor), both rising.
    rows: tuple[tuple[float, float], ...]

    def floor(self, k: int, num_inference_steps: int) -> float | None:
        """The similarity that must be exceeded to skip k of N; None if nothing allows it."""
        share = Fraction(k, num_inference_steps)
        for fraction, floor in self.rows:
            if share <= _exact(fraction):
                return floor
        return None


# The paper's table for Stable Diffusion, cosine of CLIP text embeddings and N = 50:
# above .65 / .75 / .85 / .90 / .95 skip 5 / 10 / 15 / 20 / 25 steps.
PAPER = Thresholds(
    version="paper",
    is_calibrated=False,
    rows=((0.1, 0.65), (0.2, 0.75), (0.3, 0.85), (0.4, 0.90), (0.5, 0.95)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Step k is allowed where the similarity is above `floor`."""

    k: int
    floor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """The k set of a number of steps, and what each k asks for."""

    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    thresholds: Thresholds = field(default=PAPER)

    @classmethod
    def of(cls, thresholds: Thresholds, fractions: tuple[float, ...] | None = None) -> Self:
        """A selector with the table's own fractions, unless others are given."""
        return cls(
            fractions=fractions or tuple(fraction for fraction, _ in thresholds.rows),
            thresholds=thresholds,
        )

    def k_set(self, num_inference_steps: int) -> tuple[int, ...]:
        """The steps after which latents are kept, rising; none below N = 4."""
        if num_inference_steps < STEPS_MIN:
            return ()
        steps = (int(_exact(f) * num_inference_steps) for f in self.fractions)
        return tuple(sorted({max(1, k) for k in steps}))

    def allowances(self, num_inference_steps: int) -> tuple[Allowance, ...]:
        """Each k of the set with its floor, rising.

        The floor is that of k / N as it came out: where rounding up to k = 1 makes the share
        larger than the fraction asked for, the stricter row of the table holds.
        """
        floors = (
            (k, self.thresholds.floor(k, num_inference_steps))
            for k in self.k_set(num_inference_steps)
        )
        return tuple(Allowance(k=k, floor=floor) for k, floor in floors if floor is not None)

    def k_max(self, similarity: float, num_inference_steps: int) -> int:
        """The most steps that a similarity allows to skip; 0 for none."""
        allowed = (a.k for a in self.allowances(num_inference_steps) if similarity > a.floor)
        return max(allowed, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRules:
    """How one of several usable states is chosen, and what a repeated prompt may start from."""

    #: States that skip equally many steps count as equally near within this much of the nearest's
    #: cosine; one of them is chosen at random.
    margin: float = 0.0
    #: Of N: the most that is skipped by a job whose words its owner has cached before. A final
    #: state is used at this very step, an intermediate one at the next of its k's below.
    again_fraction: float = 1.0
    #: Uses after which a cached prompt is not offered any more; None for no end.
    reuse_max: int | None = None

    def k_again(self, num_inference_steps: int) -> int:
        """The most steps that a repeated prompt skips."""
        return int(_exact(self.again_fraction) * num_inference_steps)


#: No limits: the nearest of those that skip the most.
ANY_STATE = ChoiceRules()


def _exact(fraction: float) -> Fraction:
    """The decimal that was written: floor(.29 * 100) is 28 in floating point."""
    return Fraction(str(fraction))
