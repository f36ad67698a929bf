"""The port on which Prometheus reads a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from workers.errors import MetricsPortTaken


def new_registry() -> CollectorRegistry:
    """One for each process object: the library's own is shared by all in a process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


@contextmanager
def metrics_served(
    registry: CollectorRegistry, *, address: str, port: int | None
) -> Iterator[None]:
    """Answer GET /metrics in a thread; nothing without a port. Raises MetricsPortTaken."""
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        raise MetricsPortTaken(
            f"metrics cannot be served on {address}:{port} ({error.strerror}): "
            "give each worker of a machine its own NIRVANA_GPU_METRICS_PORT or _IO_METRICS_PORT"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
