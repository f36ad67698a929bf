"""The benchmarks run, and say what they promise in their last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import admission, engine, followers
from benchmarks.predictor import Balance
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
    assert (seeds["workload"], seeds["steps_saved"]) == ("seeds", 0.225)  # 3 of 4 skip 3 of 10
    assert near["steps_saved"] > 0
    (quality,) = figures["quality"]
    assert quality["fraction"] == 0.4
    assert quality["judge_ratio"] > 0


def test_the_predictor_pays_where_a_lookup_takes_longer_than_what_it_loses() -> None:
    balance = Balance(nu=0.2, gamma=1.0, lookups_avoided=0.5, hits_lost=0.1, steps_lost=0.2)
    # Asking, and 0.2 steps of 10 ms, for every second lookup.
    break_even_s = balance.break_even_s(predict_s=0.0005, seconds_per_step=0.01)
    assert break_even_s == pytest.approx(0.005)


def test_admission_is_compared_with_the_best_that_a_worker_could_follow() -> None:
    rules = {rule: {"1": 0.2, "10": 0.2} for rule in admission.RULES}
    rules |= {
        admission.AS_THE_WORKER: {"1": 0.18, "10": 0.2},
        "all k, as if copied": {"1": 0.5, "10": 0.5},
    }
    found = admission.summary({"a log": {"final": rules}})
    assert found == {"worker_gap_to_best": {"final": 0.1}}
