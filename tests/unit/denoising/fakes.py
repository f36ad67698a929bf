"""The one fake of these tests, and the small jobs that they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from workers.denoising.engine import Engine
from workers.denoising.families.family import Encoding, Family
from workers.denoising.request import DenoiseRequest

TIMEOUT_S = 30.0


class FakeDenoiser:
    """The real tiny family with another denoiser: the one fake of these tests."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.num_rows: list[int] = []  # of each forward pass that was tried
        self.hook: Callable[[Tensor, Mapping[str, Tensor]], None] = lambda latents, rows: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        self.num_rows.append(len(latents))
        self.hook(latents, conditioning)
        return self._family.denoiser(latents, timesteps, conditioning)

    def as_family(self) -> Family:
        return cast("Family", self)


class StepGate:
    """Holds the engine inside each forward pass until the test lets it through."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._let_through = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, latents: Tensor, rows: Mapping[str, Tensor]) -> None:
        self._entered.release()
        if not self._is_open:
            assert self._let_through.acquire(timeout=TIMEOUT_S)

    def wait_for_step(self) -> None:
        assert self._entered.acquire(timeout=TIMEOUT_S)

    def let_through(self) -> None:
        self._let_through.release()

    def open(self) -> None:
        self._is_open = True
        self._let_through.release()


def request_for(encoding: Encoding, **changes: Any) -> DenoiseRequest:
    """A small unguided job, changed as the test needs it."""
    defaults: dict[str, Any] = {
        "job_id": "job",
        "encoding": encoding,
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "seed": 1,
        "capture_final": True,
    }
    return DenoiseRequest(**{**defaults, **changes})


def run_alone(family: Family, request: DenoiseRequest) -> Tensor:
    """The job's final latents in an engine of its own."""
    with Engine(family) as engine:
        final_latents = engine.denoise(request).result(TIMEOUT_S).final_latents
    assert final_latents is not None
    return final_latents
