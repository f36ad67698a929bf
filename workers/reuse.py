"""Where the cache and the denoising meet: what a job starts from, and what it leaves behind."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.approximate import ApproximateCache
from cache.entry import Hit, MissReason, ScopeSpec, StateKind
from cache.lookup import Found
from cache.store import NewEntry, NewState
from producer.contract import CacheMode, CacheOutcome, GenerationJob
from producer.result import CacheReport
from workers.denoising.families.family import Family
from workers.denoising.request import Denoised, StartState
from workers.denoising.schedulers import resumes, scheduler_fingerprint
from workers.ledger import Claim

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """Which latents a job is to keep for later ones."""

    steps: frozenset[int] = frozenset()  #: after these numbers of steps
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReusePlan:
    """What the cache does for one job."""

    scope: ScopeSpec
    report: CacheReport
    hit: Hit | None = None
    start: StartState | None = None
    captures: Captures = Captures()
    lookup_s: float = 0.0
    fetch_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewStates:
    """What a finished job leaves to later ones."""

    scope: ScopeSpec
    entry: NewEntry
    is_refresh: bool

    @property
    def num_bytes(self) -> int:
        """Of the latents, which wait in memory until they are stored."""
        return sum(state.latents.nbytes for state in self.entry.states)


class Reuse:
    """Plans reuse for the jobs of all models."""

    def __init__(self, cache: ApproximateCache, *, state_kind: StateKind) -> None:
        self._cache = cache
        self._state_kind = state_kind

    def plan(self, claim: Claim, family: Family, embedding: NDArray[np.float32]) -> ReusePlan:
        """Look the prompt up and fetch what it can start from; never fails, bounded in time."""
        scope = scope_of(claim.job, family)
        k_set = self._k_set(scope, family)
        if claim.job.cache is CacheMode.USE and not k_set:
            report = CacheReport(outcome=CacheOutcome.MISS, reason=MissReason.TOO_FEW_STEPS.value)
            return self._from_noise(scope, k_set, report)
        match claim.job.cache:
            case CacheMode.BYPASS:
                return ReusePlan(scope=scope, report=CacheReport(outcome=CacheOutcome.BYPASS))
            case CacheMode.REFRESH:
                return self._from_noise(scope, k_set, CacheReport(outcome=CacheOutcome.REFRESH))
            case CacheMode.USE:
                found = self._cache.find(
                    scope,
                    embedding,
                    owner=claim.owner,
                    prompt_hash=_prompt_hash(claim.job),
                    # Every attempt at a job starts from the same state.
                    choice=claim.job_id.int % 2**63,
                )
                # Again: a scope's first lookup reads its thresholds.
                k_set = self._k_set(scope, family)
                if isinstance(found, Found):
                    return self._from_state(scope, k_set, found, claim.owner)
                report = CacheReport(outcome=CacheOutcome.MISS, reason=found.reason.value)
                kept = () if found.reason is MissReason.DISABLED else k_set
                return self._from_noise(scope, kept, report, lookup_s=found.lookup_s)

    def count_use(self, plan: ReusePlan) -> None:
        """Credit the state that a finished job started from with the steps it saved."""
        if plan.hit is not None:
            self._cache.count_use(plan.hit, plan.hit.k)

    def flush(self) -> None:
        """Write the uses counted so far."""
        self._cache.flush()

    def new_states(
        self, claim: Claim, plan: ReusePlan, embedding: NDArray[np.float32], denoised: Denoised
    ) -> NewStates | None:
        """Gather what the job captured; None where it left nothing, or nothing to start from."""
        states = [
            NewState(kind=StateKind.INTERMEDIATE, k=k, latents=latents)
            for k, latents in sorted(denoised.captured.items())
        ]
        if denoised.final_latents is not None:
            final = NewState(
                kind=StateKind.FINAL, k=claim.num_inference_steps, latents=denoised.final_latents
            )
            states.append(final)
        if not states:
            return None
        if not all(state.latents.isfinite().all() for state in states):
            logger.warning("states dropped: not finite", extra={"job_id": str(claim.job_id)})
            return None
        entry = NewEntry(
            owner=claim.owner,
            embedding=embedding,
            prompt_hash=_prompt_hash(claim.job),
            source_job_id=str(claim.job_id),
            states=tuple(states),
            seconds_per_step=denoised.denoise_s / max(denoised.steps_run, 1),
            begun_at=claim.claimed_at,
        )
        is_refresh = claim.job.cache is CacheMode.REFRESH
        return NewStates(scope=plan.scope, entry=entry, is_refresh=is_refresh)

    def _from_noise(
        self,
        scope: ScopeSpec,
        k_set: Sequence[int],
        report: CacheReport,
        *,
        lookup_s: float = 0.0,
    ) -> ReusePlan:
        captures = self._captures(k_set, after=0)
        return ReusePlan(scope=scope, report=report, captures=captures, lookup_s=lookup_s)

    def _from_state(
        self, scope: ScopeSpec, k_set: Sequence[int], found: Found, owner: str
    ) -> ReusePlan:
        hit = found.hit
        # Whose job it was is told to nobody else: an id is a way to ask for its image.
        source_job_id = hit.source_job_id if hit.owner == owner else None
        return ReusePlan(
            scope=scope,
            report=CacheReport(
                outcome=CacheOutcome.HIT,
                k=hit.k,
                similarity=hit.similarity,
                state_id=hit.state_id,
                source_job_id=source_job_id,
            ),
            hit=hit,
            start=StartState(latents=found.latents, kind=hit.kind.value, k=hit.k),
            lookup_s=found.lookup_s,
            fetch_s=found.fetch_s,
            captures=self._captures(k_set, after=hit.k),
        )

    def _captures(self, k_set: Sequence[int], *, after: int) -> Captures:
        """Choose those of the k set that this run passes, or the finished latents."""
        if self._state_kind is StateKind.FINAL:
            return Captures(final=bool(k_set))
        return Captures(steps=frozenset(k for k in k_set if k > after))

    def _k_set(self, scope: ScopeSpec, family: Family) -> tuple[int, ...]:
        """The steps at which a later job could take up what this kind of state offers."""
        num_steps = scope.num_inference_steps
        k_set = self._cache.selector(scope).k_set(num_steps)
        if self._state_kind is StateKind.FINAL:  # noised again, it depends on no solver's history
            return k_set
        return tuple(k for k in k_set if resumes(family.scheduler, num_steps, k=k))


def _prompt_hash(job: GenerationJob) -> str:
    """Tell equal prompts."""
    return hashlib.sha256(job.prompt.encode()).hexdigest()


def scope_of(job: GenerationJob, family: Family) -> ScopeSpec:
    """Say what the job's states are interchangeable within."""
    assert job.model is not None  # filled in on receipt, as the next three
    assert job.height is not None
    assert job.width is not None
    assert job.num_inference_steps is not None
    return ScopeSpec(
        namespace=job.namespace,
        model=job.model,
        revision=family.revision,
        scheduler=type(family.scheduler).__name__,
        scheduler_config=scheduler_fingerprint(family.scheduler),
        num_inference_steps=job.num_inference_steps,
        height=job.height,
        width=job.width,
        latent_dtype=str(family.dtype).removeprefix("torch."),
        embedder=family.embedder.id,
        embedding_dimension=family.embedder.dim,
        latent_shape=family.latent_shape(job.height, job.width),
    )
