"""What a job takes from the cache and leaves to it, by scheduler and number of steps."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from cache.approximate import ApproximateCache
from cache.entry import Hit, Miss, MissReason, ScopeSpec, StateKind
from cache.lookup import Found
from cache.selector import Selector
from producer.contract import CacheMode, CacheOutcome, GenerationJob
from tests.tiny_pipeline import build_tiny_pipeline
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.request import Denoised
from workers.ledger import Claim
from workers.reuse import Captures, Reuse

# diffusers' multistep schedulers convert tensors in a way that numpy is phasing out.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class EmptyCache:
    """A cache that finds nothing, and counts how often it was asked."""

    def __init__(self) -> None:
        self.num_lookups = 0

    def selector(self, _: ScopeSpec) -> Selector:
        return Selector()

    def find(self, *_: Any, **__: Any) -> Miss:
        self.num_lookups += 1
        return Miss(reason=MissReason.NONE_SIMILAR, lookup_s=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pipeline(tmp_path_factory.mktemp("reuse") / "model")


def claim_of(*, num_inference_steps: int, mode: CacheMode, user: str | None = None) -> Claim:
    job = GenerationJob(
        prompt="a cat",
        user=user,
        model="tiny",
        height=16,
        width=16,
        num_inference_steps=num_inference_steps,
        cache=mode,
    )
    now = datetime.now(UTC)
    return Claim(job_id=uuid.uuid4(), attempt=1, job=job, claimed_at=now, deadline_at=None)


def plan(
    family: Family, num_inference_steps: int, mode: CacheMode, kind: StateKind
) -> tuple[str | None, Captures, int]:
    """Why the job missed, what it captures, and how many lookups that took."""
    claim = claim_of(num_inference_steps=num_inference_steps, mode=mode)
    cache = EmptyCache()
    reuse = Reuse(cast("ApproximateCache", cache), state_kind=kind)
    planned = reuse.plan(claim, family, family.embedding(["a cat"])[0])
    assert planned.report.outcome in (CacheOutcome.MISS, CacheOutcome.REFRESH)
    return planned.report.reason, planned.captures, cache.num_lookups


@pytest.mark.parametrize(
    ("scheduler", "num_inference_steps", "is_cached"),
    [
        ("DDIMScheduler", 10, True),
        ("UniPCMultistepScheduler", 20, True),
        ("UniPCMultistepScheduler", 10, False),
        ("DPMSolverMultistepScheduler", 19, False),
    ],
)
def test_intermediate_states_are_cached_only_where_they_can_be_taken_up(
    folder: Path, scheduler: str, num_inference_steps: int, is_cached: bool
) -> None:
    family = loading.load(folder, scheduler=scheduler)
    k_set = Selector().k_set(num_inference_steps) if is_cached else ()
    used = plan(family, num_inference_steps, CacheMode.USE, StateKind.INTERMEDIATE)
    reason = MissReason.NONE_SIMILAR if is_cached else MissReason.TOO_FEW_STEPS
    assert used == (reason.value, Captures(steps=frozenset(k_set)), int(is_cached))
    refreshed = plan(family, num_inference_steps, CacheMode.REFRESH, StateKind.INTERMEDIATE)
    assert refreshed == (None, Captures(steps=frozenset(k_set)), 0)


def test_final_states_are_cached_whatever_the_scheduler(folder: Path) -> None:
    family = loading.load(folder, scheduler="UniPCMultistepScheduler")
    used = plan(family, 10, CacheMode.USE, StateKind.FINAL)
    assert used == (MissReason.NONE_SIMILAR.value, Captures(final=True), 1)


@pytest.mark.parametrize(("worst", "is_kept"), [(3.0, True), (float("nan"), False)])
def test_states_that_are_not_finite_are_not_kept(folder: Path, worst: float, is_kept: bool) -> None:
    """Half precision overflows now and then: one image is lost, not those of similar prompts."""
    family = loading.load(folder)
    claim = claim_of(num_inference_steps=10, mode=CacheMode.USE)
    reuse = Reuse(cast("ApproximateCache", EmptyCache()), state_kind=StateKind.FINAL)
    embedding = family.embedding(["a cat"])[0]
    latents = torch.zeros(4, 8, 8)
    latents[1, 2, 3] = worst
    denoised = Denoised(
        image=np.zeros((16, 16, 3), np.uint8),
        captured={},
        final_latents=latents,
        k=0,
        steps_run=10,
        denoise_s=1.0,
        decode_s=1.0,
    )
    states = reuse.new_states(claim, reuse.plan(claim, family, embedding), embedding, denoised)
    assert (states is not None) == is_kept


def test_a_lookup_that_finds_nothing_has_taken_its_time(folder: Path) -> None:
    family = loading.load(folder)
    claim = claim_of(num_inference_steps=10, mode=CacheMode.USE)
    reuse = Reuse(cast("ApproximateCache", EmptyCache()), state_kind=StateKind.FINAL)
    assert reuse.plan(claim, family, family.embedding(["a cat"])[0]).lookup_s == 0.25


class AnnsCache(EmptyCache):
    """A shared cache that has one finished picture of Ann's; remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def find(self, *_: Any, **asked: Any) -> Found:  # type: ignore[override]
        self.asked.append(asked)
        hit = Hit(
            state_id=1,
            prompt_id=1,
            kind=StateKind.FINAL,
            k=5,
            similarity=0.99,
            key="states/1",
            sha256="",
            num_bytes=1,
            source_job_id="job of ann",
            owner="ann",
        )
        return Found(hit=hit, latents=torch.zeros(4, 8, 8), lookup_s=0.1, fetch_s=0.1)


