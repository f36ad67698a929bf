"""The benchmarks run, and say what they promise in their last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import engine, followers
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


def test_the_followers_benchmark_ends_with_loads_and_quality(
    capsys: pytest.CaptureFixture[str],
) -> None:
    followers.main(
        ["--bursts=1", "--loads", "1", "--prompts=1", "--fractions", "0.4", "--steps=10", "--json"]
    )
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    seeds, near = figures["loads"]
    assert (seeds["workload"], seeds["steps_saved"]) == ("seeds", 0.3)  # 3 of 4 skip 4 of 10
    assert near["steps_saved"] > 0
    (quality,) = figures["quality"]
    assert quality["fraction"] == 0.4
    assert quality["judge_ratio"] > 0
