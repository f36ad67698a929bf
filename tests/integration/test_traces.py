"""Traces against the real store: what a client, a worker and the rescuer each see."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from producer.broker import open_connection
from producer.contract import ErrorCode, GenerationJob, Priority, Status
from producer.errors import JobConflict, QueueFull, UnknownJob
from producer.result import JobError, JobResult
from producer.trace import Progress, Traces, WaitingJob

QUEUE = "generate.small.3"
OTHER_QUEUE = "generate.small.4"
RETENTION_S = 60


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def broker(broker_url: str) -> Iterator[redis.Redis]:
    with closing(open_connection(broker_url)) as connection:
        yield connection


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traces(broker: redis.Redis, clock: Clock) -> Traces:
    return Traces(broker, retention_s=RETENTION_S, clock=clock)


def create(
    traces: Traces,
    job_id: str | None = None,
    *,
    prompt: str = "a fox",
    queue: str = QUEUE,
    priority: Priority = Priority.STANDARD,
    length_max: int | None = None,
) -> str:
    job_id = job_id or str(uuid.uuid4())
    job = GenerationJob(prompt=prompt, priority=priority)
    traces.create(job_id, job, payload_hash=job.payload_hash, queue=queue, length_max=length_max)
    return job_id


def ended(job_id: str, status: Status = Status.SUCCEEDED, attempt: int = 1) -> JobResult:
    return JobResult(job_id=job_id, status=status, attempt=attempt)


def waiting(traces: Traces) -> dict[str, WaitingJob]:
    return {job.job_id: job for job in traces.waiting(limit_per_list=100)}


def test_a_trace_tells_what_was_submitted(traces: Traces) -> None:
    trace = traces.read(create(traces, priority=Priority.BATCH))
    assert (trace.status, trace.attempt, trace.result) == (Status.SUBMITTED, 0, None)
    assert (trace.queue, trace.priority) == (QUEUE, Priority.BATCH)
    assert GenerationJob.from_wire(trace.job).prompt == "a fox"


def test_an_earlier_attempt_that_wakes_does_not_show_itself(traces: Traces) -> None:
    job_id = create(traces)
    traces.mark_running(job_id, 2)
    traces.mark_running(job_id, 1)
    assert traces.read(job_id).attempt == 2


def test_progress_of_a_job_that_ended_is_not_shown_anywhere(traces: Traces) -> None:
    job_id = create(traces)
    traces.mark_running(job_id, 1)
    assert traces.show_progress(job_id, Progress(steps_done=1, steps_asked=2))
    traces.mark_finished(ended(job_id, Status.FAILED))
    assert not traces.show_progress(job_id, Progress(steps_done=2, steps_asked=2))
    assert traces.read(job_id).progress is None


def test_no_trace_is_unknown(traces: Traces) -> None:
    with pytest.raises(UnknownJob, match="never submitted here, or past its retention"):
        traces.read(str(uuid.uuid4()))


def test_an_id_is_created_once_and_taken_for_another_payload(traces: Traces) -> None:
    job = GenerationJob(prompt="a fox")
    job_id = str(uuid.uuid4())
    payload_hash = job.payload_hash
    assert traces.create(job_id, job, payload_hash=payload_hash, queue=QUEUE)
    assert not traces.create(job_id, job, payload_hash=payload_hash, queue=QUEUE)
    assert traces.num_waiting(QUEUE, Priority.STANDARD) == 1
    with pytest.raises(JobConflict):
        create(traces, job_id, prompt="a wolf")
    assert traces.read(job_id).job["prompt"] == "a fox"


def test_a_full_list_takes_no_more_but_knows_its_own(traces: Traces) -> None:
    first = create(traces, length_max=1)
    with pytest.raises(QueueFull):
        create(traces, length_max=1)
    create(traces, first, length_max=1)
    create(traces, priority=Priority.BATCH, length_max=1)


def test_a_claim_takes_the_job_out_of_the_line(traces: Traces) -> None:
    first, second, third = (create(traces) for _ in range(3))
    assert [traces.num_ahead(traces.read(job_id)) for job_id in (first, second, third)] == [0, 1, 2]
    traces.mark_running(first, 1)
    assert traces.read(first).status is Status.RUNNING
    assert traces.num_ahead(traces.read(first)) == 0
    assert traces.num_ahead(traces.read(third)) == 1


def test_better_priorities_of_all_queues_go_first_and_other_queues_in_turn(
    traces: Traces,
) -> None:
    create(traces, priority=Priority.INTERACTIVE)
    create(traces, priority=Priority.INTERACTIVE, queue=OTHER_QUEUE)
    create(traces, priority=Priority.BATCH)
    for _ in range(9):
        create(traces, queue=OTHER_QUEUE)
    create(traces)
    trace = traces.read(create(traces))
    assert traces.num_ahead(trace) == 2
    assert traces.num_ahead(trace, beside=[QUEUE, OTHER_QUEUE]) == 1 + 2 + 2


def test_only_a_job_behind_a_claimed_one_is_overtaken(traces: Traces) -> None:
    lost, claimed, later = (create(traces) for _ in range(3))
    other_list = create(traces, priority=Priority.BATCH)
    assert not any(job.is_overtaken for job in waiting(traces).values())
    traces.mark_running(claimed, 1)
    found = waiting(traces)
    assert found.keys() == {lost, later, other_list}
    assert [job.job_id for job in found.values() if job.is_overtaken] == [lost]


def test_a_job_sent_again_stands_at_the_end_and_is_overtaken_no_more(
    traces: Traces, clock: Clock
) -> None:
    lost, claimed = create(traces), create(traces)
    traces.mark_running(claimed, 1)
    clock.now += 30
    traces.mark_sent_again(lost, expected=Status.SUBMITTED)
    found = waiting(traces)[lost]
    assert not found.is_overtaken
    assert found.sent_at == clock.now


def test_sending_again_needs_the_expected_status(traces: Traces) -> None:
    job_id = create(traces)
    traces.mark_running(job_id, 1)
    traces.mark_sent_again(job_id, expected=Status.SUBMITTED)
    assert traces.read(job_id).status is Status.RUNNING
    traces.mark_sent_again(job_id, expected=Status.RUNNING)
    assert traces.read(job_id).status is Status.SUBMITTED
    assert waiting(traces).keys() == {job_id}
    traces.mark_finished(ended(job_id))
    traces.mark_sent_again(job_id, expected=Status.RUNNING)
    assert traces.read(job_id).status is Status.SUCCEEDED


def test_progress_shows_while_a_job_runs_and_then_no_more(traces: Traces) -> None:
    job_id = create(traces)
    progress = Progress(steps_done=3, steps_asked=20)
    traces.show_progress(job_id, progress)
    assert traces.read(job_id).progress is None
    traces.mark_running(job_id, 1)
    traces.show_progress(job_id, progress)
    assert traces.read(job_id).progress == progress
    traces.mark_running(job_id, 2)
    assert traces.read(job_id).progress is None
    traces.mark_finished(ended(job_id, attempt=2))
    traces.show_progress(job_id, progress)
    assert traces.read(job_id).progress is None


def test_an_end_is_shown_with_its_result_and_never_left_again(traces: Traces) -> None:
    job_id = create(traces)
    error = JobError(code=ErrorCode.INTERNAL, message="it broke")
    result = JobResult(job_id=job_id, status=Status.FAILED, attempt=2, error=error)
    traces.mark_finished(result)
    traces.mark_finished(result)
    traces.mark_running(job_id, 3)  # the late word of a worker that was frozen
    trace = traces.read(job_id)
    assert (trace.status, trace.attempt, trace.result) == (Status.FAILED, 2, result)
    assert waiting(traces) == {}


def test_a_trace_that_is_gone_is_not_written_again(traces: Traces, broker: redis.Redis) -> None:
    job_id = str(uuid.uuid4())
    traces.mark_running(job_id, 1)
    traces.show_progress(job_id, Progress(steps_done=1, steps_asked=2))
    traces.mark_sent_again(job_id, expected=Status.RUNNING)
    traces.mark_finished(ended(job_id))
    assert broker.keys("nirvana:job:*") == []


def test_a_trace_lives_for_its_retention_and_again_from_its_end(
    traces: Traces, broker: redis.Redis
) -> None:
    job_id = create(traces)
    key = f"nirvana:job:{job_id}"
    assert 0 < broker.ttl(key) <= RETENTION_S
    broker.expire(key, 5)
    traces.mark_finished(ended(job_id))
    assert broker.ttl(key) > 5


def test_an_expired_trace_leaves_the_line(traces: Traces, broker: redis.Redis) -> None:
    expired, alive = create(traces), create(traces)
    broker.delete(f"nirvana:job:{expired}")
    assert waiting(traces).keys() == {alive}
    assert traces.num_waiting(QUEUE, Priority.STANDARD) == 1


def test_a_creation_whose_answer_was_lost_is_recognised(
    traces: Traces, broker: redis.Redis
) -> None:
    """A connection that breaks makes redis-py run the script again: still a new job."""
    answers = []
    original: Any = broker.execute_command

    def twice(*arguments: object, **options: object) -> object:
        if arguments[0] == "EVALSHA":
            answers.append(original(*arguments, **options))
        return original(*arguments, **options)

    traces.read(create(traces))  # so that the script is known to the server
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "execute_command", twice)
        job = GenerationJob(prompt="a wolf")
        job_id = str(uuid.uuid4())
        assert traces.create(job_id, job, payload_hash=job.payload_hash, queue=QUEUE)
    assert answers == ["created"]
    assert traces.num_waiting(QUEUE, Priority.STANDARD) == 2
