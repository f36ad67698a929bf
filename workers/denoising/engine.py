"""The only thread that touches the device: many jobs in flight, one forward pass a step.

    callers' threads                     the engine's thread
    encode, denoise --> inbox --> admit -> step -> retire -> admit -> ...
           <---------- Future ------'                 '----> Future

Any number of threads may call; each call returns at once with a Future.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

import torch

from workers.denoising.errors import EngineClosed, QueueFull
from workers.denoising.families.family import Encoding, Family
from workers.denoising.in_flight import InFlight, Prompt
from workers.denoising.request import Denoised, DenoiseRequest
from workers.denoising.trajectory import Trajectory

Item = TypeVar("Item")


class Engine:
    """Denoises many jobs at once on one device. Close it, or use it as a context manager."""

    def __init__(
        self,
        family: Family,
        *,
        batch_size_max: int = 8,
        num_waiting_max: int = 1024,
        num_threads: int = 1,
    ) -> None:
        """Start the thread. `num_threads` is torch's on the CPU: one is best for small batches."""
        self._family = family
        self._num_waiting_max = num_waiting_max
        # Of the engine's thread:
        self._in_flight = InFlight(
            family, batch_size_max=batch_size_max, num_waiting_max=num_waiting_max
        )
        # Of all threads, under the lock of _wake:
        self._wake = threading.Condition()
        self._arrivals: deque[Trajectory] = deque()
        self._prompts: deque[Prompt] = deque()
        self._pending: set[Trajectory] = set()  # every job whose future is not done
        self._is_closed = False
        self._thread = threading.Thread(
            target=self._run, args=(num_threads,), name="denoising-engine", daemon=True
        )
        self._thread.start()

    def encode(self, prompt: str, negative_prompt: str = "") -> Future[Encoding]:
        """Conditioning and retrieval vector of a prompt. Raises EngineClosed, QueueFull.

        The future raises OutOfMemory, DenoisingFailed or EngineClosed.
        """
        waiting = Prompt(text=prompt, negative=negative_prompt)
        with self._wake:
            self._check_open()
            if len(self._prompts) >= self._num_waiting_max:
                raise QueueFull(f"{len(self._prompts)} prompts wait already")
            self._prompts.append(waiting)
            self._wake.notify()
        return waiting.future

    def denoise(self, request: DenoiseRequest) -> Future[Denoised]:
        """Put a job in flight. Raises EngineClosed, InvalidRequest.

        The future raises Cancelled, DeadlineExceeded, QueueFull, OutOfMemory, DenoisingFailed or
        EngineClosed. Its callbacks run on the engine's thread: they must be quick.
        """
        trajectory = Trajectory(request, self._family)
        with self._wake:
            self._check_open()
            self._arrivals.append(trajectory)
            self._pending.add(trajectory)
            self._wake.notify()
        trajectory.future.add_done_callback(lambda _: self._forget(trajectory))
        return trajectory.future

    def cancel(self, job_id: str) -> bool:
        """End the job before its next step; False if it is not in flight."""
        with self._wake:
            jobs = [job for job in self._pending if job.request.job_id == job_id]
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

    @property
    def seconds_per_step(self) -> float | None:
        """Device seconds that one job's step costs: a step's time / jobs in it, moving average."""
        return self._in_flight.seconds_per_step

    @property
    def num_in_flight(self) -> int:
        """Jobs whose future is not done."""
        return len(self._pending)

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

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine is closed")

    def _forget(self, trajectory: Trajectory) -> None:
        with self._wake:
            self._pending.discard(trajectory)

    def _run(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        try:
            with torch.inference_mode():
                while self._admit():
                    self._in_flight.step()
                    self._in_flight.retire()
        finally:
            self._fail_pending()

    def _admit(self) -> bool:
        """Wait for work; encode prompts, start new jobs, end cancelled ones. False once closed."""
        with self._wake:
            self._wake.wait_for(self._has_work)
            if self._is_closed:
                return False
            arrivals = _take(self._arrivals, len(self._arrivals))
            prompts = _take(self._prompts, self._in_flight.encode_batch_size_max)
        self._in_flight.encode(prompts)
        self._in_flight.begin(arrivals)
        self._in_flight.end_overdue(time.monotonic())
        return True

    def _has_work(self) -> bool:
        return bool(self._is_closed or self._arrivals or self._prompts or self._in_flight)

    def _fail_pending(self) -> None:
        """No future stays pending, whatever ended the thread."""
        with self._wake:
            self._is_closed = True
            futures: list[Future[Denoised] | Future[Encoding]] = [
                *(job.future for job in self._pending),
                *(prompt.future for prompt in self._prompts),
            ]
            self._prompts.clear()
        for future in futures:
            if not future.done():
                future.set_exception(EngineClosed())


def _take(waiting: deque[Item], count: int) -> list[Item]:
    return [waiting.popleft() for _ in range(min(count, len(waiting)))]
