"""Finished images in the object store: PNG, one object per attempt."""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from producer.result import StoredImage


class ObjectStore(Protocol):
    """What images need of the store."""

    def put(self, key: str, content: bytes) -> None:
        """Store an object, replacing what is there."""

    def presigned_url(self, key: str, *, lifetime_s: int) -> str:
        """URL under which the object can be read without credentials."""


class Images:
    """Writes images; the key holds the attempt, so that a stale worker overwrites nothing."""

    def __init__(self, objects: ObjectStore, *, url_lifetime_s: int) -> None:
        self._objects = objects
        self._url_lifetime_s = url_lifetime_s

    def put(
        self, pixels: NDArray[np.uint8], *, namespace: str, job_id: uuid.UUID, attempt: int
    ) -> StoredImage:
        """Store `pixels` [height, width, 3]."""
        png = encode_png(pixels)
        key = f"images/{namespace}/{job_id}/{attempt}.png"
        self._objects.put(key, png)
        return StoredImage(
            key=key,
            url=self._objects.presigned_url(key, lifetime_s=self._url_lifetime_s),
            width=int(pixels.shape[1]),
            height=int(pixels.shape[0]),
            sha256=hashlib.sha256(png).hexdigest(),
        )


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of `pixels` [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
