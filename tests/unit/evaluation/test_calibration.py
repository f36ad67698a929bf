"""Pairs, floors and the file of measurements, on numbers whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.entry import StateKind
from evaluation.calibration.floors import Rule, find_curves, floors
from evaluation.calibration.measurements import Measurement, MeasurementFile
from evaluation.calibration.pairs import Pair, draw_pairs
from evaluation.errors import OptionInvalid

KIND = StateKind.FINAL


def measured(similarity: float, *, by_k: dict[int, float], noise: float = 0.8) -> Measurement:
    return Measurement(
        pair=Pair(cached="c", asked="a", similarity=similarity),
        from_noise=({"score": noise}, {"score": noise}),
        from_state={KIND: {k: {"score": score} for k, score in by_k.items()}},
    )


def in_twos(angles: np.ndarray) -> np.ndarray:
    """Each second vector lies at an angle from the one before, and far from all others."""
    vectors = np.zeros((2 * len(angles), len(angles) * 2), dtype=np.float32)
    for number, angle in enumerate(angles):
        vectors[2 * number, 2 * number] = 1
        vectors[2 * number + 1, 2 * number : 2 * number + 2] = np.cos(angle), np.sin(angle)
    return vectors


def test_pairs_cover_the_range_and_no_prompt_is_in_two() -> None:
    similarities = np.linspace(0.51, 0.99, 30)
    vectors = in_twos(np.arccos(similarities))
    prompts = [f"prompt {number}" for number in range(60)]
    edges, owners = (0.5, 0.7, 0.9, 1.0), np.zeros(60, dtype=np.int32)
    rng = np.random.default_rng(1)
    pairs = draw_pairs(prompts, vectors, owners, count=12, rng=rng, edges=edges)
    counts, _ = np.histogram([pair.similarity for pair in pairs], bins=edges)
    assert counts.tolist() == [4, 4, 4]
    used = [prompt for pair in pairs for prompt in (pair.cached, pair.asked)]
    assert len(set(used)) == 24
    # The cached one came first.
    assert all(prompts.index(p.cached) < prompts.index(p.asked) for p in pairs)


def test_a_pair_is_a_prompt_and_the_nearest_that_its_owner_sent_before() -> None:
    angles = np.array([0.0, 0.3, 0.5, 0.55])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    owners = np.array([0, 0, 1, 0], dtype=np.int32)
    rng = np.random.default_rng(1)
    pairs = draw_pairs(["a", "b", "c", "d"], vectors, owners, count=9, rng=rng, edges=(0.5, 1.01))
    assert {(pair.cached, pair.asked) for pair in pairs} <= {("a", "b"), ("b", "d")}
    assert len(pairs) == 1  # b is in one of the two


def test_more_pairs_of_the_most_alike_come_after_the_others() -> None:
    vectors = in_twos(np.arccos(np.concatenate([np.full(9, 0.9995), np.full(9, 0.6)])))
    prompts, owners = [f"prompt {number}" for number in range(36)], np.zeros(36, dtype=np.int32)
    drawn = [
        draw_pairs(
            prompts,
            vectors,
            owners,
            count=4,
            num_near=num_near,
            rng=np.random.default_rng(1),
            edges=(0.5, 0.9, 1.01),
        )
        for num_near in (0, 3)
    ]
    assert drawn[1][:4] == drawn[0]
    assert [round(pair.similarity, 4) for pair in drawn[1]] == [0.9995] * 2 + [0.6] * 2 + [
        0.9995
    ] * 3


def test_a_repeat_is_no_pair() -> None:
    vectors = np.ones((2, 1), dtype=np.float32)
    owners = np.zeros(2, dtype=np.int32)
    with pytest.raises(OptionInvalid, match="none of 2 prompts"):
        draw_pairs(["a", "a"], vectors, owners, count=1, rng=np.random.default_rng(1))


def test_prompts_that_are_all_different_are_refused() -> None:
    owners = np.zeros(2, dtype=np.int32)
    with pytest.raises(OptionInvalid, match=r"none of 2 prompts is more alike than 0\.2"):
        draw_pairs(
            ["a", "b"],
            np.eye(2, dtype=np.float32),
            owners,
            count=4,
            rng=np.random.default_rng(1),
        )


def test_the_floor_is_where_the_quality_is_kept_from_there_on() -> None:
    similarities = np.linspace(0.5, 0.995, 200)
    # k = 5 keeps all; k = 25 keeps all above .8 and half below; k = 40 keeps half everywhere.
    measurements = [
        measured(s, by_k={5: 0.8, 25: 0.8 if s >= 0.8 else 0.4, 40: 0.4}) for s in similarities
    ]
    curves = find_curves(measurements, Rule(alphas={"score": 0.9}))
    found = floors(curves, KIND)
    assert found[5] == 0.5
    assert found[25] == pytest.approx(0.8, abs=0.02)
    assert 40 not in found


def test_few_noisy_pairs_give_a_higher_floor_than_many() -> None:
    rng = np.random.default_rng(3)

    def floor(num: int) -> float:
        similarities = np.sort(rng.uniform(0.5, 0.995, num))
        scores = 0.8 - 0.3 * (1 - similarities) + rng.normal(0, 0.12, num)
        pairs = [
            measured(float(s), by_k={5: float(q)})
            for s, q in zip(similarities, scores, strict=True)
        ]
        return floors(find_curves(pairs, Rule(alphas={"score": 0.9})), KIND).get(5, 1.0)

    assert floor(40) > floor(2_000)


def test_a_larger_k_never_asks_for_less() -> None:
    similarities = np.linspace(0.5, 0.995, 100)
    measurements = [measured(s, by_k={5: 0.8 if s >= 0.9 else 0.1, 10: 0.8}) for s in similarities]
    found = floors(find_curves(measurements, Rule(alphas={"score": 0.9})), KIND)
    assert found[10] == found[5] == pytest.approx(0.9, abs=0.03)


def test_every_measure_must_allow_a_k() -> None:
    both = Measurement(
        pair=Pair(cached="c", asked="a", similarity=0.9),
        from_noise=({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}),
        from_state={KIND: {5: {"a": 1.0, "b": 0.5}}},
    )
    curves = find_curves([both] * 20, Rule(alphas={"a": 0.9, "b": 0.9}))
    assert floors(curves, KIND) == {}
    assert floors([curve for curve in curves if curve.measure == "a"], KIND) == {5: 0.9}


def test_measurements_are_continued_and_a_torn_line_is_drawn_again(tmp_path: Path) -> None:
    path, about = tmp_path / "pairs.jsonl", {"revision": "r1"}
    file = MeasurementFile(path, about)
    first, second = measured(0.6, by_k={5: 0.7}), measured(0.9, by_k={5: 0.8})
    file.add(first)
    file.add(second)
    pairs = [first.pair, second.pair]
    assert MeasurementFile(path, about).of(pairs) == [first, second]
    path.write_text(path.read_text()[:-20])
    torn = MeasurementFile(path, about)
    assert torn.of(pairs) == [first]
    more = replace(first.pair, asked="another")
    assert torn.missing([more, *pairs]) == [(0, more), (2, second.pair)]
    with pytest.raises(OptionInvalid, match="measured with another model or other options"):
        MeasurementFile(path, {"revision": "r2"})
