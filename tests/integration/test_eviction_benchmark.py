"""The benchmark of evictions: what its last line promises, in small."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
STATES, SHARE = 1_000, 0.05
SMALL = [
    "--states",
    str(STATES),
    "--share",
    str(SHARE),
    "--sample=20",
    "--idle-s=0.5",
    "--rate=200",
]
TIMEOUT_S = 240


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own: under root PostgreSQL's account must be able to enter it."""
    with tempfile.TemporaryDirectory(prefix="nirvana-eviction-") as found:
        Path(found).chmod(0o711)
        yield Path(found) / "home"


def test_a_share_is_evicted_and_a_second_run_evicts_the_next(folder: Path) -> None:
    for added in (STATES, STATES * SHARE):
        printed = run(folder)
        assert printed[0] == f"{added:,.0f} states added"
        answer: dict[str, Any] = json.loads(printed[-1])
        assert answer["evicted"] == STATES * SHARE
        assert 0 <= answer["row_seconds"] <= answer["seconds"]
        assert answer["s3_cpu_seconds"] >= 0
        assert answer["lookup_p99_ms_idle"] > 0
        left = (answer["lost_objects"], answer["leaked_objects"], answer["objects_left"])
        assert left == (0, 0, 0)


def run(folder: Path) -> list[str]:
    """In a process of its own: it drops constraints from the tables that a process knows."""
    argv = [sys.executable, "-m", "benchmarks.eviction", *SMALL, "--folder", str(folder), "--json"]
    ended = subprocess.run(
        argv, cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()
