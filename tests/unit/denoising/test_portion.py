from __future__ import annotations

from workers.denoising.portion import Portion


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
