"""The only thread that touches the device: many jobs in flight, one forward pass a step.

    callers' threads                     the engine's thread
    encode, denoise --> inbox --> admit -> step -> retire -> admit -> ...
           <---------- Future ------'                 '----> Future

Any number of threads may call; each call returns at once with a Future.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

import torch

from workers.denoising.errors import DeviceBroken, EngineClosed, QueueFull
from workers.denoising.families.family import Encoding, Family
from workers.denoising.in_flight import InFlight
from workers.denoising.prompts import Prompt, PromptEncoder
from workers.denoising.request import Denoised, DenoiseRequest
from workers.denoising.threads import ThreadTable
from workers.denoising.trajectory import Trajectory

logger = logging.getLogger(__name__)

ONE_THREAD: Final = ThreadTable({1: 1})
_LOOK_EVERY_S: Final = 0.02  # at leaders that are not here: their own threads bring them at once


class Engine:
    """Denoises many jobs at once on one device. Close it, or use it as a context manager."""

    def __init__(
        self,
        family: Family | None = None,
        *,
        device: torch.device | None = None,
        batch_size_max: int = 8,
        num_waiting_max: int = 1024,
        threads: ThreadTable = ONE_THREAD,
    ) -> None:
        """Start the thread. `family` serves the calls that name none; without it, name a device."""
        device = device if family is None else family.device
        assert device is not None
        self._family = family
        self._num_waiting_max = num_waiting_max
        self._threads = threads
        # Of the engine's thread; the second are jobs that wait whenever the first has any:
        self._in_flight, self._background = (
            InFlight(
                device,
                batch_size_max=batch_size_max,
                num_waiting_max=num_waiting_max,
                threads=threads,
            )
            for _ in range(2)
        )
        self._encoder = PromptEncoder(self._in_flight.watch, self._in_flight.health)
        # Of all threads, under the lock of _wake:
        self._wake = threading.Condition()
        self._arrivals: deque[Trajectory] = deque()
        self._prompts: deque[Prompt] = deque()
        # All that are not done, by their futures. A future that knew its job would make a cycle of
        # the two, and what the job holds on the device would stay until Python collects those.
        self._pending: dict[Future[Any], Trajectory | Prompt] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="denoising-engine", daemon=True)
        self._thread.start()

    def encode(
        self, prompt: str, negative_prompt: str = "", *, family: Family | None = None
    ) -> Future[Encoding]:
        """Conditioning and retrieval vector of a prompt. Raises EngineClosed, QueueFull.

        The future raises OutOfMemory, DenoisingFailed or EngineClosed.
        """
        waiting = Prompt(text=prompt, negative=negative_prompt, family=self._model(family))
        with self._wake:
            self._check_open()
            if len(self._prompts) >= self._num_waiting_max:
                raise QueueFull(f"{len(self._prompts)} prompts wait already")
            self._prompts.append(waiting)
            self._pending[waiting.future] = waiting
            self._wake.notify()
        waiting.future.add_done_callback(self._forget)
        return waiting.future

    def denoise(self, request: DenoiseRequest, *, family: Family | None = None) -> Future[Denoised]:
        """Put a job in flight. Raises EngineClosed, InvalidRequest.

        The future raises Cancelled, DeadlineExceeded, QueueFull, OutOfMemory, DenoisingFailed or
        EngineClosed. Its callbacks run on the engine's thread: they must be quick.
        """
        trajectory = Trajectory(request, self._model(family))
        with self._wake:
            self._check_open()
            self._arrivals.append(trajectory)
            self._pending[trajectory.future] = trajectory
            self._wake.notify()
        trajectory.future.add_done_callback(self._forget)
        return trajectory.future

    def cancel(self, job_id: str) -> bool:
        """End the job before its next step; False if it is not in flight."""
        with self._wake:
            jobs = [job for job in self._jobs() if job.request.job_id == job_id]
        jobs = [job for job in jobs if not job.future.done()]
        for job in jobs:
            job.is_cancelled = True
        return bool(jobs)

    def close(self) -> None:
        """Stop after the step in progress; what is pending gets EngineClosed. Joins the thread."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def seconds_per_step(self, family: Family | None = None) -> float | None:
        """Device seconds that one job's step costs: a step's time / jobs in it, moving average."""
        return self._in_flight.seconds_per_step.get(self._model(family).revision)

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds of the engine's thread by what it did; "total" is all but waiting for work."""
        return dict(self._in_flight.watch.seconds)

    @property
    def jobs_per_batch(self) -> float:
        """Mean over all batches so far; 0 before the first."""
        count = self._in_flight.count
        return count.jobs / count.batches if count.batches else 0.0

    @property
    def num_in_flight(self) -> int:
        """Jobs whose future is not done, but for those in the background."""
        with self._wake:
            return sum(not job.request.is_background for job in self._jobs())

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more jobs: closed, or its thread has ended on its own."""
        return self._is_closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _model(self, family: Family | None) -> Family:
        family = family or self._family
        assert family is not None, "an engine without a model of its own is told one"
        return family

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine is closed")

    def _jobs(self) -> list[Trajectory]:
        return [pending for pending in self._pending.values() if isinstance(pending, Trajectory)]

    def _forget(self, ended: Future[Any]) -> None:
        with self._wake:
            self._pending.pop(ended, None)

    def _run(self) -> None:
        self._threads.apply(1)
        watch = self._in_flight.watch
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    with watch.lap("total"):
                        self._admit()
                        turn = self._in_flight or self._background
                        turn.step()
                        self._in_flight.retire()  # also what has ended without a step
                        if turn is self._background:
                            turn.retire()
        except DeviceBroken as error:
            logger.critical("the engine ends: %s", error)
        except Exception as error:  # a broken device shows wherever it is waited for, not in a pass
            logger.critical("the engine ends: %s", error, exc_info=True)
        finally:
            self._fail_pending()

    def _wait_for_work(self) -> bool:
        """Wait for something to do; False once closed."""
        with self._wake:
            self._wake.wait_for(self._has_work)
            if self._in_flight.is_waiting and not (self._arrivals or self._prompts):
                self._wake.wait(_LOOK_EVERY_S)
            return not self._is_closed

    def _admit(self) -> None:
        """Encode prompts, start new jobs, end cancelled ones."""
        with self._wake:
            arrivals = list(self._arrivals)
            self._arrivals.clear()
            prompts = self._encoder.take(self._prompts, self._in_flight.waiting_step_s)
        if prompts:
            self._in_flight.settle()
            self._encoder.encode(prompts)
        for jobs, is_background in ((self._in_flight, False), (self._background, True)):
            jobs.begin(job for job in arrivals if job.request.is_background is is_background)
            jobs.end_overdue(time.monotonic())

    def _has_work(self) -> bool:
        has_arrivals = self._is_closed or self._arrivals or self._prompts
        return bool(has_arrivals or self._in_flight or self._background)

    def _fail_pending(self) -> None:
        """No future stays pending, whatever ended the thread."""
        with self._wake:
            self._is_closed = True
            pending = list(self._pending)
            self._prompts.clear()
            self._arrivals.clear()
        for future in pending:
            if not future.done():
                future.set_exception(EngineClosed())
