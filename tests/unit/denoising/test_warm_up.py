"""What the warm-up makes of its measurements: on devices that behave as the test says."""

from __future__ import annotations

import pytest
import torch

from workers.denoising.families.family import Family
from workers.denoising.threads import ThreadTable
from workers.denoising.warm_up import (
    choose_threads,
    pass_timer,
    probe_batch_size,
    thread_counts,
    warm_up,
)


class Device:
    """A device that takes `overhead_s + batch / throughput`, and holds so many jobs."""

    def __init__(self, *, num_jobs_max: int, overhead_s: float = 1.0) -> None:
        self.num_jobs_max = num_jobs_max
        self.overhead_s = overhead_s
        self.tried: list[int] = []

    def time_pass(self, batch_size: int) -> float:
        self.tried.append(batch_size)
        if batch_size > self.num_jobs_max:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.overhead_s + batch_size / 100


def test_the_batch_doubles_until_it_does_not_fit() -> None:
    device = Device(num_jobs_max=20)
    assert probe_batch_size(device.time_pass, size_max=256) == 16
    assert max(device.tried) == 32


def test_the_batch_doubles_until_it_does_no_more_jobs_a_second() -> None:
    device = Device(num_jobs_max=10**6, overhead_s=0.02)
    assert probe_batch_size(device.time_pass, size_max=256) == 32  # 64 would gain 3 %


def test_the_batch_is_never_larger_than_asked_for() -> None:
    assert probe_batch_size(Device(num_jobs_max=10**6).time_pass, size_max=12) == 12


def test_a_model_that_does_not_fit_alone_is_told_at_start() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        probe_batch_size(Device(num_jobs_max=0).time_pass, size_max=8)


def test_what_is_no_lack_of_memory_is_not_taken_for_it() -> None:
    def broken(batch_size: int) -> float:
        if batch_size > 1:
            raise RuntimeError("an illegal memory access was encountered")
        return 1.0

    with pytest.raises(RuntimeError, match="illegal"):
        probe_batch_size(broken, size_max=8)


def test_each_batch_size_gets_the_threads_that_were_fastest() -> None:
    def time_pass(batch_size: int) -> float:
        """Four threads help a large batch; two and more collapse on a small one."""
        num_threads = torch.get_num_threads()
        return 1 / num_threads if batch_size > 1 else float(num_threads)

    before = torch.get_num_threads()
    table = choose_threads(time_pass, {1, 8}, num_cores=4)
    assert [table.for_batch(size) for size in (1, 2, 7, 8, 64)] == [1, 1, 1, 4, 4]
    assert torch.get_num_threads() == before


def test_a_gain_too_small_to_matter_is_no_reason_for_more_threads() -> None:
    def time_pass(batch_size: int) -> float:
        return 1.0 - 0.01 * torch.get_num_threads()

    assert choose_threads(time_pass, {1}, num_cores=2).for_batch(1) == 1


def test_powers_of_two_and_all_cores_are_tried() -> None:
    assert [thread_counts(cores) for cores in (1, 2, 6, 16)] == [
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8, 16],
    ]


def test_a_batch_smaller_than_all_measured_ones_takes_the_smallest() -> None:
    assert ThreadTable({4: 3, 8: 2}).for_batch(1) == 3


def test_a_real_model_is_timed_and_what_is_given_is_kept(family: Family) -> None:
    assert pass_timer(family)(3) > 0
    chosen = warm_up(family, batch_size_max=0, num_threads=0, jobs_in_flight=4)
    assert chosen.batch_size_max == 4
    given = warm_up(family, batch_size_max=2, num_threads=3, jobs_in_flight=4)
    assert (given.batch_size_max, given.threads.for_batch(1)) == (2, 3)
