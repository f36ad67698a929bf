from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.denoising.batcher import NUM_FITS_TO_GROW, Batcher
from workers.denoising.errors import QueueFull

BATCH_SIZE_MAX = 3
NUM_WAITING_MAX = 5


@dataclass(eq=False)
class Job:
    group: str
    steps_left: int = 1
    arrival: int = field(default=0)


def batcher_of(*groups: str, batch_size_max: int = 2) -> tuple[Batcher[Job], list[Job]]:
    batcher: Batcher[Job] = Batcher(batch_size_max=batch_size_max, num_waiting_max=10)
    jobs = [Job(group) for group in groups]
    for job in jobs:
        batcher.add(job)
    return batcher, jobs


def test_nothing_in_flight_gives_an_empty_batch() -> None:
    assert batcher_of()[0].next_batch() == []


def test_the_oldest_steps_with_the_next_oldest_of_its_group() -> None:
    batcher, (a1, b1, a2, a3, b2) = batcher_of("a", "b", "a", "a", "b")
    assert batcher.next_batch() == [a1, a2]
    batcher.remove(a1)
    assert batcher.next_batch() == [b1, b2]
    batcher.remove(b1)
    batcher.remove(b2)
    assert batcher.next_batch() == [a2, a3]


def test_a_newcomer_takes_a_free_seat_at_once() -> None:
    batcher, (first,) = batcher_of("a")
    assert batcher.next_batch() == [first]
    newcomer = Job("a")
    batcher.add(newcomer)
    assert batcher.next_batch() == [first, newcomer]


def test_the_queue_refuses_what_it_cannot_hold_and_frees_seats_by_stepping() -> None:
    batcher: Batcher[Job] = Batcher(batch_size_max=1, num_waiting_max=2)
    batcher.add(Job("a"))
    batcher.add(Job("a"))
    with pytest.raises(QueueFull, match="2 jobs wait"):
        batcher.add(Job("a"))
    batcher.next_batch()
    batcher.add(Job("a"))
    assert batcher.num_waiting == 2


def test_halving_concerns_the_group_that_did_not_fit() -> None:
    batcher, (a1, *_, b1, b2) = batcher_of("a", "a", "a", "b", "b", batch_size_max=3)
    batcher.halve(batcher.next_batch())
    assert batcher.next_batch() == [a1]
    for job in batcher:
        if job.group == "a":
            batcher.remove(job)
    assert batcher.next_batch() == [b1, b2]


def test_a_halved_group_grows_back_after_many_full_batches_that_fit() -> None:
    batcher, jobs = batcher_of("a", "a", "a", "a", batch_size_max=4)
    batcher.halve(jobs)
    for _ in range(NUM_FITS_TO_GROW):
        assert batcher.size_max("a") == 2
        batcher.note_fit(batcher.next_batch()[:1])  # not full: says nothing
        batcher.note_fit(batcher.next_batch())
    assert batcher.next_batch() == jobs


class Stepping(RuleBasedStateMachine):
    """Jobs of three groups arrive, step, leave early or run out of memory in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher: Batcher[Job] = Batcher(
            batch_size_max=BATCH_SIZE_MAX, num_waiting_max=NUM_WAITING_MAX
        )
        self.num_arrived = 0
        self.group_size_max: dict[str, int] = {}

    @rule(group=st.sampled_from("abc"), steps=st.integers(1, 4))
    def arrive(self, group: str, steps: int) -> None:
        job = Job(group, steps, self.num_arrived)
        is_full = self.batcher.num_waiting == NUM_WAITING_MAX
        try:
            self.batcher.add(job)
            assert not is_full
            self.num_arrived += 1
        except QueueFull:
            assert is_full

    @rule()
    def step(self) -> None:
        batch = self.batcher.next_batch()
        self.check_fairness(batch)
        for job in batch:
            job.steps_left -= 1
            if not job.steps_left:
                self.batcher.remove(job)

    def check_fairness(self, batch: list[Job]) -> None:
        everybody = sorted(self.batcher, key=lambda job: job.arrival)
        # Nobody waits behind a newcomer: every batch moves the oldest, so each job waits for
        # those that came before it and for no others.
        assert batch[:1] == everybody[:1]
        alike = [job for job in everybody if batch and job.group == batch[0].group]
        size_max = self.group_size_max.get(batch[0].group, BATCH_SIZE_MAX) if batch else 0
        assert batch == alike[:size_max]

    @precondition(lambda self: len(self.batcher) > 0)
    @rule(choice=st.data())
    def leave(self, choice: st.DataObject) -> None:
        jobs = sorted(self.batcher, key=lambda job: job.arrival)
        self.batcher.remove(choice.draw(st.sampled_from(jobs)))

    @rule()
    def run_out_of_memory(self) -> None:
        batch = self.batcher.next_batch()
        if len(batch) > 1:
            self.batcher.halve(batch)
            self.group_size_max[batch[0].group] = len(batch) // 2

    @rule()
    def drain(self) -> None:
        """Whatever is in flight ends after as many steps as it has in all."""
        for _ in range(sum(job.steps_left for job in self.batcher)):
            self.step()
        assert len(self.batcher) == 0

    @invariant()
    def holds_together(self) -> None:
        self.batcher.check()


TestStepping = Stepping.TestCase
TestStepping.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
