"""A GPU worker whose model costs nothing: what is left is the queue, the ledger and the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers import loading, logs
from workers.denoising.families.family import Encoding, Family
from workers.gpu_tasks import serve
from workers.process_settings import ProcessSettings
from workers.settings import WorkerSettings


class NoOpModel:
    """A loaded model that encodes once, and neither denoises nor decodes."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._encodings: dict[tuple[str, str], Encoding] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str]) -> list[Encoding]:
        pairs = list(zip(prompts, negative_prompts, strict=True))
        for pair in pairs:
            if pair not in self._encodings:
                (self._encodings[pair],) = self._family.encode([pair[0]], [pair[1]])
        return [self._encodings[pair] for pair in pairs]

    def denoiser(
        self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Tensor:
        return torch.zeros_like(latents)

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        spec = self._family.spec
        return np.zeros((len(latents), spec.height, spec.width, 3), dtype=np.uint8)


def main() -> None:
    """Serve until told to stop."""
    load_family = loading.load_family

    def load_no_op(settings: WorkerSettings, slug: str) -> Any:
        return NoOpModel(load_family(settings, slug))

    loading.load_family = load_no_op
    logs.configure()
    raise SystemExit(serve(ProcessSettings.load()))


if __name__ == "__main__":
    main()
