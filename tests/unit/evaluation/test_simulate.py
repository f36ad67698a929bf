from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cache.entry import StateKind
from cache.settings import Policy
from evaluation.embedders import Ngrams
from evaluation.neighbours import search_exact
from evaluation.predictor import PredictorOptions, predict_matches, predictor_quality
from evaluation.prepared import Prepared, prepare
from evaluation.queueing import ServiceTimes
from evaluation.replay import CacheOptions, replay
from evaluation.sharing import SharedBy
from evaluation.simulate import Grid, Load, simulate
from evaluation.trace import read_trace
from tests.unit.evaluation.logs import log_rows, write_log
from tests.unit.evaluation.test_neighbours import clustered


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    trace = read_trace(write_log(tmp_path / "log.jsonl", log_rows(300)))
    return prepare(trace, Ngrams(), cache_dir=tmp_path)


def test_a_grid_has_every_policy_at_every_capacity_under_the_bound(prepared: Prepared) -> None:
    found = simulate(prepared, Grid(capacity_shares=(0.02, 1.0)), shared_by=SharedBy.USER)
    assert len(found.runs) == len(Policy) * 2 * len(StateKind)
    bounds = {(b.state_kind, b.capacity_share): b.savings for b in found.bounds}
    for run in found.runs:
        assert 0 < run.savings <= bounds[run.state_kind, run.capacity_share] + 1e-9
        assert run.bytes_max <= run.capacity_bytes
        assert (run.share_of_unbounded == 1.0) == (run.capacity_share == 1.0)
    assert found.shared_by is SharedBy.USER


def test_a_cache_shortens_the_queue(prepared: Prepared) -> None:
    load = Load(
        arrivals_s=np.arange(300.0),
        service=ServiceTimes(seconds_per_step=0.02),
        num_gpus=1,
    )
    grid = Grid(policies=(Policy.LRU,), capacity_shares=(1.0,))
    found = simulate(prepared, grid, shared_by=SharedBy.NAMESPACE, load=load)
    assert found.uncached_latency is not None
    for run in found.runs:
        assert run.latency is not None
        assert run.latency.mean_s < found.uncached_latency.mean_s
        assert run.latency.utilisation < found.uncached_latency.utilisation


def test_the_predictor_sees_only_what_came_before() -> None:
    vectors = clustered(400)
    options = PredictorOptions(nu=0.1, gamma=0.5, num_latest=100, refit_every=100)
    asked = predict_matches(vectors, options)
    changed = vectors.copy()
    changed[300:] = -changed[300:]
    assert asked[:100].all()
    np.testing.assert_array_equal(predict_matches(changed, options)[:300], asked[:300])
    assert predict_matches(changed, options)[300:].mean() < asked[300:].mean()


def test_the_predictors_quality_is_that_of_what_it_lets_pass() -> None:
    asked = np.array([True, True, False, False])
    found = predictor_quality(asked, np.array([True, False, True, False]))
    assert (found.lookups_avoided_share, found.recall, found.precision) == (0.5, 0.5, 0.5)


def peak_bytes(num_rows: int) -> int:
    vectors = clustered(num_rows)
    groups = (np.arange(num_rows) // 500).astype(np.int32)
    tracemalloc.start()
    try:
        neighbours = search_exact(vectors, groups, floor=0.65, num_max=16)
        replay(neighbours, CacheOptions(policy=Policy.LCBFU_AGED, capacity_share=0.1))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_no_faster_than_the_log() -> None:
    assert peak_bytes(6_000) < 3 * 1.15 * peak_bytes(2_000)
