from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation import neighbours as module
from evaluation.hnsw import hnsw_edges, recall
from evaluation.lists import neighbour_lists
from evaluation.neighbours import Neighbours, gather, search_exact
from evaluation.vectors import HalfVectors

FLOOR = 0.5


def clustered(num_rows: int, *, dimension: int = 16, seed: int = 0) -> HalfVectors:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, dimension))
    vectors = centres[rng.integers(0, 12, num_rows)] + 0.3 * rng.normal(size=(num_rows, dimension))
    vectors[num_rows // 2] = vectors[num_rows // 4]  # an exact repeat
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    half: HalfVectors = unit.astype(np.float16)
    return half


def brute_force(
    vectors: HalfVectors, groups: np.ndarray, *, num_max: int
) -> list[list[tuple[float, int]]]:
    """Nearest first, then newest."""
    wide = vectors.astype(np.float32)
    found = []
    for row in range(len(vectors)):
        pairs = [
            (float(wide[row] @ wide[earlier]), earlier)
            for earlier in range(row)
            if groups[earlier] == groups[row]
        ]
        near = [pair for pair in pairs if pair[0] > FLOOR]
        found.append(sorted(near, key=lambda pair: (-pair[0], -pair[1]))[:num_max])
    return found


def assert_same(found: Neighbours, expected: list[list[tuple[float, int]]]) -> None:
    for row, pairs in enumerate(expected):
        edges = slice(found.starts[row], found.starts[row + 1])
        similarities = [similarity for similarity, _ in pairs]
        np.testing.assert_allclose(found.similarities[edges], similarities, atol=1e-5)
        # Blocked products round differently, so equal similarities may change places.
        if len(set(np.round(similarities, 4))) == len(pairs):
            assert found.rows[edges].tolist() == [earlier for _, earlier in pairs]


@pytest.mark.parametrize("num_groups", [1, 3])
def test_exact_search_finds_what_brute_force_finds(
    monkeypatch: pytest.MonkeyPatch, num_groups: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "TILE", 24)
    vectors = clustered(150)
    groups = np.random.default_rng(1).integers(0, num_groups, 150).astype(np.int32)
    found = search_exact(vectors, groups, floor=FLOOR, num_max=6)
    assert_same(found, brute_force(vectors, groups, num_max=6))
    assert 0 < found.cut_share < 1


def test_hnsw_finds_nearly_all_and_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.hnsw.BLOCK", 64)
    vectors, groups = clustered(600), np.zeros(600, dtype=np.int32)
    edges = list(hnsw_edges(vectors, np.arange(600, dtype=np.int32), floor=FLOOR, num_max=8))
    found = gather(edges, num_rows=600, num_max=8, floor=FLOOR)
    assert (found.rows < found.sources()).all()
    rng = np.random.default_rng(0)
    assert recall(found, vectors, groups, num_sampled=600, rng=rng) > 0.95


def test_recall_counts_what_is_missing() -> None:
    vectors, groups = clustered(200), np.zeros(200, dtype=np.int32)
    full = search_exact(vectors, groups, floor=FLOOR, num_max=8)
    half = search_exact(vectors, groups, floor=FLOOR, num_max=4)
    asked_for_8 = Neighbours(
        num_max=8,
        floor=FLOOR,
        starts=half.starts,
        rows=half.rows,
        similarities=half.similarities,
    )
    rng = np.random.default_rng(0)
    assert recall(full, vectors, groups, num_sampled=200, rng=rng) == 1.0
    assert recall(asked_for_8, vectors, groups, num_sampled=200, rng=rng) < 0.7


def test_lists_are_read_back_from_disk(tmp_path: Path) -> None:
    vectors, groups = clustered(100), np.zeros(100, dtype=np.int32)
    options = {"key": "log", "floor": FLOOR, "cache_dir": tmp_path, "num_max": 5}
    first = neighbour_lists(vectors, groups, **options)  # type: ignore[arg-type]
    again = neighbour_lists(vectors[:0], groups, **options)  # type: ignore[arg-type]
    assert (first.recall, again.recall) == (None, None)
    np.testing.assert_array_equal(first.neighbours.rows, again.neighbours.rows)


def test_large_groups_go_to_hnsw_and_say_how_good_it_was(tmp_path: Path) -> None:
    vectors = clustered(300)
    groups = np.repeat(np.array([0, 1], dtype=np.int32), [200, 100])
    lists = neighbour_lists(
        vectors, groups, key="log", floor=FLOOR, cache_dir=tmp_path, exact_max=150
    )
    assert lists.recall is not None
    assert lists.recall > 0.95
    assert "HNSW, recall" in lists.caveat


def test_a_list_is_never_longer_than_its_limit() -> None:
    vectors = np.tile(clustered(1), (500, 1))  # one prompt, 500 times: 124,750 pairs
    found = search_exact(vectors, np.zeros(500, dtype=np.int32), floor=FLOOR, num_max=4)
    assert found.counts.max() == 4
    assert found.rows[found.starts[499] :].tolist() == [498, 497, 496, 495]
