from __future__ import annotations

import threading
import time

import pytest

from cache.budget import BoundedCalls
from cache.errors import BudgetExceeded, TooBusy


def test_the_answer_comes_back() -> None:
    assert BoundedCalls(1).call(lambda: 7, budget_s=10) == 7


def test_an_error_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        BoundedCalls(1).call(lambda: 1 // 0, budget_s=10)


def test_a_time_out_of_the_function_s_own_is_not_the_budget() -> None:
    def own() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        BoundedCalls(1).call(own, budget_s=10)


def test_what_hangs_costs_the_budget_and_a_place_until_it_ends() -> None:
    calls, released = BoundedCalls(1), threading.Event()
    started = time.monotonic()
    with pytest.raises(BudgetExceeded):
        calls.call(released.wait, budget_s=0.05)
    assert time.monotonic() - started < 1
    with pytest.raises(TooBusy):
        calls.call(lambda: 7, budget_s=10)
    released.set()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert calls.call(lambda: 7, budget_s=10) == 7
            break
        except TooBusy:
            assert time.monotonic() < deadline


def test_places_are_given_back() -> None:
    calls = BoundedCalls(2)
    assert [calls.call(lambda: 7, budget_s=10) for _ in range(50)] == [7] * 50


def test_waiting_for_calls_in_progress() -> None:
    calls, released = BoundedCalls(2), threading.Event()
    assert calls.is_idle_within(0)
    with pytest.raises(BudgetExceeded):
        calls.call(released.wait, budget_s=0.01)
    assert not calls.is_idle_within(0.01)
    released.set()
    assert calls.is_idle_within(10)
    assert [calls.call(lambda: 7, budget_s=10) for _ in range(3)] == [7] * 3
