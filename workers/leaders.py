"""Who may follow whom among the jobs in flight of one process.

Several seeds of one prompt, sent together, would all start from noise: no state of theirs is stored
yet. So the first of them leads, and the others start from what it is predicted to become. A job
that starts from noise leads until its states are stored; from then on a lookup finds them. A leader
never waits and a follower never leads, so that nobody waits for somebody who waits.

The rules of sharing are the cache's: the same scope, which holds the namespace, and the same owner
unless the whole namespace shares.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from cache.approximate import ApproximateCache
from cache.entry import MissReason, ScopeSpec, Sharing
from producer.contract import CacheMode, CacheOutcome
from producer.result import CacheReport
from workers.denoising.leads import Follow, Lead
from workers.denoising.request import Denoised
from workers.ledger import Claim
from workers.reuse import ReusePlan

IN_FLIGHT: Final = "in_flight"  # the reason of a hit that no stored state made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Leader:
    """A job that others may follow."""

    scope: ScopeSpec
    owner: str
    job_id: str
    prompt: str
    embedding: NDArray[np.float32]  # of unit length
    lead: Lead


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """A leader, and how like it a job is."""

    leader: _Leader
    similarity: float
    ks: tuple[int, ...]  # steps that the similarity allows to skip, rising


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """A job's place among those in flight: it leads, follows, or neither.

    As a context manager it leaves at the end of the block, unless it is told to stay.
    """

    remove: Callable[[_Leader], None]
    follow: Follow | None = None
    match: _Match | None = None  # whom it follows
    leader: _Leader | None = None  # itself, where it leads
    _is_staying: bool = field(default=False, init=False)

    @property
    def lead(self) -> Lead | None:
        """What the engine is to tell of this job."""
        return None if self.leader is None else self.leader.lead

    def settle(self, claim: Claim, plan: ReusePlan, denoised: Denoised) -> ReusePlan:
        """Put the leader in the place of what the cache had found, where the job followed it."""
        if self.match is None or denoised.k <= (0 if plan.hit is None else plan.hit.k):
            return plan
        leader = self.match.leader
        report = CacheReport(
            outcome=CacheOutcome.HIT,
            k=denoised.k,
            similarity=self.match.similarity,
            # As of a stored state: whose job it was is told to nobody else.
            source_job_id=leader.job_id if leader.owner == claim.owner else None,
            reason=IN_FLIGHT,
        )
        return replace(plan, report=report, hit=None)

    def stay(self) -> Callable[[], None]:
        """Stay beyond the block, until the function that this returns is called."""
        self._is_staying = True
        return self.leave

    def leave(self) -> None:
        """Be followed by nobody any more; may be repeated."""
        if self.leader is not None:
            self.leader.lead.end()
            self.remove(self.leader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_staying:
            self.leave()


class Leaders:
    """The jobs in flight that may be followed; used by the threads of all jobs."""

    def __init__(
        self,
        cache: ApproximateCache,
        *,
        sharing: Sharing,
        wait_s: float,
        reroll_fraction: float = 1.0,
    ) -> None:
        """Followers wait for at most `wait_s`; 0 lets nobody follow.

        Those of the same words skip at most `reroll_fraction` of their steps: another seed is to
        give another picture.
        """
        self._cache = cache
        self._reroll_fraction = reroll_fraction
        self._sharing = sharing
        self._wait_s = wait_s
        self._leaders: dict[int, _Leader] = {}  # by identity
        self._lock = threading.Lock()

    def place(self) -> Place:
        """A place for a job that may `join` later."""
        return Place(remove=self._remove)

    def join(
        self, place: Place, claim: Claim, plan: ReusePlan, embedding: NDArray[np.float32]
    ) -> None:
        """Let the job follow one that lets it skip more than its plan does, or else lead.

        Of jobs that join at the same moment one leads.
        """
        ks = [a.k for a in self._cache.selector(plan.scope).allowances(_num_steps(plan))]
        if not (self._wait_s and ks and _is_open(plan)):
            return
        with self._lock:
            match = self._best(claim, plan, embedding)
            if match is not None:
                give_up_at = time.monotonic() + self._wait_s
                place.follow = Follow(lead=match.leader.lead, ks=match.ks, give_up_at=give_up_at)
                place.match = match
            elif plan.hit is None:
                place.leader = _Leader(
                    scope=plan.scope,
                    owner=claim.owner,
                    job_id=str(claim.job_id),
                    prompt=claim.job.prompt,
                    embedding=embedding,
                    lead=Lead(ks),
                )
                self._leaders[id(place.leader)] = place.leader

    def _best(self, claim: Claim, plan: ReusePlan, embedding: NDArray[np.float32]) -> _Match | None:
        """Whom the job follows; the nearest of those that let it skip the most."""
        if claim.job.cache is not CacheMode.USE:
            return None
        found_k = 0 if plan.hit is None else plan.hit.k
        matches = (
            self._match(leader, claim, plan, embedding)
            for leader in self._leaders.values()
            if self._may_share(leader, claim, plan)
        )
        useful = [match for match in matches if match.ks and match.ks[-1] > found_k]
        return max(useful, key=lambda match: (match.ks[-1], match.similarity), default=None)

    def _may_share(self, leader: _Leader, claim: Claim, plan: ReusePlan) -> bool:
        is_shared = self._sharing is Sharing.NAMESPACE or leader.owner == claim.owner
        # Not itself: its earlier attempt, taken over from this worker, may still be ending here.
        return is_shared and leader.scope == plan.scope and leader.job_id != str(claim.job_id)

    def _match(
        self, leader: _Leader, claim: Claim, plan: ReusePlan, embedding: NDArray[np.float32]
    ) -> _Match:
        similarity, num_steps = float(leader.embedding @ embedding), _num_steps(plan)
        allowed = self._cache.selector(plan.scope).allowances(num_steps)
        share_max = self._reroll_fraction if leader.prompt == claim.job.prompt else 1.0
        ks = (a.k for a in allowed if similarity > a.floor and a.k <= share_max * num_steps)
        return _Match(leader=leader, similarity=similarity, ks=tuple(ks))

    def _remove(self, leader: _Leader) -> None:
        with self._lock:
            self._leaders.pop(id(leader), None)


def _num_steps(plan: ReusePlan) -> int:
    return plan.scope.num_inference_steps


def _is_open(plan: ReusePlan) -> bool:
    """Whether the job shares at all."""
    is_off = plan.report.reason == MissReason.DISABLED.value
    return plan.report.outcome is not CacheOutcome.BYPASS and not is_off
