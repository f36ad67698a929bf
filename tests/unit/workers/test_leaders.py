"""Who follows whom, by similarity, owner and what the cache has found already."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pytest

from cache.approximate import ApproximateCache
from cache.entry import Hit, MissReason, ScopeSpec, Sharing, StateKind
from cache.selector import Selector
from producer.contract import CacheMode, CacheOutcome, GenerationJob
from producer.result import CacheReport
from workers.leaders import Leaders, Place
from workers.ledger import Claim
from workers.reuse import ReusePlan

N = 50
SCOPE = ScopeSpec(
    namespace="here",
    model="tiny",
    revision="r1",
    scheduler="DDIMScheduler",
    scheduler_config="c1",
    num_inference_steps=N,
    height=16,
    width=16,
    latent_dtype="float32",
    embedder="e1",
    embedding_dimension=2,
)
MISS = ReusePlan(
    scope=SCOPE,
    report=CacheReport(outcome=CacheOutcome.MISS, reason=MissReason.NONE_SIMILAR.value),
)


class PaperCache:
    """Every scope has the paper's thresholds."""

    def selector(self, _: ScopeSpec) -> Selector:
        return Selector()


def leaders_of(sharing: Sharing = Sharing.USER) -> Leaders:
    cache = cast("ApproximateCache", PaperCache())
    return Leaders(cache, sharing=sharing, wait_s=30, reroll_fraction=0.4)


def joined(
    leaders: Leaders,
    similarity: float = 1.0,
    *,
    prompt: str = "a cat",
    user: str | None = None,
    mode: CacheMode = CacheMode.USE,
    plan: ReusePlan = MISS,
) -> Place:
    """The place of a job whose embedding has this cosine with the first axis."""
    job = GenerationJob(prompt=prompt, model="tiny", user=user, cache=mode, num_inference_steps=N)
    now = datetime.now(UTC)
    claim = Claim(job_id=uuid.uuid4(), attempt=1, job=job, claimed_at=now, deadline_at=None)
    embedding = np.array([similarity, (1 - similarity**2) ** 0.5], dtype=np.float32)
    place = leaders.place()
    leaders.join(place, claim, plan, embedding)
    return place


def hit_of(k: int) -> ReusePlan:
    hit = Hit(
        state_id=1,
        prompt_id=1,
        kind=StateKind.FINAL,
        k=k,
        similarity=0.9,
        key="states/1",
        sha256="",
        num_bytes=1,
        source_job_id=None,
        owner="",
    )
    return replace(MISS, hit=hit, report=CacheReport(outcome=CacheOutcome.HIT, k=k))


def ks(place: Place) -> tuple[int, ...]:
    return () if place.follow is None else place.follow.ks


@pytest.mark.parametrize(
    ("similarity", "allowed"),
    [(1.0, (5, 10, 15, 20, 25)), (0.86, (5, 10, 15)), (0.66, (5,)), (0.6, ())],
)
def test_a_job_follows_as_far_as_its_similarity_allows(
    similarity: float, allowed: tuple[int, ...]
) -> None:
    leaders = leaders_of()
    first = joined(leaders)
    second = joined(leaders, similarity, prompt="a small cat")
    assert (first.follow, ks(second)) == (None, allowed)
    assert (second.lead is None) == bool(allowed)  # or else it leads, too


def test_the_same_words_keep_some_steps_for_another_picture() -> None:
    leaders = leaders_of()
    joined(leaders)
    assert ks(joined(leaders)) == (5, 10, 15, 20)


def test_the_nearest_leader_is_followed() -> None:
    leaders = leaders_of()
    joined(leaders, 1.0)
    near = joined(leaders, 0.5)
    follower = joined(leaders, 0.51)
    assert follower.follow is not None
    assert follower.follow.lead is near.lead


def test_nobody_follows_a_follower() -> None:
    leaders = leaders_of()
    leader, followers = joined(leaders), [joined(leaders) for _ in range(3)]
    assert {id(each.follow.lead) for each in followers if each.follow} == {id(leader.lead)}
    assert [each.lead for each in followers] == [None] * 3


def test_a_leader_that_has_left_is_followed_no_more_and_its_followers_are_told() -> None:
    leaders = leaders_of()
    with joined(leaders) as leader:
        follower = joined(leaders)
    assert follower.follow is not None
    assert follower.follow.lead.is_over
    assert joined(leaders).lead is not None
    assert leader.lead is not None


def test_a_leader_can_be_followed_until_its_states_are_stored() -> None:
    leaders = leaders_of()
    with joined(leaders) as leader:
        leave = leader.stay()
    assert joined(leaders).follow is not None
    leave()
    assert joined(leaders).follow is None


@pytest.mark.parametrize(
    ("sharing", "user", "follows"),
    [
        (Sharing.USER, "ada", True),
        (Sharing.USER, "eve", False),
        (Sharing.USER, None, False),
        (Sharing.NAMESPACE, "eve", True),
    ],
)
def test_owners_follow_whom_the_cache_would_let_them_reuse(
    sharing: Sharing, user: str | None, follows: bool
) -> None:
    leaders = leaders_of(sharing)
    joined(leaders, user="ada")
    assert bool(ks(joined(leaders, user=user))) == follows


def test_scopes_are_kept_apart() -> None:
    leaders = leaders_of()
    joined(leaders)
    for change in ({"namespace": "there"}, {"revision": "r2"}, {"height": 24}):
        plan = replace(MISS, scope=replace(SCOPE, **cast("Any", change)))
        assert joined(leaders, plan=plan).follow is None


def test_a_hit_is_given_up_only_for_more_steps() -> None:
    leaders = leaders_of()
    joined(leaders)
    assert ks(joined(leaders, plan=hit_of(15)))[-1] == 20
    satisfied = joined(leaders, plan=hit_of(20))
    assert (satisfied.follow, satisfied.lead) == (None, None)


@pytest.mark.parametrize(
    "report",
    [
        CacheReport(outcome=CacheOutcome.BYPASS),
        CacheReport(outcome=CacheOutcome.MISS, reason=MissReason.DISABLED.value),
    ],
)
def test_who_uses_no_cache_neither_leads_nor_follows(report: CacheReport) -> None:
    leaders = leaders_of()
    outside = joined(leaders, plan=replace(MISS, report=report))
    assert outside.lead is None
    joined(leaders)
    assert joined(leaders, plan=replace(MISS, report=report)).follow is None


def test_a_refresh_leads_and_does_not_follow() -> None:
    leaders = leaders_of()
    refresh = replace(MISS, report=CacheReport(outcome=CacheOutcome.REFRESH))
    assert joined(leaders, mode=CacheMode.REFRESH, plan=refresh).lead is not None
    assert joined(leaders, mode=CacheMode.REFRESH, plan=refresh).follow is None
