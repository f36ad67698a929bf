"""Latents as safetensors bytes, and back, with a checksum. A round trip is exact to the bit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cache.errors import ChecksumMismatch, LatentsInvalid, LatentsMismatch, ObjectTruncated

TENSOR_NAME = "latents"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedLatents:
    """The bytes of an object, and what its row says of them."""

    data: bytes = field(repr=False)
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Length of the object."""
        return len(self.data)


def encode(latents: torch.Tensor) -> EncodedLatents:
    """Write latents of any shape and device; waits for a GPU to finish them."""
    data = save({TENSOR_NAME: latents.detach().to("cpu").contiguous()})
    return EncodedLatents(data=data, sha256=hashlib.sha256(data).hexdigest())


def decode(
    data: bytes,
    *,
    sha256: str,
    num_bytes: int,
    dtype: str,
    shape: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Read latents to the CPU; raises LatentsInvalid. A shape of None is not checked."""
    if len(data) != num_bytes:
        raise ObjectTruncated(num_bytes, len(data))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ChecksumMismatch
    try:
        latents = load(data)[TENSOR_NAME]
    except (SafetensorError, KeyError) as error:
        raise LatentsInvalid(f"not a safetensors object with '{TENSOR_NAME}'") from error
    found = _form(tuple(latents.shape), dtype_name(latents))
    expected = _form(tuple(latents.shape) if shape is None else shape, dtype)
    if found != expected:
        raise LatentsMismatch(expected, found)
    return latents


def dtype_name(latents: torch.Tensor) -> str:
    """A dtype as ScopeSpec names it: "float16"."""
    return str(latents.dtype).removeprefix("torch.")


def _form(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}{list(shape)}"
