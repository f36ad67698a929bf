"""The benchmark of what the fleet adds to a job, short: two fleets as users run them."""

from __future__ import annotations

import json

import pytest

from benchmarks import overhead

pytestmark = pytest.mark.timeout(300)


def test_a_job_through_the_fleet_ends_and_the_queue_drains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    overhead.main(["--jobs=3", "--steps=4", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert set(figures) == {
        "overhead_ms_p50",
        "overhead_ms_p99",
        "overhead_ratio",
        "jobs_per_s",
    }
    assert figures["jobs_per_s"] > 0
    assert any(line.startswith("3 jobs of 4 steps") for line in table)
