"""A log's structure without an embedder, on logs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.errors import OptionInvalid
from evaluation.structure import NEVER, PAUSE, changed, ks_distance, structure, words


def test_articles_prepositions_case_and_punctuation_do_not_count() -> None:
    assert words("A Red apple, on the TABLE; 4k!") == {"red": 1, "apple": 1, "table": 1, "4k": 1}


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("red apple", "the red apple", 0.0),
        ("red apple", "green apple", 0.5),
        ("red apple", "owl", 1.0),
        ("red apple", "large glossy red apple", 0.5),
        ("", "", 0.0),
    ],
)
def test_the_share_of_words_changed(one: str, other: str, share: float) -> None:
    assert changed(words(one), words(other)) == share


def test_a_log_s_distributions() -> None:
    # User 0 edits by one word of two; user 1 asks twice for the same; then 0 comes back later.
    log = [(0, "red apple"), (1, "owl"), (0, "green apple"), (1, "owl"), (0, "big tree")]
    log += [(2, f"other {number} thing {number}") for number in range(PAUSE + 1)]
    log += [(0, "red apple")]
    found = structure([p for _, p in log], [u for u, _ in log], window=len(log))
    assert sorted(found.in_a_row) == [1, 2, 3, PAUSE + 1]
    assert found.words_changed[:3].tolist() == [0.5, 1.0, 1.0]
    assert found.reuse_distance[:6].tolist() == [NEVER, 2, NEVER, len(log) - 3, NEVER, 2]
    assert found.repeats.tolist()[:5] == [0, 0, 0, 1, 0]
    assert found.repeats[-1] == 1
    assert set(found.distances(found).values()) == {0}


def test_a_log_below_one_window_is_refused() -> None:
    with pytest.raises(OptionInvalid, match="2 rows name a user; 3 are needed"):
        structure(["a", "b", "c"], [0, -1, 1], window=3)


def test_the_kolmogorov_smirnov_distance() -> None:
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0])
    assert ks_distance(one, other) == 0.5
    assert ks_distance(one, np.array([1.0, 2.0, NEVER, NEVER])) == 0.5
