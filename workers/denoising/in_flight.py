"""The work of the engine's thread: the jobs in flight, from their first step to their image."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from workers.denoising.batcher import Batcher
from workers.denoising.errors import DenoisingError
from workers.denoising.failures import run_contained
from workers.denoising.families.family import Encoding, Family
from workers.denoising.forward import predict
from workers.denoising.trajectory import Trajectory

# Encoding and decoding run between two steps; these bound how long a step waits for them.
ENCODE_BATCH_SIZE_MAX = 8  # prompts
DECODE_BATCH_SIZE_MAX = 4  # images
NEWEST_STEP_WEIGHT = 0.1  # in the moving average of seconds_per_step

Prediction = tuple[Trajectory, Tensor]  # with the guided noise_pred [1, C, h, w] of its next step


class Prompt:
    """A prompt that waits to be encoded."""

    def __init__(self, *, text: str, negative: str) -> None:
        self.text = text
        self.negative = negative
        self.future: Future[Encoding] = Future()
        self.future.set_running_or_notify_cancel()  # Future.cancel() has no effect from here on


class InFlight:
    """Jobs on the device. Used by one thread; resolves the futures of jobs and prompts.

    A failure ends the jobs that cause it and no others; nothing here raises.
    """

    encode_batch_size_max = ENCODE_BATCH_SIZE_MAX

    def __init__(self, family: Family, *, batch_size_max: int, num_waiting_max: int) -> None:
        self._family = family
        self._batcher: Batcher[Trajectory] = Batcher(
            batch_size_max=batch_size_max, num_waiting_max=num_waiting_max
        )
        self._finished: deque[Trajectory] = deque()  # denoised, not yet decoded
        self.seconds_per_step: float | None = None  # of one job; see Engine

    def __len__(self) -> int:
        return len(self._batcher) + len(self._finished)

    def encode(self, prompts: list[Prompt]) -> None:
        """Encode the prompts in one pass."""
        run_contained(
            self._encode,
            prompts,
            on_failure=lambda prompt, error: prompt.future.set_exception(error),
        )

    def _encode(self, prompts: list[Prompt]) -> None:
        encodings = self._family.encode(
            [prompt.text for prompt in prompts], [prompt.negative for prompt in prompts]
        )
        assert len(encodings) == len(prompts)
        for prompt, encoding in zip(prompts, encodings, strict=True):
            prompt.future.set_result(encoding)

    def begin(self, arrivals: Sequence[Trajectory]) -> None:
        """Let jobs join, behind those in flight."""
        for trajectory in arrivals:
            run_contained(self._begin, [trajectory], on_failure=self._fail)

    def _begin(self, arrivals: list[Trajectory]) -> None:
        for trajectory in arrivals:
            self._batcher.add(trajectory)
            trajectory.begin(self._family)

    def end_overdue(self, now: float) -> None:
        """End the jobs that are cancelled, or whose deadline is over at the monotonic `now`."""
        for trajectory in (*self._batcher, *self._finished):
            error = trajectory.ended_by(now)
            if error is not None:
                self._fail(trajectory, error)

    def step(self) -> None:
        """Take one step of the batch whose turn it is."""
        batch = self._batcher.next_batch()
        if not batch:
            return
        predictions: list[Prediction] = []
        started_at = time.monotonic()
        run_contained(
            lambda part: predictions.extend(zip(part, predict(self._family, part), strict=True)),
            batch,
            on_failure=self._fail,
            on_out_of_memory=self._batcher.halve,
        )
        if len(predictions) == len(batch):
            self._batcher.note_fit(batch)
        for prediction in predictions:
            run_contained(
                _advance, [prediction], on_failure=lambda one, error: self._fail(one[0], error)
            )
        self._note_step([job for job in batch if job in self._batcher], started_at)

    def _note_step(self, stepped: list[Trajectory], started_at: float) -> None:
        """Account for a step's time, report progress, set apart the jobs that are done."""
        if not stepped:
            return
        if self._family.device.type == "cuda":  # kernels are queued: wait, or time means nothing
            torch.cuda.synchronize(self._family.device)
        ended_at = time.monotonic()
        self._average((ended_at - started_at) / len(stepped))
        for trajectory in stepped:
            trajectory.note_step(started_at=started_at, ended_at=ended_at)
            if trajectory.is_done:
                self._batcher.remove(trajectory)
                self._finished.append(trajectory)

    def _average(self, newest_s: float) -> None:
        mean_s, weight = self.seconds_per_step, NEWEST_STEP_WEIGHT
        self.seconds_per_step = (
            newest_s if mean_s is None else weight * newest_s + (1 - weight) * mean_s
        )

    def retire(self) -> None:
        """Decode some finished jobs, oldest first; more when they pile up."""
        while self._finished:
            group = self._finished[0].group
            alike = [job for job in self._finished if job.group == group]
            run_contained(self._decode, alike[:DECODE_BATCH_SIZE_MAX], on_failure=self._fail)
            if len(self._finished) < self._batcher.batch_size_max:
                return

    def _decode(self, batch: list[Trajectory]) -> None:
        started_at = time.monotonic()
        images = self._family.decode(torch.cat([trajectory.latents for trajectory in batch]))
        decode_s = time.monotonic() - started_at
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
        trajectory.future.set_exception(error)


def _advance(predictions: list[Prediction]) -> None:
    for trajectory, noise_pred in predictions:
        trajectory.advance(noise_pred)
