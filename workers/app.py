"""The Celery app of the workers: late acknowledgement, events, and the beat schedule."""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery
from celery.exceptions import BackendError, Ignore
from celery.platforms import EX_FAILURE
from celery.worker import state
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from producer.broker import open_app
from producer.contract import GenerationJob, Status
from producer.errors import JobFailed
from producer.queues import IO_QUEUE, MAINTENANCE_QUEUE
from producer.result import JobResult
from producer.settings import ProducerSettings
from producer.submission import publish
from producer.trace import Progress
from workers.errors import BrokerAway
from workers.settings import WorkerSettings
from workers.shown import ShownResult, shown_progress

logger = logging.getLogger(__name__)

DELIVER_TASK: Final = "nirvana.deliver"
DELIVER_DUE_TASK: Final = "nirvana.deliver_due"
EVICT_TASK: Final = "nirvana.evict"
RESCUE_TASK: Final = "nirvana.rescue"
ANNOUNCE_TASK: Final = "nirvana.announce"
SWEEP_TASK: Final = "nirvana.sweep"
INDEX_TASK: Final = "nirvana.index"
EXPIRE_TASK: Final = "nirvana.expire"
REFIT_TASK: Final = "nirvana.refit"
GPU_WORKER_PREFIX: Final = "gpu-"  # of the names of GPU workers, by which remote control finds them
IO_WORKER_NAME: Final = "io"
CANCEL_COMMAND: Final = "nirvana_cancel"  # of remote control: see workers.remote_control

_EXPIRY_MIN_S: Final = 30.0


def build_app(producer: ProducerSettings, worker: WorkerSettings) -> Celery:
    """Build the app that GPU workers, io workers, beat and Flower share."""
    return open_app(
        producer.broker_url,
        # A message is acknowledged when its job has ended; the ledger makes redelivery harmless.
        task_acks_late=True,
        worker_consumer="workers.consumer:SteadyConsumer",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_track_started=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        result_extended=True,
        result_expires=producer.trace_retention_s,
        task_default_queue=IO_QUEUE,
        worker_hijack_root_logger=False,
        worker_log_color=False,
        beat_schedule=beat_schedule(worker),
    )


def beat_schedule(settings: WorkerSettings) -> dict[str, dict[str, Any]]:
    """One entry per periodic task; a late one is dropped, since the next does its work too."""
    periods_s = {
        RESCUE_TASK: settings.rescue_every_s,
        DELIVER_DUE_TASK: settings.deliver_every_s,
        ANNOUNCE_TASK: settings.announce_every_s,
        EVICT_TASK: settings.evict_every_s,
        SWEEP_TASK: settings.sweep_every_s,
        INDEX_TASK: settings.index_every_s,
        EXPIRE_TASK: settings.expire_every_s,
        REFIT_TASK: settings.refit_every_s,
    }
    return {
        task: {
            "task": task,
            "schedule": period_s,
            "options": {
                "queue": MAINTENANCE_QUEUE,
                # The two clocks that are compared may differ by some seconds.
                "expires": max(period_s, _EXPIRY_MIN_S),
                "ignore_result": True,
            },
        }
        for task, period_s in periods_s.items()
    }


