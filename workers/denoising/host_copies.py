"""Latents on their way from the device to the host, without stopping the device.

The CUDA half is not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


class HostCopy:
    """A copy on the CPU that shares nothing, there when `tensor` returns it."""

    def __init__(self, tensor: Tensor, wait: Callable[[], object] = lambda: None) -> None:
        self._tensor = tensor
        self._wait = wait

    def tensor(self) -> Tensor:
        """Return the copy; waits where the device has not come to it yet."""
        self._wait()
        return self._tensor


def copy_to_host(latents: Tensor) -> HostCopy:
    """Start copying. The source must not be changed in place afterwards; it may be freed."""
    # A tensor of inference mode could not be changed by the caller later.
    with torch.inference_mode(False):
        if latents.device.type != "cuda":
            return HostCopy(latents.to("cpu", copy=True))
        return _copy_behind_the_steps(latents)


def _copy_behind_the_steps(latents: Tensor) -> HostCopy:
    """Copy into pinned memory on a stream of its own, which waits for the step and delays none."""
    stream = _copy_stream(latents.device)
    stream.wait_stream(torch.cuda.current_stream(latents.device))
    with torch.cuda.stream(stream):
        host = torch.empty(latents.shape, dtype=latents.dtype, pin_memory=True)
        host.copy_(latents, non_blocking=True)
        copied: torch.cuda.Event = stream.record_event()
    latents.record_stream(stream)  # or the allocator could hand its memory on too early
    return HostCopy(host, copied.synchronize)


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
