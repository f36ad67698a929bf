"""The attacks of arXiv 2508.20424 on approximate caches, replayed in small against the real one.

A victim's and an attacker's jobs meet in one database and bucket, on two sides of a boundary: two
users, a user and somebody without a name, two namespaces. Across none of them may the attacker
learn what the victim asked for, signal to it, or have a state of his own end in its image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, text

from cache import index
from cache.approximate import ApproximateCache
from cache.database import connect, transaction
from cache.entry import Embedding, MissReason, Scope, Sharing, StateKind
from cache.lookup import Found
from cache.objects import S3Objects
from cache.store import NewState
from tests.integration.cache_harness import (
    DIMENSION,
    QUERY,
    at_cosine,
    empty,
    entry,
    insert,
    latents,
    lookup_values,
    migrated,
    register,
    running_cache,
    spec,
)
from tests.services import TestServices

WORDS = "hash of the victim's words"
POISON = 666.0


@dataclass(frozen=True, kw_only=True)
class Party:
    """Whose jobs these are."""

    owner: str
    namespace: str = "default"


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What lies between the two."""

    name: str
    victim: Party
    attacker: Party
    sharing: Sharing = Sharing.USER


BOUNDARIES = (
    Boundary(name="users", victim=Party(owner="vic"), attacker=Party(owner="eve")),
    Boundary(name="anonymous attacker", victim=Party(owner="vic"), attacker=Party(owner="")),
    Boundary(name="anonymous victim", victim=Party(owner=""), attacker=Party(owner="eve")),
    Boundary(
        name="namespaces",
        victim=Party(owner="eve", namespace="theirs"),
        attacker=Party(owner="eve", namespace="ours"),
    ),
    Boundary(
        name="shared namespaces",
        victim=Party(owner="eve", namespace="theirs"),
        attacker=Party(owner="eve", namespace="ours"),
        sharing=Sharing.NAMESPACE,
    ),
)
#: No boundary at all: what each attack is good for where states are shared.
NONE = Boundary(
    name="none",
    victim=Party(owner="vic"),
    attacker=Party(owner="eve"),
    sharing=Sharing.NAMESPACE,
)


class CountingObjects(S3Objects):
    """The object store, counting what is fetched: a fetch takes time that a miss does not."""

    num_fetched = 0

    def get(self, key: str) -> bytes:
        self.num_fetched += 1
        return super().get(key)


@pytest.fixture(scope="module")
def database_url(services: TestServices) -> Iterator[str]:
    with services.database() as url:
        yield url


@pytest.fixture(scope="module")
def module_engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def engine(module_engine: Engine) -> Engine:
    empty(module_engine)
    return module_engine


@pytest.fixture(scope="module")
def bucket_url(services: TestServices) -> Iterator[str]:
    """One bucket for the module: no key is written twice."""
    with services.bucket() as url:
        yield url


@pytest.fixture
def objects(bucket_url: str) -> CountingObjects:
    return CountingObjects.from_url(bucket_url)


@pytest.fixture(params=BOUNDARIES, ids=lambda boundary: boundary.name)
def boundary(request: pytest.FixtureRequest) -> Boundary:
    found: Boundary = request.param
    return found


@pytest.fixture
def cache(
    database_url: str, engine: Engine, objects: CountingObjects, boundary: Boundary
) -> Iterator[ApproximateCache]:
    with running_cache(database_url, objects, cache_sharing=boundary.sharing) as cache:
        yield cache


def store(
    cache: ApproximateCache,
    party: Party,
    embedding: Embedding = QUERY,
    *,
    value: float = 0.0,
    kind: StateKind = StateKind.FINAL,
    is_refresh: bool = False,
) -> None:
    state = NewState(kind=kind, k=50 if kind is StateKind.FINAL else 25, latents=latents(value))
    kept = entry(
        embedding,
        owner=party.owner,
        states=(state,),
        prompt_hash=WORDS,
        source_job_id=f"job of {party.owner}",
    )
    scope = spec(namespace=party.namespace)
    assert cache.store(scope, kept, is_refresh=is_refresh) is not None


