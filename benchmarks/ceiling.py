"""What the hardware allows: the bare denoiser, at every batch size and number of threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from workers.denoising.families.family import Family
from workers.denoising.forward import Forward
from workers.denoising.request import DenoiseRequest
from workers.denoising.trajectory import Trajectory
from workers.stopwatch import Stopwatch


class Ceiling:
    """Times the denoiser alone on the very inputs that the engine gives it for B guided jobs."""

    def __init__(
        self, family: Family, *, batch_sizes: Sequence[int], thread_counts: Sequence[int]
    ) -> None:
        self._family = family
        self._inputs = {size: _inputs_of(family, size) for size in batch_sizes}
        self._thread_counts = thread_counts
        # Seconds of each pass, by (batch size, threads).
        self._passes_s: dict[tuple[int, int], list[float]] = {}

    def measure(self, num_passes: int) -> None:
        """Take so many passes more of each kind, in turn."""
        for _ in range(num_passes):
            for batch_size in self._inputs:
                for num_threads in self._thread_counts:
                    torch.set_num_threads(num_threads)
                    passes_s = self._passes_s.setdefault((batch_size, num_threads), [])
                    if not passes_s:
                        self._pass(batch_size)  # prepares its kernels
                    passes_s.append(self._pass(batch_size))

    def _pass(self, batch_size: int) -> float:
        arguments = self._inputs[batch_size]
        with torch.inference_mode():
            started_at = time.perf_counter()
            self._family.denoiser(*arguments)
            if self._family.device.type == "cuda":
                torch.cuda.synchronize(self._family.device)
            return time.perf_counter() - started_at

    def seconds_per_job(self) -> dict[tuple[int, int], float]:
        """Median of each kind, by (batch size, threads)."""
        return {
            kind: statistics.median(passes_s) / kind[0] for kind, passes_s in self._passes_s.items()
        }

    def ratio(self) -> float:
        """Best time of one job alone / best time of a job in any batch."""
        seconds = self.seconds_per_job()
        alone = min(value for (batch_size, _), value in seconds.items() if batch_size == 1)
        return alone / min(seconds.values())


def _inputs_of(family: Family, batch_size: int) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    recorder = _Recorder(family)
    spec = family.spec
    with torch.inference_mode():
        encoding = family.encode(["a fox in the snow"], [""])[0]
        batch = [
            Trajectory(
                DenoiseRequest(
                    job_id=str(seed),
                    encoding=encoding,
                    height=spec.height,
                    width=spec.width,
                    num_inference_steps=spec.num_inference_steps,
                    guidance_scale=spec.guidance_scale,
                    seed=seed,
                ),
                cast("Family", recorder),
            )
            for seed in range(batch_size)
        ]
        for trajectory in batch:
            trajectory.begin()
        Forward(Stopwatch()).predict(batch)
    return recorder.arguments


class _Recorder:
    """A family that remembers what its denoiser was last given."""

    arguments: tuple[Tensor, Tensor, Mapping[str, Tensor]]

    def __init__(self, family: Family) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoiser(self, *arguments: Any) -> Tensor:
        self.arguments = cast("tuple[Tensor, Tensor, Mapping[str, Tensor]]", arguments)
        return self._family.denoiser(*arguments)
