"""The benchmark of lookups: what it draws, what it calls right, and what its last line promises."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lookup import __main__ as lookup
from benchmarks.lookup import measure
from benchmarks.lookup.exact import SAME, exact_answers
from benchmarks.lookup.vectors import Prompts, log_quantiles, make_prompts
from cache.entry import Sharing

KEYS = {
    "rows",
    "dimensions",
    "sharing",
    "p50_ms",
    "p99_ms",
    "p99_ms_8_clients",
    "server_cpu_ms",
    "recall_at_1",
    "k_agreement",
    "k_agreement_on_hits",
    "similarity_regret_p99",
    "index_bytes",
    "build_s",
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """60 users with 1, 2, 3, ... prompts, one after the other, and some without a user."""
    path = tmp_path / "log.jsonl"
    users = [f"u{user}" for user in range(60) for _ in range(1 + user)]
    rows = [{"prompt": "a tree", "user": user} for user in users]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"prompt": "a tree"}]))
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own: under root PostgreSQL's account must be able to enter it."""
    with tempfile.TemporaryDirectory(prefix="nirvana-lookup-") as found:
        yield Path(found)


def test_prompts_are_as_near_to_each_other_as_the_logs(log: Path) -> None:
    cached, queries = make_prompts(log, num=4_000, num_queries=400, dimension=128)
    kept = np.ones((len(cached), 5), dtype=bool)
    exact = exact_answers(cached, kept, queries, Sharing.NAMESPACE)
    found = np.percentile([answer.similarity for answer in exact], (50, 75, 90))
    wanted = log_quantiles(np.array([0.5, 0.75, 0.9]), Sharing.NAMESPACE)
    assert found == pytest.approx(wanted, abs=0.06)
    hits = [answer.k_max for answer in exact if answer.k_max]
    assert len(hits) >= 0.4 * len(exact)
    assert len(set(hits)) >= 4
    assert len(np.unique(cached.scopes)) == 3


def test_where_neighbours_tie_each_of_their_ks_is_right() -> None:
    same = np.tile(np.array([[1, 0]], np.float16), (20, 1))
    cached = Prompts(vectors=same, users=np.zeros(20, np.int32), scopes=np.zeros(20, np.int32))
    query = Prompts(vectors=same[:1], users=cached.users[:1], scopes=cached.scopes[:1])
    kept = np.zeros((20, 5), dtype=bool)
    kept[:, 0] = True
    kept[:3, 4] = True  # three of the twenty also have k = 25
    (answer,) = exact_answers(cached, kept, query, Sharing.USER)
    assert (answer.k_min, answer.k_max) == (5, 25)
    assert answer.similarity == pytest.approx(1, abs=SAME)


@pytest.mark.parametrize("sharing", Sharing)
def test_the_last_line_holds_what_was_measured(
    sharing: Sharing,
    log: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "CLIENTS", 2)
    monkeypatch.setenv("NIRVANA_CACHE_INDEX_ROWS_MIN", "500")
    options = ["--rows=1500", "--dimensions=64", "--queries=60", f"--sharing={sharing}"]
    lookup.main([*options, f"--log={log}", f"--folder={folder}", "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    built_with = {"m", "ef_construction"} if sharing is Sharing.NAMESPACE else set()
    assert set(figures) == KEYS | built_with
    assert figures["k_agreement"] == 1
    assert figures["index_bytes"] > 0
