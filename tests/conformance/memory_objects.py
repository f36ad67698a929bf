"""Objects in memory: the same behaviour as a bucket, for tests that need faults or speed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from cache.errors import ObjectMissing
from cache.objects import ListedObject


class MemoryObjects:
    """An ObjectStore whose contents a test may look at and damage."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[bytes, datetime]] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        with self._lock:
            self.stored[key] = (bytes(data), datetime.now(UTC))

    def get(self, key: str) -> bytes:
        try:
            return self.stored[key][0]
        except KeyError:
            raise ObjectMissing(key) from None

    def exists(self, key: str) -> bool:
        return key in self.stored

    def delete_many(self, keys: Iterable[str]) -> dict[str, str]:
        with self._lock:
            for key in keys:
                self.stored.pop(key, None)
        return {}

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ListedObject]:
        with self._lock:
            found = sorted(self.stored.items(), key=lambda item: item[0].encode())
        for key, (data, modified_at) in found:
            if key.startswith(prefix) and key.encode() > start_after.encode():
                yield ListedObject(key=key, num_bytes=len(data), modified_at=modified_at)

    def close(self) -> None:
        pass
