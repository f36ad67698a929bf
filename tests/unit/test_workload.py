"""The generated log: the same each time, drawable, and iterating as its habits say."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.savings.habits import Habits, measure
from benchmarks.savings.workload import NUM_JOBS, generate
from evaluation.structure import structure
from models.scenes import full_caption


def test_the_log_is_the_same_each_time_and_a_shorter_one_is_its_beginning() -> None:
    assert generate(120) == generate(120)
    assert generate(120) == generate(200)[:120]
    assert generate(120, seed=1) != generate(120)


def test_every_prompt_says_what_its_picture_should_show() -> None:
    for request in generate(200):
        assert request.prompt.startswith(full_caption(request.scene))


def test_users_iterate_as_the_habits_say() -> None:
    requests = generate()
    users = [int(request.user[1:]) for request in requests]
    prompts = [request.prompt for request in requests]
    own, habits = measure(prompts, users, source="generated"), Habits.read()
    half = len(habits.gap) // 2
    assert own.gap[half] == pytest.approx(habits.gap[half], abs=1)
    assert own.changed_in_session[half] == pytest.approx(habits.changed_in_session[half], abs=0.05)
    assert own.return_share == pytest.approx(habits.return_share, abs=0.08)
    found = structure(prompts, users)
    assert len(found.repeats) == NUM_JOBS
    # Some ask for the very same again, with another seed.
    assert 0.05 < (found.repeats > 0).mean() < 0.25
    assert max(Counter(request.seed for request in requests).values()) == 1