def find(cache: ApproximateCache, party: Party, embedding: Embedding = QUERY) -> Any:
    """By other words than the cached ones, so that nothing is a repeat."""
    return cache.find(spec(namespace=party.namespace), embedding, owner=party.owner)


def seen(cache: ApproximateCache, party: Party, embedding: Embedding) -> tuple[object, ...]:
    """What the job's result tells, and the words again too, which may differ from others."""
    told: list[object] = []
    for prompt_hash in (None, WORDS):
        outcome = cache.find(
            spec(namespace=party.namespace), embedding, owner=party.owner, prompt_hash=prompt_hash
        )
        if isinstance(outcome, Found):
            hit = outcome.hit
            told += [hit.k, hit.similarity, hit.source_job_id, hit.owner, outcome.latents.tolist()]
        else:
            told.append(outcome.reason)
    return tuple(told)


def probes() -> list[tuple[float, ...]]:
    """The victim's prompt, others at every distance from it, and some all around."""
    chance = random.Random(7)
    around = [[chance.gauss(0, 0.3) + (at == 0) for at in range(DIMENSION)] for _ in range(12)]
    return [at_cosine(cosine) for cosine in (1.0, 0.99, 0.93, 0.8, 0.6)] + [
        tuple(x / math.hypot(*vector) for x in vector) for vector in around
    ]


def tells_the_attacker(cache: ApproximateCache, boundary: Boundary) -> bool:
    """Whether the answers to all probes change with what the victim asks for."""
    store(cache, boundary.attacker, at_cosine(0.9))
    before = [seen(cache, boundary.attacker, probe) for probe in probes()]
    for kind in StateKind:
        store(cache, boundary.victim, QUERY, kind=kind)
        store(cache, boundary.victim, at_cosine(0.97), kind=kind)
    return before != [seen(cache, boundary.attacker, probe) for probe in probes()]


def test_what_the_victim_asked_for_changes_no_answer(
    cache: ApproximateCache, boundary: Boundary
) -> None:
    """Covert channel (a bit is a prompt that is cached or not) and prompt stealing by probing."""
    assert not tells_the_attacker(cache, boundary)
    assert isinstance(find(cache, boundary.victim), Found)


@pytest.mark.parametrize("boundary", [NONE], ids=["none"])
def test_where_states_are_shared_the_same_probes_tell(
    cache: ApproximateCache, boundary: Boundary
) -> None:
    """The probes are good: else the test above would hold for any cache."""
    assert tells_the_attacker(cache, boundary)


def test_a_probe_fetches_nothing_whatever_the_victim_has(
    cache: ApproximateCache, boundary: Boundary, objects: CountingObjects
) -> None:
    store(cache, boundary.victim)
    outcome = find(cache, boundary.attacker)
    assert (outcome.reason, objects.num_fetched) == (MissReason.NONE_SIMILAR, 0)


# ---------------------------------------------------------------------- timing

OWN, FOREIGN = 12, 600  # prompts


def scope_of(engine: Engine, boundary: Boundary, party: Party) -> Scope:
    return register(engine, party.namespace, boundary.sharing)


def crowd(engine: Engine, boundary: Boundary, party: Party, num: int) -> None:
    """Cache prompts of a party that lie all around."""
    chance = random.Random(11)
    scope = scope_of(engine, boundary, party)
    for _ in range(num):
        vector = [chance.gauss(0, 1) for _ in range(DIMENSION)]
        near = tuple(x / math.hypot(*vector) for x in vector)
        insert(engine, scope, [(25, 1)], owner=party.owner, embedding=near)


def rows_read(reader: Engine, scope: Scope, party: Party) -> int:
    """Rows that PostgreSQL touched for a lookup, those that it threw away included."""
    explain = "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) "
    with transaction(reader) as connection:
        statement = text(explain + index.find_statement(scope).text)
        [found] = connection.execute(statement, lookup_values(scope, party.owner)).scalar_one()
    return rows_of(found["Plan"])


