"""The client: submit jobs, follow them, take their images.

    with Client() as client:
        handle = client.submit("a lighthouse at dusk", num_inference_steps=20)
        result = handle.wait(timeout_s=60)
        png = client.image(result)

Everything is synchronous and thread-safe; in an asyncio program, call it through
`asyncio.to_thread`. Each call raises BrokerUnavailable where the broker does not answer in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Self, overload

from producer.broker import naming_broker, open_app, open_connection
from producer.errors import ImageUnavailable, UnknownJob, UrlExpired
from producer.following import RESTART_PATIENCE_S, changes, ends, outlasting
from producer.handle import JobHandle, JobId, checked_id
from producer.image_urls import ask_for_url
from producer.images import download_image
from producer.models import ModelTable, ServedModel
from producer.position import Position, find_position
from producer.result import JobResult
from producer.settings import ProducerSettings, load_settings
from producer.submission import (
    JobLike,
    Submission,
    check_room,
    one_per_seed,
    prepare,
    send,
    send_cancel,
    to_job,
)
from producer.trace import Trace, Traces

# Together under 10 s for a broker that is away, whether it refuses or says nothing.
_CONNECT_TIMEOUT_S: Final = 3.0
_COMMAND_TIMEOUT_S: Final = 4.0
_PUBLISH_RETRIES: Final = {
    "max_retries": 1,
    "interval_start": 0.1,
    "interval_step": 0.2,
    "interval_max": 0.5,
}


class Client:
    """One connection to a fleet's broker; `settings` default to the `NIRVANA_*` variables.

    Nothing is connected before the first call. Close it, or use it as a context manager.
    """

    def __init__(self, settings: ProducerSettings | None = None) -> None:
        self._settings = settings or load_settings(ProducerSettings)
        self._broker_url = self._settings.broker_url
        self._connection = open_connection(
            self._broker_url,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            command_timeout_s=_COMMAND_TIMEOUT_S,
            retries=1,
        )
        self._traces = Traces(self._connection, retention_s=self._settings.trace_retention_s)
        self._app = open_app(
            self._broker_url,
            name=self._settings.client_name,
            keeps_results=False,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            command_timeout_s=_COMMAND_TIMEOUT_S,
            task_publish_retry_policy=_PUBLISH_RETRIES,
            task_send_sent_event=True,  # so that Flower shows waiting jobs, and who sent them
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; the client can be used no more."""
        self._connection.close()
        self._app.close()

    def models(self) -> dict[str, ServedModel]:
        """What the fleet serves, by slug."""
        with naming_broker(self._broker_url):
            return ModelTable(self._connection).served()

    @overload
    def submit(self, job: JobLike, *, seeds: None = None, **fields: Any) -> JobHandle: ...

    @overload
    def submit(self, job: JobLike, *, seeds: Sequence[int], **fields: Any) -> list[JobHandle]: ...

    def submit(
        self, job: JobLike, *, seeds: Sequence[int] | None = None, **fields: Any
    ) -> JobHandle | list[JobHandle]:
        """Send a prompt, or a job; `fields` are those of GenerationJob, and win.

        With `seeds`, one job per seed. The same `job_id` with the same fields is the same job:
        it is not sent again. Raises InvalidJob, UnknownModel, QueueFull, JobConflict.
        """
        asked = to_job(job, fields)
        if seeds is None:
            return self.submit_many([asked])[0]
        return self.submit_many(one_per_seed(asked, seeds))

    def submit_many(
        self,
        jobs: Iterable[JobLike],
        *,
        on_submitted: Callable[[JobHandle], None] = lambda handle: None,
    ) -> list[JobHandle]:
        """Send jobs in order; all are checked before the first is sent.

        `on_submitted` is called after each, which tells what was sent where the broker goes away
        in the middle. Raises as `submit` does.
        """
        asked = [to_job(job, {}) for job in jobs]
        served = self.models()
        submissions = [prepare(job, served=served, settings=self._settings) for job in asked]
        limit = self._settings.queue_length_max
        with naming_broker(self._broker_url):
            check_room(submissions, self._traces, queue_length_max=limit)
        return [self._send(submission, limit, on_submitted) for submission in submissions]

    def _send(
        self, submission: Submission, limit: int, on_submitted: Callable[[JobHandle], None]
    ) -> JobHandle:
        with naming_broker(self._broker_url):
            send(submission, self._traces, self._app, queue_length_max=limit)
        handle = JobHandle(submission.job_id, self)
        on_submitted(handle)
        return handle

    def status(self, job_id: JobId, *, patience_s: float = 0.0) -> Trace:
        """Tell all that is known of a job now; raises UnknownJob.

        A broker that is away is waited for, at most `patience_s`: it may be restarting.
        """
        return self.statuses([job_id], patience_s=patience_s)[0]

    def statuses(self, job_ids: Sequence[JobId], *, patience_s: float = 0.0) -> list[Trace]:
        """Tell all that is known of many jobs, in few round trips; raises as `status` does."""
        asked = [checked_id(job_id) for job_id in job_ids]
        found = outlasting(patience_s, lambda: self._read(asked))
        for job_id, trace in zip(asked, found, strict=True):
            if trace is None:
                raise UnknownJob(job_id)
        return [trace for trace in found if trace is not None]

    def known(self, job_ids: Sequence[JobId]) -> set[str]:
        """Ids of those of the jobs that were submitted, and are not past their retention."""
        with naming_broker(self._broker_url):
            return self._traces.known([checked_id(job_id) for job_id in job_ids])

    def _read(self, job_ids: Sequence[str]) -> list[Trace | None]:
        with naming_broker(self._broker_url):
            return self._traces.read_many(job_ids)

    def result(self, job_id: JobId) -> JobResult | None:
        """Tell what came of the job, however it ended; None before. Raises UnknownJob."""
        return self.status(job_id).result

    def position(self, job_id: JobId) -> Position:
        """Tell how many jobs go first, and for how long; zero once it runs. Raises UnknownJob."""
        trace = self.status(job_id)
        with naming_broker(self._broker_url):
            return find_position(
                trace,
                self._traces,
                served=ModelTable(self._connection).served(),
                num_buckets=self._settings.namespace_buckets,
            )

    def progress(self, job_id: JobId, timeout_s: float | None = None) -> Iterator[Trace]:
        """Yield the job now and at each change; the last one is terminal.

        Outlasts a restart of the broker. Raises UnknownJob, and WaitTimeout after `timeout_s`.
        """
        return changes(
            lambda: self.status(job_id, patience_s=RESTART_PATIENCE_S), timeout_s=timeout_s
        )

    def as_completed(
        self,
        job_ids: Iterable[JobId],
        timeout_s: float | None = None,
        *,
        on_look: Callable[[list[Trace]], None] = lambda traces: None,
    ) -> Iterator[JobResult]:
        """Yield the result of each job as it ends, however it ended, the first to end first.

        `on_look` is given those that had not ended, at each look. Raises as `progress` does.
        """
        ended = ends(
            lambda waiting: self.statuses(waiting, patience_s=RESTART_PATIENCE_S),
            [checked_id(job_id) for job_id in job_ids],
            timeout_s=timeout_s,
            on_look=on_look,
        )
        for trace in ended:
            assert trace.result is not None, "a terminal trace has its result"
            yield trace.result

    def wait(self, job_id: JobId, timeout_s: float | None = None) -> JobResult:
        """Block until the job has its image.

        Raises JobFailed (JobCancelled) where it ends without one, WaitTimeout, UnknownJob.
        """
        *_, last = self.progress(job_id, timeout_s)
        assert last.result is not None, "a terminal trace has its result"
        return last.result.raise_for_status()

    def cancel(self, job_id: JobId) -> bool:
        """Ask for the job's end, within a step if it runs; False when it has ended already.

        Raises UnknownJob.
        """
        if self.status(job_id).status.is_terminal:
            return False
        with naming_broker(self._broker_url):
            send_cancel(checked_id(job_id), self._app)
        return True

    def image(self, job: JobResult | JobId, *, timeout_s: float = 30.0) -> bytes:
        """Download the PNG of a job, checked; raises ImageUnavailable, UnknownJob.

        Where the url of the result has expired, another is asked for.
        """
        result = self._with_image(job)
        assert result.image is not None
        try:
            if result.image.url is not None:
                return download_image(result.image, timeout_s=timeout_s)
        except UrlExpired:
            pass
        fresh = result.image.model_copy(update={"url": self.image_url(result)})
        return download_image(fresh, timeout_s=timeout_s)

    def image_url(self, job: JobResult | JobId, *, timeout_s: float = 10.0) -> str:
        """Have a url of the job's image signed now; raises ImageUnavailable, UnknownJob."""
        job_id = self._with_image(job).job_id
        with naming_broker(self._broker_url):
            return ask_for_url(
                job_id, connection=self._connection, app=self._app, timeout_s=timeout_s
            )

    def _with_image(self, job: JobResult | JobId) -> JobResult:
        if isinstance(job, JobResult):
            result, status = job, job.status
        else:
            trace = self.status(job)
            if trace.result is None:
                raise ImageUnavailable(f"job {trace.job_id} has no image yet: it is {trace.status}")
            result, status = trace.result, trace.status
        if result.image is None:
            raise ImageUnavailable(f"job {result.job_id} has no image: it is {status}")
        return result
