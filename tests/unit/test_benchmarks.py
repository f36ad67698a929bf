"""The benchmarks run, and say what they promise in their last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import engine
from tests.tiny_pipeline import build_tiny_pipeline


def test_the_engines_benchmark_ends_with_its_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_tiny_pipeline(tmp_path / "model")
    engine.main(
        [f"--model={folder}", "--jobs=7", "--steps=10", "--in-flight=3", "--rounds=1", "--json"]
    )
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert set(figures) == {
        "throughput_ratio",
        "throughput_ratio_without_cache",
        "ceiling",
        "share_of_ceiling",
        "single_job_ratio",
        "p50_latency_ratio",
        "batch_occupancy",
    }
    assert all(value > 0 for value in figures.values())
    assert any("torch threads" in line for line in table)
    assert "Caveats" in table
