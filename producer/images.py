"""Downloads the image of a result by its signed url: no S3 credentials, no S3 client."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit

from producer.errors import ImageUnavailable, UrlExpired
from producer.result import StoredImage

IMAGE_BYTES_MAX: Final = 256 * 1024**2
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def download_image(image: StoredImage, *, timeout_s: float = 30.0) -> bytes:
    """Fetch the PNG and compare its checksum with the result's; raises ImageUnavailable."""
    if image.url is None:
        raise ImageUnavailable(f"the result has no url for {image.key}")
    content = _fetch(image.url, timeout_s)
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise ImageUnavailable(f"{image.key} is not what the result says: its checksum differs")
    return content


def _fetch(url: str, timeout_s: float) -> bytes:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ImageUnavailable(f"the image's url must be http or https, not {parts.scheme!r}")
    # A proxy of the environment is for the world outside, not for this machine's own fleet.
    proxies: dict[str, str] | None = {} if parts.hostname in _LOOPBACK else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            content: bytes = response.read(IMAGE_BYTES_MAX + 1)
    except urllib.error.HTTPError as error:
        with error:  # it holds the open connection
            kind = UrlExpired if error.code == 403 else ImageUnavailable
            raise kind(_refused(error.code, parts.netloc)) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ImageUnavailable(f"{parts.netloc} cannot be reached: {reason}") from None
    if len(content) > IMAGE_BYTES_MAX:
        raise ImageUnavailable(f"the image has more than {IMAGE_BYTES_MAX:,} bytes")
    return content


def _refused(status: int, host: str) -> str:
    hint = {403: ": the signed url has expired", 404: ": the image is past its retention"}
    return f"{host} answers {status}{hint.get(status, '')}"
