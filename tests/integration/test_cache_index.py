"""The lookup's plans, its HNSW index, and its answer against a reading of it in Python."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from cache import index, scopes
from cache.database import connect, transaction
from cache.entry import Hit, PromptRow, Scope, Sharing, StateKind, StateRow, embedding_text
from cache.selector import Selector
from tests.integration.cache_harness import K_SET, START, migrated, rows, spec

SELECTOR = Selector()
DIMENSION = 16


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def reader(database_url: str, engine: Engine) -> Iterator[Engine]:
    reader = connect(database_url, is_reader=True)
    yield reader
    reader.dispose()


def register(engine: Engine, sharing: Sharing, **changes: Any) -> Scope:
    with transaction(engine) as connection:
        return scopes.register(
            connection,
            spec(**{"embedding_dimension": DIMENSION, **changes}),
            sharing=sharing,
            state_kind=StateKind.INTERMEDIATE,
        )


def vectors(chance: random.Random, num: int) -> list[list[float]]:
    """Unit vectors in a cone, so that their cosines spread over the thresholds."""
    found = []
    for _ in range(num):
        spread = chance.uniform(0.02, 0.4)
        vector = [1.0, *(chance.gauss(0, spread) for _ in range(DIMENSION - 1))]
        norm = math.sqrt(sum(x * x for x in vector))
        # As halfvec holds them: both readings of a cosine start from the same numbers.
        found.append([struct.unpack("e", struct.pack("e", x / norm))[0] for x in vector])
    return found


def fill(engine: Engine, scope: Scope, embeddings: list[list[float]], *, owner: str) -> None:
    chance = random.Random(1)
    with transaction(engine) as connection:
        for number, embedding in enumerate(embeddings):
            if chance.random() < 0.2:
                kept = [(StateKind.FINAL, 50)]
            else:
                ks = sorted(chance.sample(K_SET, chance.randint(1, 5)))
                kept = [(StateKind.INTERMEDIATE, k) for k in ks]
            states = tuple(
                StateRow(
                    kind=kind, k=k, key=f"{scope.id}/{owner}/{number}/{k}", sha256="", num_bytes=9
                )
                for kind, k in kept
            )
            prompt = PromptRow(
                owner=owner,
                embedding=embedding_text(embedding, DIMENSION),
                prompt_hash=str(number),
                source_job_id=None,
                created_at=START,
                expires_at=None,
                states=states,
            )
            index.insert(connection, scope, prompt)


def find(reader: Engine, scope: Scope, query: list[float], *, owner: str = "") -> Hit | None:
    with transaction(reader) as connection:
        return index.find(
            connection,
            scope,
            embedding_text(query, DIMENSION),
            owner=owner,
            allowances=SELECTOR.allowances(50),
            neighbours=10,
            own_newest=100,
            now=START,
        )


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(x * y for x, y in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))


def best_k(engine: Engine, scope: Scope, query: list[float], owner: str) -> int:
    """The lookup, read aloud: among the ten nearest, the largest k that exists and is allowed."""
    prompts = rows(
        engine,
        "SELECT id, embedding::real[] AS vector FROM cached_prompts"
        " WHERE scope_id = :scope AND owner = :owner",
        scope=scope.id,
        owner=owner,
    )
    nearest = sorted(((cosine(query, row.vector), row.id) for row in prompts), reverse=True)[:10]
    best = 0
    for similarity, prompt_id in nearest:
        allowed = SELECTOR.k_max(similarity, 50)
        for kind, k in rows(
            engine, "SELECT kind, k FROM cached_states WHERE prompt_id = :id", id=prompt_id
        ):
            usable = allowed if kind == "final" else k
            best = max(best, usable if usable <= allowed else 0)
    return best


@pytest.mark.parametrize("sharing", Sharing)
def test_the_lookup_answers_as_read_aloud(engine: Engine, reader: Engine, sharing: Sharing) -> None:
    scope, chance = register(engine, sharing), random.Random(0)
    fill(engine, scope, vectors(chance, 120), owner="ann")
    found = []
    for query in vectors(chance, 40):
        hit = find(reader, scope, query, owner="ann")
        found.append(hit.k if hit else 0)
        assert found[-1] == best_k(engine, scope, query, "ann")
    assert len(set(found)) >= 4, found


def test_scopes_of_several_dimensions_live_in_one_table(engine: Engine, reader: Engine) -> None:
    shared = register(engine, Sharing.NAMESPACE)
    wide = register(engine, Sharing.NAMESPACE, embedding_dimension=384)
    fill(engine, shared, vectors(random.Random(0), 50), owner="")
    wide_vector = embedding_text([1.0] * 384, 384)
    prompt = PromptRow(
        owner="",
        embedding=wide_vector,
        prompt_hash="",
        source_job_id=None,
        created_at=START,
        expires_at=None,
        states=(StateRow(kind=StateKind.INTERMEDIATE, k=25, key="wide", sha256="", num_bytes=1),),
    )
    with transaction(engine) as connection:
        index.insert(connection, wide, prompt)
        hit = index.find(
            connection,
            wide,
            wide_vector,
            owner="",
            allowances=SELECTOR.allowances(50),
            neighbours=10,
            own_newest=100,
            now=START,
        )
    assert hit is not None
    assert hit.key == "wide"
    assert find(reader, shared, vectors(random.Random(0), 1)[0]) is not None


def test_a_dead_neighbourhood_does_not_hide_the_living(engine: Engine, reader: Engine) -> None:
    """Without iterative scans, lookups after an eviction came back empty."""
    scope = register(engine, Sharing.NAMESPACE)
    other = register(engine, Sharing.NAMESPACE, namespace="other")
    chance = random.Random(0)
    near, far = vectors(chance, 400), vectors(chance, 5)
    fill(engine, other, near, owner="x")  # another namespace's rows, all nearer
    fill(engine, scope, near, owner="y")
    rows(engine, "DELETE FROM cached_prompts WHERE owner = 'y' RETURNING id")
    fill(engine, scope, far, owner="z")
    found = [find(reader, scope, query) for query in near]
    expected = [best_k(engine, scope, query, "z") for query in near]
    assert [hit.k if hit else 0 for hit in found] == expected


def test_the_reader_can_write_nothing(reader: Engine) -> None:
    with pytest.raises(Exception, match="read-only transaction"), reader.begin() as connection:
        connection.execute(text("INSERT INTO namespaces (namespace) VALUES ('x')"))