class Publisher:
    """Sends messages and events of the fleet's own, as a worker named `worker_name`."""

    def __init__(self, app: Celery, *, worker_name: str = IO_WORKER_NAME) -> None:
        self._app = app
        self._worker = node_name(worker_name)

    def send_job(self, job_id: str, job: GenerationJob, *, queue: str) -> None:
        """Publish a job that has a trace, again or for the first time."""
        publish(self._app, job_id, job, queue=queue)

    def nudge_delivery(self, delivery_id: uuid.UUID | None) -> None:
        """Have a webhook sent now; if the broker is away, beat's sweep sends it."""
        if delivery_id is None:
            return
        try:
            self._app.send_task(
                DELIVER_TASK, args=[str(delivery_id)], queue=IO_QUEUE, ignore_result=True
            )
        except OperationalError as error:
            logger.warning("delivery %s waits for the sweep: %s", delivery_id, error)

    def tell_cancelled(self, job_id: str) -> None:
        """Have whichever worker runs the job stop it now; else its next heartbeat does."""
        try:
            self._app.control.broadcast(
                CANCEL_COMMAND,
                arguments={"job_id": job_id},
                pattern=f"{GPU_WORKER_PREFIX}*",  # the others do not know it, and log an error
                matcher="glob",
            )
        except OperationalError as error:
            logger.warning(
                "cancellation waits for a heartbeat: %s", error, extra={"job_id": job_id}
            )

    def show_end(self, result: JobResult) -> None:
        """Show the end of a job that no task ran to AsyncResult and Flower; raises BrokerAway."""
        backend, job_id = self._app.backend, result.job_id
        with _telling():
            match result.status:
                case Status.SUCCEEDED:
                    backend.mark_as_done(job_id, result.to_wire())
                    self._send_event("task-succeeded", job_id, result=repr(ShownResult(result)))
                case Status.CANCELLED:
                    backend.mark_as_revoked(job_id, reason="cancelled")
                    self._send_event("task-revoked", job_id, terminated=False, expired=False)
                case _:
                    failure = as_failure(result)
                    backend.mark_as_failure(job_id, failure)
                    self._send_event("task-failed", job_id, exception=repr(failure))

    def show_progress(self, job_id: str, progress: Progress) -> None:
        """Show a running job as PROGRESS to AsyncResult and Flower; raises BrokerAway."""
        meta = {"steps_done": progress.steps_done, "steps_asked": progress.steps_asked}
        with _telling():
            self._app.backend.store_result(job_id, meta, "PROGRESS")
            self._send_event("task-progress", job_id, result=shown_progress(progress))

    def _send_event(self, kind: str, job_id: str, **fields: object) -> None:
        with self._app.events.default_dispatcher(hostname=self._worker) as events:
            events.send(kind, uuid=job_id, **fields)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except (OperationalError, BackendError) as error:
        raise BrokerAway(str(error)) from error


def as_failure(result: JobResult) -> JobFailed:
    """The exception that Celery shows for a failed job."""
    assert result.error is not None
    return JobFailed(result.error.code, result.error.message)


def show_failed(task: Any, job_id: str, failure: JobFailed) -> Ignore:
    """Show a failed job as FAILURE to Flower and AsyncResult; raise what this returns.

    Raised itself, Celery would store and show a traceback of ours beside it: to whoever sent the
    job, a page of our code is no reason.
    """
    task.backend.mark_as_failure(job_id, failure, request=task.request)
    task.send_event("task-failed", exception=repr(failure), traceback="")
    return Ignore()


def show_revoked(task: Any, job_id: str) -> Ignore:
    """Show a cancelled job as REVOKED to Flower and AsyncResult; raise what this returns."""
    task.backend.mark_as_revoked(job_id, reason="cancelled", request=task.request)
    task.send_event("task-revoked", terminated=False, signum=None, expired=False)
    return Ignore()


def stop_worker() -> None:
    """Have this process's worker end soon, as failed, so that its supervisor starts another."""
    state.should_stop = EX_FAILURE


def declared(queue: str) -> Queue:
    """Give a queue an exchange of its own, so that nothing published to one reaches another."""
    exchange = Exchange(queue)  # type: ignore[no-untyped-call]
    return Queue(queue, exchange, routing_key=queue)  # type: ignore[no-untyped-call]


def gpu_worker_name(settings: WorkerSettings) -> str:
    """The name of a GPU worker, by which remote control finds it."""
    return f"{GPU_WORKER_PREFIX}{settings.model}"


def node_name(name: str) -> str:
    """A worker's name among all machines', as Flower shows it."""
    return f"{name}@{socket.gethostname()}"


def run_worker(app: Celery, *, name: str, queues: Sequence[str], concurrency: int) -> int:
    """Serve `queues` with a pool of threads until told to stop; returns the exit status."""
    app.conf.task_queues = [declared(queue) for queue in queues]
    worker = app.Worker(
        hostname=node_name(name),
        pool_cls="threads",
        concurrency=concurrency,
        queues=",".join(queues),
        task_events=True,
        loglevel="INFO",
        # Workers need to know nothing of each other: the ledger knows who has which job.
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
