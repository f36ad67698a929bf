"""Jobs of clients that write no trace: checked, traced, and sent on to their namespace's queue.

A Celery client in any language publishes to `generate.<model>`. An io worker admits the job from
there, so that it gets a trace, a priority and a fair turn like any other.
"""

from __future__ import annotations

import logging
import uuid

from producer.contract import ErrorCode, GenerationJob
from producer.errors import InvalidJob, JobConflict, JobFailed, UnknownModel
from producer.models import ModelTable
from producer.queues import bucket_queue
from producer.trace import Traces
from workers.app import Publisher
from workers.unclaimed import UnclaimedJobs, readable_part, utc_now

logger = logging.getLogger(__name__)


class Admission:
    """Takes in messages from the admission queues."""

    def __init__(
        self,
        *,
        models: ModelTable,
        traces: Traces,
        publisher: Publisher,
        unclaimed: UnclaimedJobs,
        num_buckets: int,
    ) -> None:
        self._models = models
        self._traces = traces
        self._publisher = publisher
        self._unclaimed = unclaimed
        self._num_buckets = num_buckets

    def admit(self, task_id: str, fields: object, *, queue: str) -> None:
        """Send the job on; raises InvalidJob or UnknownModel once its failure is committed."""
        try:
            job = read_job(task_id, fields)
            model = self._models.choose(job.model)
            complete = model.complete(job)
        except InvalidJob as error:
            self._refuse(task_id, fields, queue, ErrorCode.INVALID_JOB, str(error))
            raise
        except UnknownModel as error:
            self._refuse(task_id, fields, queue, ErrorCode.UNKNOWN_MODEL, str(error))
            raise
        self._send_on(task_id, job, complete)

    def _send_on(self, task_id: str, job: GenerationJob, complete: GenerationJob) -> None:
        queue = bucket_queue(complete.model or "", complete.namespace, self._num_buckets)
        complete = complete.model_copy(
            update={"submitted_at": job.submitted_at or utc_now(), "job_id": uuid.UUID(task_id)}
        )
        try:
            is_new = self._traces.create(
                task_id, complete, payload_hash=job.payload_hash, queue=queue
            )
        except JobConflict as error:
            logger.warning("%s; the later one is dropped", error, extra={"job_id": task_id})
            return
        if is_new:
            self._publisher.send_job(task_id, complete, queue=queue)

    def _refuse(
        self, task_id: str, fields: object, queue: str, code: ErrorCode, message: str
    ) -> None:
        job = readable_part(fields, task_id)
        self._unclaimed.fail(task_id, job, queue=queue, code=code, message=message)


def only_argument(arguments: tuple[object, ...], named: dict[str, object]) -> object:
    """Take the one positional argument; what else was sent is no job, and is told so in words."""
    if len(arguments) == 1 and not named:
        return arguments[0]
    return [*arguments, *([named] if named else [])]


def read_job(task_id: str, fields: object) -> GenerationJob:
    """Check a message; raises InvalidJob, also when the job's id is not the message's."""
    job = GenerationJob.from_wire(fields)
    if job.job_id is not None and str(job.job_id) != task_id:
        raise InvalidJob("job_id", f"must be absent or equal to the task id {task_id}")
    return job


def require_job_id(task_id: str) -> uuid.UUID:
    """Read the job's id; raises JobFailed, for there is no job under another.

    In one spelling only: trace, ledger and Celery's result are found by the id's text.
    """
    try:
        job_id = uuid.UUID(task_id)
    except (ValueError, AttributeError):  # AttributeError: not even text
        job_id = None
    if job_id is None or str(job_id) != task_id:
        reason = f"the task id must be a UUID in lower case, not {task_id!r}"
        raise JobFailed(ErrorCode.INVALID_JOB, reason)
    return job_id
