from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.selector import PAPER, Allowance, Selector

STEPS = st.integers(1, 200)
FRACTIONS = st.lists(
    st.sampled_from([n / 20 for n in range(1, 20)]), min_size=1, max_size=8, unique=True
).map(tuple)


@pytest.mark.parametrize(
    ("steps", "k_set"),
    [
        (50, (5, 10, 15, 20, 25)),
        (28, (2, 5, 8, 11, 14)),
        (20, (2, 4, 6, 8, 10)),
        (10, (1, 2, 3, 4, 5)),
        (5, (1, 2)),
        (4, (1, 2)),
        (3, ()),
        (1, ()),
    ],
)
def test_the_k_set(steps: int, k_set: tuple[int, ...]) -> None:
    assert Selector().k_set(steps) == k_set


def test_fractions_mean_the_decimals_they_are_written_as() -> None:
    assert Selector(fractions=(0.29,)).k_set(100) == (29,)


def test_the_paper_s_table() -> None:
    assert Selector().allowances(50) == (
        Allowance(k=5, floor=0.65),
        Allowance(k=10, floor=0.75),
        Allowance(k=15, floor=0.85),
        Allowance(k=20, floor=0.90),
        Allowance(k=25, floor=0.95),
    )
    assert (PAPER.version, PAPER.is_calibrated) == ("paper", False)


@pytest.mark.parametrize(
    ("similarity", "k"),
    [(1.0, 25), (0.951, 25), (0.95, 20), (0.90, 15), (0.85, 10), (0.75, 5), (0.65, 0), (-1.0, 0)],
)
def test_a_threshold_must_be_exceeded(similarity: float, k: int) -> None:
    assert Selector().k_max(similarity, 50) == k


def test_a_share_that_rounding_made_larger_needs_the_stricter_row() -> None:
    # Of 4 steps, a tenth is rounded up to 1, which is a quarter.
    assert Selector().allowances(4) == (Allowance(k=1, floor=0.85), Allowance(k=2, floor=0.95))


def test_a_fraction_beyond_the_table_is_allowed_to_nobody() -> None:
    selector = Selector(fractions=(0.5, 0.8))
    assert selector.k_set(50) == (25, 40)
    assert [allowance.k for allowance in selector.allowances(50)] == [25]


@given(steps=STEPS, fractions=FRACTIONS)
def test_k_sets_rise_within_the_steps(steps: int, fractions: tuple[float, ...]) -> None:
    k_set = Selector(fractions=fractions).k_set(steps)
    assert list(k_set) == sorted(set(k_set))
    assert all(1 <= k < steps for k in k_set)


@given(steps=STEPS, fractions=FRACTIONS, similarity=st.floats(-1, 1))
def test_more_similar_never_allows_less(
    steps: int, fractions: tuple[float, ...], similarity: float
) -> None:
    selector = Selector(fractions=fractions)
    floors = [allowance.floor for allowance in selector.allowances(steps)]
    assert floors == sorted(floors)
    assert selector.k_max(similarity, steps) <= selector.k_max(1.0, steps)
    # Never a larger share than the paper allows at this similarity.
    rows = [fraction for fraction, floor in PAPER.rows if similarity > floor]
    assert selector.k_max(similarity, steps) <= max(rows, default=0) * steps + 1e-9
