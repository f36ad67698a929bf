from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.costs import Prices
from evaluation.errors import OptionInvalid, TraceInvalid
from evaluation.queueing import (
    ServiceTimes,
    gpus_needed,
    latency,
    poisson_arrivals,
    read_arrivals,
)


def test_jobs_wait_for_the_first_gpu_that_is_free() -> None:
    arrivals = np.array([0.0, 0.0, 1.0, 1.0])
    service = np.array([4.0, 2.0, 2.0, 1.0])
    # One GPU: ends at 4, 6, 8, 9. Two: the third begins at 2, the fourth at 4.
    one = latency(arrivals, service, num_gpus=1)
    assert one.mean_s == sum([4, 6, 7, 8]) / 4
    assert one.utilisation == 1.0
    two = latency(arrivals, service, num_gpus=2)
    assert two.mean_s == sum([4, 2, 3, 4]) / 4
    assert two.p50_s == 3.5
    assert two.utilisation == 9 / (2 * 5)


def test_skipped_steps_shorten_a_job_and_lookups_lengthen_it() -> None:
    times = ServiceTimes(seconds_per_step=0.1, fixed_s=1.0, lookup_s=0.01, fetch_s=0.02)
    with_cache = times.with_cache(
        np.array([0, 25, 0], dtype=np.int16), 50, is_asked=np.array([True, True, False])
    )
    np.testing.assert_allclose(with_cache, [6.01, 3.53, 6.0])
    np.testing.assert_allclose(times.without_cache(2, 50), [6.0, 6.0])


def test_arrivals_of_a_file_repeat_end_to_start(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.txt"
    path.write_text("1000,7\n3000,9\n2000,8\n", encoding="utf-8")
    assert read_arrivals(path, 7).tolist() == [0, 1, 2, 3, 4, 5, 6]
    path.write_text("soon\n", encoding="utf-8")
    with pytest.raises(TraceInvalid, match="begin with milliseconds"):
        read_arrivals(path, 2)


def test_random_arrivals_come_at_their_rate() -> None:
    arrivals = poisson_arrivals(20_000, per_second=4.0, rng=np.random.default_rng(0))
    assert arrivals[-1] == pytest.approx(5_000, rel=0.03)
    assert (np.diff(arrivals) >= 0).all()


def test_as_many_gpus_as_are_busy_for_nine_tenths_of_the_time() -> None:
    arrivals, service = np.arange(101.0), np.full(101, 1.7)
    assert gpus_needed(arrivals, service) == 2
    with pytest.raises(OptionInvalid, match="give the number of GPUs"):
        gpus_needed(np.zeros(3), service[:3])


def test_steps_cost_gpu_time_and_money() -> None:
    prices = Prices(seconds_per_step=0.05, gpu_price_per_hour=2.0)
    assert (prices.gpu_hours(72_000), prices.money(72_000)) == (1.0, 2.0)
    assert Prices(seconds_per_step=0.05).money(72_000) is None
