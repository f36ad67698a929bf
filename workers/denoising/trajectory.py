"""One job in flight through the denoising steps."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from workers.denoising.errors import Cancelled, DeadlineExceeded, DenoisingError, InvalidRequest
from workers.denoising.families.family import Conditioning, Family
from workers.denoising.host_copies import HostCopy, copy_to_host
from workers.denoising.request import Denoised, DenoiseRequest, StartState
from workers.denoising.solvers import Solver

logger = logging.getLogger(__name__)


class Trajectory:
    """Where a job is: its latents, its step, its own scheduler and generator.

    Made on the caller's thread, which checks the request (InvalidRequest); from `begin` on it
    belongs to the engine's thread, save `is_cancelled`, which any thread may set.
    """

    def __init__(self, request: DenoiseRequest, family: Family) -> None:
        self.request = request
        self.family = family
        self.future: Future[Denoised] = Future()
        self.future.set_running_or_notify_cancel()  # Future.cancel() has no effect from here on
        if request.lead is not None:
            self.future.add_done_callback(request.lead.end)
        self.is_cancelled = False
        num_steps, size = request.num_inference_steps, (request.height, request.width)
        self.solver = Solver(family.scheduler, num_steps, **family.schedule(num_steps, *size))
        self.solver.check_start(request.start)
        # Whether a step takes two rows of the batch, one without the prompt.
        self.is_guided = family.has_classifier_free_guidance and request.guidance_scale > 1
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        self.first_step = 0  # known from `begin` on, as the next: a follower's depends on another
        self.step_index = 0  # steps behind it, skipped ones included
        self.captured: dict[int, HostCopy] = {}
        self.on_progress = request.on_progress
        self.begun_at: float | None = None  # monotonic, start of its first step
        self.denoise_s = 0.0
        self._latents: Tensor | None = None
        self._timesteps: Tensor | None = None  # on the device: to move one is to wait for it
        self._conditioning: Conditioning | None = None
        shape = family.latent_shape(request.height, request.width)
        if request.start is not None and tuple(request.start.latents.shape) != shape:
            raise InvalidRequest(
                f"the state's latents are {tuple(request.start.latents.shape)}, the job's {shape}"
            )
        # Who can share a forward pass: models of equal weights, tensors of equal shape and type.
        self.group = (family.revision, shape, request.encoding.conditioning.shape, family.dtype)

    def is_waiting(self, now: float) -> bool:
        """Whether it is to begin later than the monotonic `now`: it follows a job in flight."""
        return self.request.follow is not None and self.request.follow.is_waiting(now)

    def begin(self) -> None:
        """Draw the noise on the CPU, so that a seed means the same on every device, and start."""
        request, family, start = self.request, self.family, self._start()
        self.first_step = self.step_index = 0 if start is None else start.k
        noise = family.draw_noise(request.height, request.width, self.generator)
        latents = self.solver.start_from(start, noise, self.generator)
        self._latents = latents.to(family.device, family.dtype)
        self._timesteps = self.solver.timesteps.to(family.device)
        self._conditioning = family.condition(
            request.encoding.conditioning,
            height=request.height,
            width=request.width,
            guidance_scale=request.guidance_scale,
        )

    def _start(self) -> StartState | None:
        """Where the job enters: what it follows, where that skips more than its own state."""
        start, follow = self.request.start, self.request.follow
        if follow is None or follow.k <= (0 if start is None else start.k):
            return start
        latents = follow.lead.latents
        return start if latents is None else StartState(latents=latents, kind="final", k=follow.k)

    @property
    def latents(self) -> Tensor:
        """[1, C, h, w] after `step_index` steps, on the device."""
        assert self._latents is not None, "begin() comes first"
        return self._latents

    @property
    def conditioning(self) -> Conditioning:
        """What the denoiser is told, the job's own part included."""
        assert self._conditioning is not None, "begin() comes first"
        return self._conditioning

    @property
    def is_done(self) -> bool:
        return self.step_index == self.request.num_inference_steps

    @property
    def timestep(self) -> Tensor:
        """The scalar timestep of the next step, on the device."""
        assert self._timesteps is not None, "begin() comes first"
        return self._timesteps[self.step_index]

    @property
    def model_input(self) -> Tensor:
        return self.solver.model_input(self.latents, self.step_index)

    def advance(self, noise_pred: Tensor) -> None:
        """Take one step with the guided prediction [1, C, h, w]; all or nothing."""
        assert not self.is_done
        assert noise_pred.shape == self.latents.shape
        predicted = self._predict_final(noise_pred)
        self._latents = self.solver.step(noise_pred, self.step_index, self.latents)
        self.step_index += 1
        if self.request.lead is not None and predicted is not None:
            self.request.lead.note(self.step_index, predicted)
        if self.step_index in self.request.capture_steps:
            # Every step makes new latents, so that the copy can happen behind the next one.
            self.captured[self.step_index] = copy_to_host(self.latents[0])

    def _predict_final(self, noise_pred: Tensor) -> Tensor | None:
        """The finished latents as this step sees them, where somebody may start from them."""
        lead = self.request.lead
        if lead is None or self.step_index + 1 not in lead.steps:
            return None
        return self.solver.predict_final(noise_pred, self.step_index, self.latents)

    def note_step(self, steps_done: int, *, started_at: float, ended_at: float) -> None:
        """Account for the step that was the `steps_done`-th (monotonic seconds); report progress.

        A callback that raises is logged and not called again.
        """
        self.begun_at = started_at if self.begun_at is None else self.begun_at
        self.denoise_s = ended_at - self.begun_at
        if self.on_progress is None or self.future.done():  # cancelled while the step ran
            return
        try:
            self.on_progress(steps_done, self.request.num_inference_steps)
        except Exception:
            logger.exception("progress callback", extra={"job_id": self.request.job_id})
            self.on_progress = None

    def ended_by(self, now: float) -> DenoisingError | None:
        """Why the job must not run on at the monotonic instant `now`, if so."""
        if self.is_cancelled:
            return Cancelled()
        deadline = self.request.deadline_monotonic_s
        return DeadlineExceeded() if deadline is not None and now >= deadline else None

    def result(self, image: Any, decode_s: float) -> Denoised:
        """What the job hands back, with its image [H, W, 3]."""
        assert self.is_done
        if self.request.lead is not None:
            self.request.lead.note(self.step_index, self.latents)
        final = copy_to_host(self.latents[0]) if self.request.capture_final else None
        return Denoised(
            image=image,
            captured={k: copy.tensor() for k, copy in self.captured.items()},
            final_latents=None if final is None else final.tensor(),
            k=self.first_step,
            steps_run=self.step_index - self.first_step,
            denoise_s=self.denoise_s,
            decode_s=decode_s,
        )
