"""How a job gets into its queue: completed, checked, traced, and then published."""

from __future__ import annotations

import socket
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from producer.contract import (
    CANCEL_TASK,
    GENERATE_TASK,
    MESSAGE_BYTES_MAX,
    GenerationJob,
    canonical_json,
)
from producer.errors import InvalidJob, QueueFull
from producer.models import ServedModel, choose_model
from producer.queues import IO_QUEUE, bucket_queue
from producer.settings import ProducerSettings
from producer.shown import shown_arguments
from producer.trace import Traces

JobLike = str | GenerationJob | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that is checked and complete, ready to be sent."""

    job_id: str
    job: GenerationJob  #: with its id, its time and the model's defaults
    payload_hash: str  #: of the job as its caller gave it
    queue: str


def to_job(job: JobLike, fields: Mapping[str, Any]) -> GenerationJob:
    """Read a prompt or a job, with `fields` over it; raises InvalidJob."""
    if isinstance(job, GenerationJob):
        if not fields:
            return job
        job = job.model_dump(exclude_unset=True)
    given: object = {"prompt": job} if isinstance(job, str) else job
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise InvalidJob("job", f"must be a prompt, or a job's fields by name, not {kind}")
    return GenerationJob.from_wire({**given, **fields})


def prepare(
    job: GenerationJob, *, served: Mapping[str, ServedModel], settings: ProducerSettings
) -> Submission:
    """Complete and check a job; raises UnknownModel or InvalidJob, and changes nothing."""
    if "namespace" not in job.model_fields_set:
        job = job.model_copy(update={"namespace": settings.namespace})
    model = choose_model(served, job.model)
    job_id = job.job_id or uuid.uuid4()
    submitted_at = job.submitted_at or datetime.now(UTC)
    complete = model.complete(job).model_copy(
        update={"job_id": job_id, "submitted_at": submitted_at}
    )
    num_bytes = len(canonical_json(complete.to_wire()))
    if num_bytes > MESSAGE_BYTES_MAX:
        raise InvalidJob(
            "job", f"must be at most {MESSAGE_BYTES_MAX:,} bytes of JSON; has {num_bytes:,}"
        )
    return Submission(
        job_id=str(job_id),
        job=complete,
        payload_hash=job.payload_hash,
        queue=bucket_queue(model.slug, complete.namespace, settings.namespace_buckets),
    )


def check_room(submissions: Sequence[Submission], traces: Traces, *, queue_length_max: int) -> None:
    """Raise QueueFull unless all of them fit now, so that none is sent in vain.

    Those that are there already need no room.
    """
    if len(submissions) == 1:
        return  # `send` looks itself
    known = traces.known([submission.job_id for submission in submissions])
    needed = Counter(
        (submission.queue, submission.job.priority)
        for submission in submissions
        if submission.job_id not in known
    )
    for (queue, priority), count in needed.items():
        if traces.num_waiting(queue, priority) + count > queue_length_max:
            raise QueueFull(queue, queue_length_max)


def send(submission: Submission, traces: Traces, app: Celery, *, queue_length_max: int) -> bool:
    """Write the trace, then publish; False, and nothing published, if the job is there already.

    Between the two steps a failure leaves a trace that the rescuer sends again. Raises
    JobConflict, QueueFull, and what redis and kombu raise.
    """
    is_new = traces.create(
        submission.job_id,
        submission.job,
        payload_hash=submission.payload_hash,
        queue=submission.queue,
        length_max=queue_length_max,
    )
    if is_new:
        publish(app, submission.job_id, submission.job, queue=submission.queue)
    return is_new


def publish(app: Celery, job_id: str, job: GenerationJob, *, queue: str) -> None:
    """Send the message of a job that has a trace; raises what kombu raises."""
    app.send_task(
        GENERATE_TASK,
        args=[job.to_wire()],
        argsrepr=shown_arguments(job.to_wire()),
        kwargsrepr="{}",
        task_id=job_id,
        queue=queue,
        priority=job.priority.celery_number,
        serializer="json",
        event_dispatcher=sender(app),
    )


def send_cancel(job_id: str, app: Celery) -> None:
    """Ask the io workers to cancel a job."""
    app.send_task(
        CANCEL_TASK,
        args=[job_id],
        queue=IO_QUEUE,
        serializer="json",
        event_dispatcher=sender(app),
    )


def sender(app: Celery) -> Any:
    """Who sends, for the event that shows a waiting job; Celery names nobody but `gen` and a pid.

    It is used with the message's own connection, and opens none.
    """
    return app.events.Dispatcher(enabled=False, hostname=f"{app.main}@{socket.gethostname()}")


def one_per_seed(job: GenerationJob, seeds: Sequence[int]) -> list[GenerationJob]:
    """Copies of a job that differ in their seed; raises InvalidJob."""
    if job.job_id is not None:
        raise InvalidJob("job_id", "names one job: it cannot be given with 'seeds'")
    if not seeds:
        raise InvalidJob("seeds", "must not be empty")
    fields = job.model_dump(exclude_unset=True)
    return [GenerationJob.from_wire(fields | {"seed": seed}) for seed in seeds]
