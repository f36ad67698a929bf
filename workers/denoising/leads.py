"""Jobs that follow another one in flight: they start from what it is predicted to become.

    leader     step 0 ... step k-1 | step k ........................ step N-1
                      predicted x_0 |
    follower   (holds no seat)      '-> noised again to step k, own seed ... step N-1

A follower takes as many of the leader's steps as it would have taken alone, so that it is done when
it would have been done from noise; the k steps it waits are the leader's, not its own. The noise is
its own, so that it draws another picture.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from workers.denoising.errors import InvalidRequest


class Lead:
    """The finished latents of a job in flight, as predicted after the latest of some steps.

    Written by the engine's thread, save `end`, which any thread may call.
    """

    def __init__(self, steps: Collection[int]) -> None:
        self.steps = frozenset(steps)  # after these numbers of steps
        self.step = 0  # of the latest prediction; N when it is the result; 0 before the first
        self.is_over = False  # no later prediction will come
        self._latents: Tensor | None = None

    def note(self, step: int, latents: Tensor) -> None:
        """Keep a prediction [1, C, h, w] in place of the earlier ones, which were further off."""
        self._latents, self.step = latents[0], step

    def end(self, _: object = None) -> None:
        """Say that the job has ended, however it did; fits as its future's callback."""
        self.is_over = True

    @property
    def latents(self) -> Tensor | None:
        """The latest prediction [C, h, w]; None before the first, or where it is not finite."""
        if self._latents is None or not self._latents.isfinite().all():
            return None
        return self._latents


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Follow:
    """Whom a job follows. Raises InvalidRequest."""

    lead: Lead
    ks: tuple[int, ...]  # steps that it may skip, rising: the last is waited for
    give_up_at: float  # on time.monotonic()'s clock: then with what is there

    def __post_init__(self) -> None:
        if not self.ks or list(self.ks) != sorted(self.ks) or self.ks[0] < 1:
            raise InvalidRequest(f"steps to skip are to rise from 1 or more, not {self.ks}")

    def is_waiting(self, now: float) -> bool:
        """Whether the leader may still come to what is waited for."""
        return self.lead.step < self.ks[-1] and not self.lead.is_over and now < self.give_up_at

    @property
    def k(self) -> int:
        """The most steps that the leader lets it skip by now; 0 for none."""
        return max((k for k in self.ks if k <= self.lead.step), default=0)
