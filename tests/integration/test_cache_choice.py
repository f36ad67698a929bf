"""Which of several usable states a job gets: of a repeated prompt, of equals, of much used ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from cache import index
from cache.database import transaction
from cache.entry import Hit, Scope, Sharing, embedding_text
from cache.selector import ChoiceRules
from tests.integration.cache_harness import (
    DIMENSION,
    QUERY,
    START,
    at_cosine,
    empty,
    insert,
    migrated,
    register,
    rows,
    use,
)
from tests.services import TestServices

FINAL = ((50, 9),)  # harness: k = 50 is a finished one
ALL_KS = ((5, 9), (10, 9), (15, 9), (20, 9), (25, 9))
WORDS = "hash of the same words"


@pytest.fixture(scope="module")
def module_engine(services: TestServices) -> Iterator[Engine]:
    with services.database() as url, migrated(url) as engine:
        yield engine


@pytest.fixture
def engine(module_engine: Engine) -> Engine:
    empty(module_engine)
    return module_engine


def find(
    engine: Engine,
    scope: Scope,
    *,
    rules: ChoiceRules,
    owner: str = "ann",
    prompt_hash: str | None = None,
    choice: int = 0,
) -> Hit | None:
    with transaction(engine) as connection:
        return index.find(
            connection,
            scope,
            embedding_text(QUERY, DIMENSION),
            owner=owner,
            allowances=scope.selector.allowances(50),
            neighbours=10,
            own_newest=100,
            now=START,
            rules=rules,
            prompt_hash=prompt_hash,
            choice=choice,
        )


def k_of(hit: Hit | None) -> int:
    return 0 if hit is None else hit.k


# ---------------------------------------------------------------------- the same words again


@pytest.mark.parametrize(
    ("fraction", "k", "k_final"),
    [
        (1.0, 25, 25),
        (0.5, 25, 25),
        (0.49, 20, 24),  # finished latents can be noised to any step
        (0.2, 10, 10),
        (0.1, 5, 5),
        (0.09, 0, 4),
        (0, 0, 0),
    ],
)
@pytest.mark.parametrize("states", [FINAL, ALL_KS], ids=["final", "intermediate"])
def test_the_same_words_again_skip_no_more_than_their_share(
    engine: Engine, states: tuple[tuple[int, int], ...], fraction: float, k: int, k_final: int
) -> None:
    scope, rules = register(engine), ChoiceRules(again_fraction=fraction)
    insert(engine, scope, states, owner="ann", prompt_hash=WORDS)
    expected = k_final if states == FINAL else k
    assert k_of(find(engine, scope, rules=rules, prompt_hash=WORDS)) == expected
    assert k_of(find(engine, scope, rules=rules, prompt_hash="other words")) == 25
    assert k_of(find(engine, scope, rules=rules, prompt_hash=None)) == 25


def test_another_prompt_s_state_does_not_lift_the_limit(engine: Engine) -> None:
    """The picture that the words were first drawn from would make all their pictures alike."""
    scope, rules = register(engine), ChoiceRules(again_fraction=0.2)
    insert(engine, scope, FINAL, owner="ann", embedding=at_cosine(0.99))
    assert k_of(find(engine, scope, rules=rules, prompt_hash=WORDS)) == 25
    insert(engine, scope, FINAL, owner="ann", prompt_hash=WORDS)
    assert k_of(find(engine, scope, rules=rules, prompt_hash=WORDS)) == 10


def test_the_same_words_of_somebody_else_are_no_repeat(engine: Engine) -> None:
    scope, rules = register(engine, sharing=Sharing.NAMESPACE), ChoiceRules(again_fraction=0.2)
    insert(engine, scope, FINAL, owner="bob", prompt_hash=WORDS)
    assert k_of(find(engine, scope, rules=rules, prompt_hash=WORDS)) == 25
    insert(engine, scope, FINAL, owner="ann", prompt_hash=WORDS)
    assert k_of(find(engine, scope, rules=rules, prompt_hash=WORDS)) == 10
    assert k_of(find(engine, scope, rules=rules, prompt_hash=WORDS, owner="eve")) == 25


# ---------------------------------------------------------------------- a die among equals


def prompts_found(engine: Engine, scope: Scope, rules: ChoiceRules) -> set[int]:
    hits = [find(engine, scope, rules=rules, choice=choice) for choice in range(60)]
    return {hit.prompt_id for hit in hits if hit is not None}


def test_a_die_decides_among_states_that_are_about_as_near(engine: Engine) -> None:
    scope, rules = register(engine), ChoiceRules(margin=0.005)
    near = {
        insert(engine, scope, FINAL, owner="ann", embedding=at_cosine(cosine))
        for cosine in (0.999, 0.997, 0.995)
    }
    insert(engine, scope, FINAL, owner="ann", embedding=at_cosine(0.985))
    assert prompts_found(engine, scope, rules) == near


def test_without_a_margin_the_nearest_is_taken(engine: Engine) -> None:
    scope = register(engine)
    insert(engine, scope, FINAL, owner="ann", embedding=at_cosine(0.997))
    nearest = insert(engine, scope, FINAL, owner="ann", embedding=at_cosine(0.999))
    assert prompts_found(engine, scope, ChoiceRules()) == {nearest}


def test_who_skips_more_steps_is_preferred_to_who_is_nearer(engine: Engine) -> None:
    scope, rules = register(engine), ChoiceRules(margin=0.1)
    insert(engine, scope, [(20, 9)], owner="ann")
    farther = insert(engine, scope, [(25, 9)], owner="ann", embedding=at_cosine(0.96))
    assert prompts_found(engine, scope, rules) == {farther}


def test_the_same_die_falls_the_same_way_for_every_attempt(engine: Engine) -> None:
    scope = register(engine)
    for _ in range(5):
        insert(engine, scope, FINAL, owner="ann")
    for choice in (0, 1, 2**63 - 1, -(2**63)):
        first, again = (find(engine, scope, rules=ChoiceRules(), choice=choice) for _ in "ab")
        assert first == again


# ---------------------------------------------------------------------- a cap on reuse


def test_a_prompt_that_was_used_often_enough_is_not_offered_any_more(engine: Engine) -> None:
    scope, rules = register(engine), ChoiceRules(reuse_max=3)
    insert(engine, scope, ALL_KS, owner="ann", embedding=at_cosine(0.96))
    insert(engine, scope, ALL_KS, owner="ann")
    found = []
    while hit := find(engine, scope, rules=rules):
        use(engine, hit.state_id, hit.k)
        found.append(round(hit.similarity, 2))
    assert found == [1.0, 1.0, 1.0, 0.96, 0.96, 0.96]
    assert k_of(find(engine, scope, rules=ChoiceRules())) == 25


def test_uses_of_all_states_of_a_prompt_count(engine: Engine) -> None:
    scope = register(engine)
    prompt_id = insert(engine, scope, ALL_KS, owner="ann")
    states = "SELECT id, k FROM cached_states WHERE prompt_id = :id ORDER BY k"
    for state_id, k in rows(engine, states, id=prompt_id):
        use(engine, state_id, k)
    assert find(engine, scope, rules=ChoiceRules(reuse_max=5)) is None
    assert k_of(find(engine, scope, rules=ChoiceRules(reuse_max=6))) == 25
