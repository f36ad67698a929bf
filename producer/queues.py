"""Names of queues: which queue a job waits in, and which a worker serves (docs/state.md)."""

from __future__ import annotations

import zlib
from typing import Final

IO_QUEUE: Final = "io"
MAINTENANCE_QUEUE: Final = "maintenance"


def admission_queue(model: str) -> str:
    """Where a client that writes no trace sends its jobs; the io worker admits them from there."""
    return f"generate.{model}"


def bucket_queue(model: str, namespace: str, num_buckets: int) -> str:
    """Where the jobs of a namespace wait: the same bucket on every machine."""
    return f"generate.{model}.{zlib.crc32(namespace.encode()) % num_buckets}"


def bucket_queues(model: str, num_buckets: int) -> list[str]:
    """All that a GPU worker of that model serves, in turn."""
    return [f"generate.{model}.{bucket}" for bucket in range(num_buckets)]
