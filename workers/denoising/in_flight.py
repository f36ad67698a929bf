"""The work of the engine's thread: the jobs in flight, from their first step to their image."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.denoising.batcher import Batcher
from workers.denoising.errors import DenoisingError
from workers.denoising.failures import Health
from workers.denoising.forward import Forward
from workers.denoising.pacing import TimedStep, pace_of
from workers.denoising.portion import Portion
from workers.denoising.threads import ThreadTable
from workers.denoising.trajectory import Trajectory
from workers.stopwatch import Stopwatch

DECODE_BATCH_SIZE_MAX = 32  # images
NEWEST_STEP_WEIGHT = 0.1  # in the moving averages of a step's time

Prediction = tuple[Trajectory, Tensor]  # with the guided noise_pred [1, C, h, w] of its next step


@dataclass(slots=True)
class StepCount:
    """How full the batches were."""

    batches: int = 0
    jobs: int = 0  # summed over the batches


class InFlight:
    """Jobs on the device. Used by one thread; resolves the futures of jobs.

    A failure ends the jobs that cause it and no others. Nothing here raises but DeviceBroken, and
    what a broken device raises where a step's end is waited for.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        batch_size_max: int,
        num_waiting_max: int,
        threads: ThreadTable,
    ) -> None:
        self._batcher: Batcher[Trajectory] = Batcher(
            batch_size_max=batch_size_max, num_waiting_max=num_waiting_max
        )
        self._followers: deque[Trajectory] = deque()  # that wait for others' predictions
        self._finished: deque[Trajectory] = deque()  # denoised, not yet decoded
        self._pace = pace_of(device)
        self.health = Health(device)
        self._threads = threads
        self._portion = Portion(size_max=DECODE_BATCH_SIZE_MAX)
        self._step_s: float | None = None  # of a whole batch, moving average
        self.watch = Stopwatch()  # where the time goes; on CUDA only the host's part of it
        self._forward = Forward(self.watch)
        self.count = StepCount()
        self.seconds_per_step: dict[str, float] = {}  # of one job, by revision; see Engine

    def __len__(self) -> int:
        return len(self._followers) + len(self._batcher) + len(self._finished)

    @property
    def is_waiting(self) -> bool:
        """Whether all jobs here wait for one that has not come yet."""
        return bool(self._followers) and len(self) == len(self._followers)

    @property
    def waiting_step_s(self) -> float | None:
        """About how long a step takes that waits for side work; None where none waits."""
        return self._step_s if len(self._batcher) else None

    def begin(self, arrivals: Iterable[Trajectory]) -> None:
        """Let jobs join, behind those in flight; followers when their leader is far enough."""
        now, waiting = time.monotonic(), [*self._followers, *arrivals]
        self._followers.clear()
        with self.watch.lap("begin"):
            for trajectory in waiting:
                if trajectory.is_waiting(now):
                    self._followers.append(trajectory)
                else:
                    self.health.run("begin", self._begin, [trajectory], on_failure=self._fail)

    def _begin(self, arrivals: list[Trajectory]) -> None:
        for trajectory in arrivals:
            self._batcher.add(trajectory)
            trajectory.begin()

    def end_overdue(self, now: float) -> None:
        """End the jobs that are cancelled, or whose deadline is over at the monotonic `now`."""
        for trajectory in (*self._followers, *self._batcher, *self._finished):
            error = trajectory.ended_by(now)
            if error is not None:
                self._fail(trajectory, error)

    def step(self) -> None:
        """Take one step of the batch whose turn it is. Raises DeviceBroken."""
        batch = self._batcher.next_batch()
        if not batch:
            return
        self._threads.apply(len(batch))
        self._pace.start()
        predictions = self._predict(batch)
        with self.watch.lap("scheduler"):
            for prediction in predictions:
                # One by one, as a step that was taken cannot be taken again.
                self.health.run(
                    "scheduler",
                    _advance,
                    [prediction],
                    on_failure=lambda one, error: self._fail(one[0], error),
                )
        stepped = [job for job in batch if job in self._batcher]
        self._set_apart_done(stepped)
        self._note(self._pace.stop(stepped))
        self.count.batches += 1
        self.count.jobs += len(stepped)

    def _predict(self, batch: list[Trajectory]) -> list[Prediction]:
        """Predictions of those that do not fail. Raises DeviceBroken, before any of them ends."""
        predictions: list[Prediction] = []
        self.health.run(
            "denoiser",
            lambda part: predictions.extend(zip(part, self._forward.predict(part), strict=True)),
            batch,
            on_failure=self._fail,
            on_out_of_memory=self._batcher.halve,
        )
        if len(predictions) == len(batch):
            self._batcher.note_fit(batch)
        return predictions

    def _set_apart_done(self, stepped: Sequence[Trajectory]) -> None:
        for trajectory in stepped:
            if trajectory.is_done:
                self._batcher.remove(trajectory)
                self._finished.append(trajectory)

    def _note(self, steps: Sequence[TimedStep]) -> None:
        """Account for the time of steps that are over, and report progress."""
        for step in steps:
            if not step.jobs:
                continue
            self._step_s = _average(self._step_s, step.device_s)
            revision = step.jobs[0][0].family.revision
            self.seconds_per_step[revision] = _average(
                self.seconds_per_step.get(revision), step.device_s / len(step.jobs)
            )
            for trajectory, steps_done in step.jobs:
                trajectory.note_step(steps_done, started_at=step.started_at, ended_at=step.ended_at)

    def settle(self) -> None:
        """Wait for the steps that were launched: side work would, and take their time for its."""
        self._note(self._pace.settle())

    def retire(self) -> None:
        """Decode finished jobs, oldest first: as many as a step's time allows, more in a pile."""
        if self._finished:
            self.settle()
        while self._finished:
            group = self._finished[0].group
            alike = [job for job in self._finished if job.group == group]
            size = self._portion.size(self.waiting_step_s)
            with self.watch.lap("decode"):
                self.health.run("decode", self._decode, alike[:size], on_failure=self._fail)
            if len(self._batcher) and len(self._finished) < self._batcher.batch_size_max:
                break
        if not self:  # what still stands in the device's queue belongs to jobs that have ended
            self.settle()
            self._forward.forget()

    def _decode(self, batch: list[Trajectory]) -> None:
        started_at = time.monotonic()
        latents = torch.cat([trajectory.latents for trajectory in batch])
        images = batch[0].family.decode(latents)
        decode_s = time.monotonic() - started_at
        self._portion.note(len(batch), decode_s)
        # Copies, or each image would keep the whole batch alive.
        results = [
            job.result(image.copy(), decode_s) for job, image in zip(batch, images, strict=True)
        ]
        for trajectory, result in zip(batch, results, strict=True):
            self._finished.remove(trajectory)
            trajectory.future.set_result(result)

    def _fail(self, trajectory: Trajectory, error: DenoisingError) -> None:
        if trajectory in self._batcher:
            self._batcher.remove(trajectory)
        elif trajectory in self._finished:
            self._finished.remove(trajectory)
        elif trajectory in self._followers:
            self._followers.remove(trajectory)
        trajectory.future.set_exception(error)


def _advance(predictions: list[Prediction]) -> None:
    for trajectory, noise_pred in predictions:
        trajectory.advance(noise_pred)


def _average(mean: float | None, newest: float) -> float:
    return newest if mean is None else NEWEST_STEP_WEIGHT * newest + (1 - NEWEST_STEP_WEIGHT) * mean
