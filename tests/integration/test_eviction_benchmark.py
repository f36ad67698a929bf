"""The benchmark of evictions: what its last line promises, in small."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.eviction import __main__ as eviction

STATES, SHARE = 1_000, 0.05


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own: under root PostgreSQL's account must be able to enter it."""
    with tempfile.TemporaryDirectory(prefix="nirvana-eviction-") as found:
        Path(found).chmod(0o711)
        yield Path(found) / "home"


def test_a_share_is_evicted_and_a_second_run_evicts_the_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--states",
        str(STATES),
        "--share",
        str(SHARE),
        "--sample",
        "20",
        "--idle-s",
        "0.5",
        "--rate",
        "200",
    ]
    for added in (STATES, STATES * SHARE):
        assert eviction.main([*small, "--folder", str(folder), "--json"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == f"{added:,.0f} states added"
        answer: dict[str, Any] = json.loads(printed[-1])
        assert answer["evicted"] == STATES * SHARE
        assert 0 <= answer["row_seconds"] <= answer["seconds"]
        assert answer["s3_cpu_seconds"] >= 0
        assert answer["lookup_p99_ms_idle"] > 0
        assert (answer["lost_objects"], answer["leaked_objects"], answer["objects_left"]) == (
            0,
            0,
            0,
        )
