"""Pictures of one colour."""

from __future__ import annotations

import io

from PIL import Image


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, format="PNG")
    return buffer.getvalue()