def rows_of(node: dict[str, Any]) -> int:
    """Of tables alone: by an index or by its bitmap, which statistics decide, they are the same."""
    counted = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    read = sum(node.get(name, 0) for name in counted) if "Relation Name" in node else 0
    own: int = round(read * node["Actual Loops"])
    return own + sum(rows_of(child) for child in node.get("Plans", ()))


def grows_with_the_victims(engine: Engine, database_url: str, boundary: Boundary) -> bool:
    """Whether the attacker's lookup has more to do once the victim has cached much."""
    crowd(engine, boundary, boundary.attacker, OWN)
    scope = scope_of(engine, boundary, boundary.attacker)
    reader = connect(database_url, is_reader=True)
    try:
        before = rows_read(reader, scope, boundary.attacker)
        crowd(engine, boundary, boundary.victim, FOREIGN)
        for _ in ("stale statistics", "fresh ones"):
            if rows_read(reader, scope, boundary.attacker) != before:
                return True
            with transaction(engine) as connection:
                connection.execute(text("ANALYZE"))
        return rows_read(reader, scope, boundary.attacker) != before
    finally:
        reader.dispose()


def test_a_lookup_reads_as_many_rows_whatever_the_victim_has(
    engine: Engine, database_url: str, boundary: Boundary
) -> None:
    """Beside the depth of the one index, nothing else in its time depends on another's prompts."""
    assert not grows_with_the_victims(engine, database_url, boundary)


def test_where_states_are_shared_a_lookup_reads_more_rows(
    engine: Engine, database_url: str
) -> None:
    assert grows_with_the_victims(engine, database_url, NONE)


# ---------------------------------------------------------------------- poisoning


@pytest.mark.parametrize("kind", StateKind)
@pytest.mark.parametrize("is_refresh", [False, True], ids=["use", "refresh"])
def test_poison_reaches_no_one_else(
    cache: ApproximateCache, boundary: Boundary, kind: StateKind, is_refresh: bool
) -> None:
    for embedding in (QUERY, at_cosine(0.999)):
        store(cache, boundary.attacker, embedding, value=POISON, kind=kind, is_refresh=is_refresh)
    assert find(cache, boundary.victim).reason is MissReason.NONE_SIMILAR
    store(cache, boundary.victim, value=1.0, kind=kind)
    store(cache, boundary.attacker, value=POISON, kind=kind, is_refresh=is_refresh)
    found = find(cache, boundary.victim)
    assert torch.equal(found.latents, latents(1.0)), "a refresh replaces one's own states only"
    assert found.hit.source_job_id == f"job of {boundary.victim.owner}"


@pytest.mark.parametrize("boundary", [NONE], ids=["none"])
def test_in_a_shared_namespace_a_cap_ends_what_poison_does(
    database_url: str, engine: Engine, objects: CountingObjects, boundary: Boundary
) -> None:
    with running_cache(
        database_url, objects, cache_sharing=boundary.sharing, cache_reuse_max=2
    ) as cache:
        store(cache, boundary.attacker, value=POISON)
        store(cache, boundary.victim, at_cosine(0.97), value=1.0)
        values = []
        for _ in range(4):
            found = find(cache, boundary.victim)
            values.append(found.latents.max().item())
            cache.count_use(found.hit, found.hit.k)
            cache.flush()
    assert values == [POISON, POISON, 1.0, 1.0]


# ---------------------------------------------------------------------- another setting


def test_what_was_stored_for_one_user_is_not_shared_later(
    database_url: str, engine: Engine, objects: CountingObjects
) -> None:
    """NIRVANA_CACHE_SHARING may change; what was promised to a job stays promised."""
    vic, eve = Party(owner="vic"), Party(owner="eve")
    with running_cache(database_url, objects, cache_sharing="user") as cache:
        store(cache, vic, value=1.0)
    with running_cache(database_url, objects, cache_sharing="namespace") as cache:
        assert find(cache, eve).reason is MissReason.NONE_SIMILAR
        store(cache, vic, value=2.0)
        assert torch.equal(find(cache, eve).latents, latents(2.0))
    with running_cache(database_url, objects, cache_sharing="user") as cache:
        assert find(cache, eve).reason is MissReason.NONE_SIMILAR
