"""Finished images in the object store: PNG, one object per attempt."""

from __future__ import annotations

import hashlib
import io
import logging
import uuid

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.errors import ObjectStoreError
from cache.objects import S3Objects
from producer.result import StoredImage

logger = logging.getLogger(__name__)


class Images:
    """Writes images; the key holds the attempt, so that a stale worker overwrites nothing."""

    def __init__(
        self, objects: S3Objects, *, url_lifetime_s: int, public_url: str | None = None
    ) -> None:
        self._objects = objects
        self._url_lifetime_s = url_lifetime_s
        self._public_url = public_url

    def put(
        self,
        pixels: NDArray[np.uint8],
        *,
        namespace: str,
        job_id: uuid.UUID,
        attempt: int,
        variant: str = "",
    ) -> StoredImage:
        """Store `pixels` [height, width, 3]; raises ObjectStoreError."""
        png = encode_png(pixels)
        key = f"images/{namespace}/{job_id}/{attempt}{variant}.png"
        self._objects.put(key, png, content_type="image/png")
        return StoredImage(
            key=key,
            url=self._objects.presigned_url(
                key, expires_s=self._url_lifetime_s, public_url=self._public_url
            ),
            width=int(pixels.shape[1]),
            height=int(pixels.shape[0]),
            sha256=hashlib.sha256(png).hexdigest(),
        )

    def take_back(self, image: StoredImage) -> None:
        """Delete an image that nothing will point at; what is left, the sweep finds."""
        try:
            self._objects.delete_many([image.key])
        except ObjectStoreError as error:
            logger.warning("image left to the sweep: %s", error, extra={"key": image.key})


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of `pixels` [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
