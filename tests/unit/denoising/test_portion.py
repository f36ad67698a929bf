from __future__ import annotations

import torch

from tests.unit.denoising.fakes import request_for
from workers.denoising.engine import ONE_THREAD
from workers.denoising.families.family import Family
from workers.denoising.in_flight import InFlight
from workers.denoising.portion import Portion
from workers.denoising.trajectory import Trajectory


def test_side_work_takes_about_one_steps_time() -> None:
    portion = Portion(size_max=32)
    portion.note(4, 0.4)
    assert portion.size(0.35) == 3


def test_something_is_always_done() -> None:
    portion = Portion(size_max=32)
    assert portion.size(0.1) == 1  # not measured yet
    portion.note(1, 5.0)
    assert portion.size(0.1) == 1


def test_nothing_waits_so_that_all_can_be_done_at_once() -> None:
    portion = Portion(size_max=32)
    portion.note(1, 5.0)
    assert portion.size(None) == 32


def test_a_disturbance_is_forgotten() -> None:
    portion = Portion(size_max=32)
    for seconds in (10.0, *[0.1] * 20):
        portion.note(1, seconds)
    assert portion.size(1.0) in {9, 10}


def test_finished_jobs_are_decoded_bit_by_bit_while_others_step_and_then_all(
    family: Family,
) -> None:
    encoding = family.encode(["a cat"], [""])[0]
    short = [Trajectory(request_for(encoding, num_inference_steps=1), family) for _ in range(5)]
    long = Trajectory(request_for(encoding, num_inference_steps=2), family)
    flight = InFlight(family.device, batch_size_max=8, num_waiting_max=9, threads=ONE_THREAD)
    with torch.inference_mode():
        flight.begin([*short, long])
        flight.step()
        flight.retire()
        assert [job.future.done() for job in short] == [True, False, False, False, False]
        flight.step()
        flight.retire()
    assert all(job.future.done() for job in (*short, long))
