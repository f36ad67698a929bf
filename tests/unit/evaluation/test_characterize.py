from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.characterize import characterize
from evaluation.embedders import Ngrams
from evaluation.locality import NO_REUSE, latest_distances, locality
from evaluation.nearest import nearest_earlier
from evaluation.popularity import fit_zipf, popularity
from evaluation.prepared import Prepared, prepare
from evaluation.sessions import find_sessions
from evaluation.trace import Trace, read_trace
from tests.unit.evaluation.logs import log_rows, write_log
from tests.unit.evaluation.test_neighbours import clustered
from tests.unit.evaluation.test_replay import neighbours


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    trace = read_trace(write_log(tmp_path / "log.jsonl", log_rows(200)))
    return prepare(trace, Ngrams(), cache_dir=tmp_path)


def test_the_nearest_earlier_prompt_of_each_kind_of_user() -> None:
    vectors = clustered(300)
    users = np.random.default_rng(2).integers(-1, 5, 300).astype(np.int32)
    found = nearest_earlier(vectors, users, rng=np.random.default_rng(0))
    cosines = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    assert found.same_user is not None
    assert found.other_users is not None
    for row in (1, 50, 299):
        earlier = np.arange(row)
        is_same = users[:row] == users[row]
        is_other = ~is_same & (users[:row] >= 0)
        assert found.any_user[row] == pytest.approx(cosines[row, earlier].max(), abs=1e-5)
        if users[row] >= 0:
            same = cosines[row, earlier[is_same]].max(initial=-1.0)
            other = cosines[row, earlier[is_other]].max(initial=-1.0)
            assert found.same_user[row] == pytest.approx(same, abs=1e-5)
            assert found.other_users[row] == pytest.approx(other, abs=1e-5)
        else:
            assert np.isnan(found.same_user[row])


def test_a_longer_log_is_sampled() -> None:
    found = nearest_earlier(clustered(300), None, rng=np.random.default_rng(0), sample_max=50)
    assert (len(found.rows), len(found.any_user), found.same_user) == (50, 50, None)
    assert (np.diff(found.rows) > 0).all()


@pytest.mark.parametrize("exponent", [0.6, 1.2])
def test_zipf_is_found_where_it_is(exponent: float) -> None:
    counts = np.sort(np.round(1e6 * np.arange(1.0, 2_001) ** -exponent)).astype(np.int64)[::-1]
    assert fit_zipf(counts) == pytest.approx(exponent, abs=0.01)


def test_popularity_counts_equal_prompts() -> None:
    found = popularity(["a"] * 6 + ["b"] * 3 + ["c"])
    assert (found.num_distinct, found.repeat_share, found.top_percent_share) == (3, 0.7, 0.6)
    assert found.counts == (6, 3, 1)


def test_distances_lead_to_the_latest_neighbour_above_the_floor() -> None:
    log = neighbours({}, {0: 0.9}, {0: 0.95, 1: 0.7}, {})
    assert latest_distances(log, 0.65).tolist() == [NO_REUSE, 1, 1, NO_REUSE]
    assert latest_distances(log, 0.8).tolist() == [NO_REUSE, 1, 2, NO_REUSE]
    (found,) = locality(log, [0.8])
    assert (found.reuse_share, found.median_distance) == (0.5, 1)
    assert dict(found.share_by_window) == {1: 0.25, 2: 0.5, 4: 0.5}


def test_a_long_pause_ends_a_session() -> None:
    times = np.array([0.0, 60.0, 90.0, 4_000.0, 4_010.0])
    users = np.array([0, 0, 1, 0, -1], dtype=np.int32)
    trace = Trace(name="log", prompts=["p"] * 5, users=users, times_s=times)
    found = find_sessions(trace, clustered(5), rng=np.random.default_rng(0))
    assert found is not None
    assert (found.num_sessions, found.prompts_max, found.continued_share) == (3, 2, 0.25)


def test_a_characterization_names_what_the_log_lacks(prepared: Prepared) -> None:
    full = characterize(prepared)
    assert [each.among for each in full.similarity] == ["any user", "the same user", "other users"]
    assert full.sessions is not None
    bare_trace = replace(prepared.trace, users=None, times_s=None)
    bare = characterize(replace(prepared, trace=bare_trace))
    assert [each.among for each in bare.similarity] == ["any user"]
    assert bare.sessions is None
    said = " ".join(bare.caveats)
    assert "names no users" in said
    assert "has no times" in said