@pytest.mark.parametrize(("user", "source"), [("ann", "job of ann"), ("eve", None), (None, None)])
def test_whose_job_a_state_is_from_is_told_to_its_owner_only(
    folder: Path, user: str | None, source: str | None
) -> None:
    family, cache = loading.load(folder), AnnsCache()
    claim = claim_of(num_inference_steps=10, mode=CacheMode.USE, user=user)
    reuse = Reuse(cast("ApproximateCache", cache), state_kind=StateKind.FINAL)
    planned = reuse.plan(claim, family, family.embedding(["a cat"])[0])
    assert planned.report.source_job_id == source


def test_every_attempt_at_a_job_asks_with_the_same_die(folder: Path) -> None:
    family, cache = loading.load(folder), AnnsCache()
    reuse = Reuse(cast("ApproximateCache", cache), state_kind=StateKind.FINAL)
    first = claim_of(num_inference_steps=10, mode=CacheMode.USE)
    other = claim_of(num_inference_steps=10, mode=CacheMode.USE)
    for claim in (first, replace(first, attempt=2), other):
        reuse.plan(claim, family, family.embedding(["a cat"])[0])
    one, again, another = cache.asked
    assert one == again != another
    assert one["prompt_hash"] == another["prompt_hash"]  # the same words
    assert 0 <= one["choice"] < 2**63


class CalibratedAtFirstSight(EmptyCache):
    """A cache that knows a scope's thresholds from its first lookup on."""

    def selector(self, _: ScopeSpec) -> Selector:
        return Selector(fractions=(0.2,)) if self.num_lookups else Selector()


def test_the_first_job_of_a_scope_keeps_what_its_own_thresholds_name(folder: Path) -> None:
    family = loading.load(folder)
    reuse = Reuse(
        cast("ApproximateCache", CalibratedAtFirstSight()), state_kind=StateKind.INTERMEDIATE
    )
    claim = claim_of(num_inference_steps=10, mode=CacheMode.USE)
    planned = reuse.plan(claim, family, family.embedding(["a cat"])[0])
    assert planned.captures == Captures(steps=frozenset({2}))
