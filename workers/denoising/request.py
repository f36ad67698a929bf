"""What crosses the engine's boundary: the job, the state it starts from, what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from workers.denoising.errors import InvalidRequest
from workers.denoising.families.family import Encoding
from workers.denoising.leads import Follow, Lead


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StartState:
    """A cached state to start from instead of noise (NIRVANA, NSDI'24, sections 3 and 5).

    `intermediate`: the latents that another job had after `k` steps, taken up as they are.
    `final`: another job's finished latents, noised again to the level of step `k`.
    """

    latents: Tensor  # [C, h, w], on any device
    kind: Literal["intermediate", "final"]
    k: int  # steps skipped

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidRequest(f"a state starts at a step k >= 1, not {self.k}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenoiseRequest:
    """One job for the engine. Raises InvalidRequest where it contradicts itself."""

    job_id: str
    encoding: Encoding
    height: int  # pixels
    width: int  # pixels
    num_inference_steps: int
    guidance_scale: float  # classifier-free above 1, off at 1 and below; of Flux the distilled one
    seed: int  # of all noise drawn: at the start, for a `final` state, in each ancestral step
    start: StartState | None = None  # for a follower: if its leader lets it skip no more
    lead: Lead | None = None  # to be told how far this job is, for those that follow it
    follow: Follow | None = None  # wait for that job's prediction, and start from it
    capture_steps: frozenset[int] = frozenset()  # keep the latents after these numbers of steps
    capture_final: bool = False
    deadline_monotonic_s: float | None = None  # on time.monotonic()'s clock
    is_background: bool = False  # step only while no other job is in flight
    # Called on the engine's thread after each step with (steps done, num_inference_steps).
    on_progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        if steps < 1:
            raise InvalidRequest(f"num_inference_steps is {steps}, allowed: 1 or more")
        if self.start is not None and self.start.k >= steps:
            raise InvalidRequest(f"a state of step {self.start.k} leaves nothing of {steps} steps")
        if not all(1 <= k <= steps for k in self.capture_steps):
            raise InvalidRequest(f"capture_steps {sorted(self.capture_steps)} exceed 1..{steps}")
        if self.follow is not None and self.follow.ks[-1] >= steps:
            raise InvalidRequest(
                f"following to {self.follow.ks[-1]} leaves nothing of {steps} steps"
            )
        if self.follow is not None and self.lead is not None:
            raise InvalidRequest("a job that follows another one cannot lead, or others may wait")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Denoised:
    """A finished job. Tensors are on the CPU and nobody else's."""

    image: npt.NDArray[np.uint8]  # [H, W, 3]
    captured: dict[int, Tensor]  # k -> latents [C, h, w] after k steps, for the k's that were run
    final_latents: Tensor | None  # [C, h, w], where capture_final asked for them
    k: int  # steps skipped, by a state or by following
    steps_run: int
    denoise_s: float  # from the start of its first step to the end of its last
    decode_s: float  # of the decoding it shared
