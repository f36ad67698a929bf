"""Connections to receivers: one resolution, checked, and one deadline over everything.

httpcore asks its network backend for a connection by name, then keeps the name for Host and SNI.
The backend here resolves that name once, checks the answers and connects to a checked address, so
a name that answers otherwise a second time (DNS rebinding) is never asked a second time.
"""

from __future__ import annotations

import functools
import queue
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpx

from workers.delivery.addresses import Resolver, permitted, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How receivers are reached.

    `tls` None: the authorities of certifi, or those SSL_CERT_FILE names. `backend` opens the
    connection to a checked address.
    """

    allow_private_addresses: bool = False
    resolve: Resolver = resolve
    tls: ssl.SSLContext | None = None
    backend: httpcore.NetworkBackend = field(default_factory=httpcore.SyncBackend)

    def connections(self, *, timeout_s: float) -> httpcore.ConnectionPool:
        """Connections that all end `timeout_s` from now; no proxy, no redirect, no cookie.

        Raises AddressRefused from the request where no address of its host may be connected to.
        """
        return httpcore.ConnectionPool(
            ssl_context=self.tls or _trusted_authorities(),
            max_keepalive_connections=0,
            network_backend=_CheckedBackend(self, _Deadline(timeout_s)),
        )


@functools.cache
def _trusted_authorities() -> ssl.SSLContext:
    # Reading the authorities takes tens of milliseconds: once a process.
    return httpx.create_ssl_context()


class _Deadline:
    """The moment by which everything about a request must be over."""

    def __init__(self, timeout_s: float) -> None:
        self._at_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, more than 0; raises httpcore.TimeoutException after the deadline."""
        left_s = self._at_s - time.monotonic()
        if left_s <= 0:
            raise httpcore.TimeoutException
        return left_s


class _CheckedBackend(httpcore.NetworkBackend):
    """Opens connections to checked addresses only."""

    def __init__(self, network: Network, deadline: _Deadline) -> None:
        self._network = network
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        answers = self._resolved(host, port)
        allow_private = self._network.allow_private_addresses
        addresses = permitted(host, answers, allow_private=allow_private)
        for num_left, address in zip(range(len(addresses), 1, -1), addresses, strict=False):
            try:
                # A silent address may take its share of the time, not that of the next.
                return self._connected(address, port, self._deadline.left_s() / num_left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connected(addresses[-1], port, self._deadline.left_s())

    def _connected(self, address: str, port: int, timeout_s: float) -> httpcore.NetworkStream:
        stream = self._network.backend.connect_tcp(address, port, timeout=timeout_s)
        return _BoundedStream(stream, self._deadline)

    def _resolved(self, host: str, port: int) -> list[str]:
        """Resolve in a thread of its own: the system's resolver takes no timeout."""
        answers: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._network.resolve(host, port))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            answer = answers.get(timeout=self._deadline.left_s())
        except queue.Empty:
            raise httpcore.ConnectTimeout from None
        if not isinstance(answer, list):
            raise httpcore.ConnectError(f"{host} cannot be resolved: {answer}") from answer
        if not answer:
            raise httpcore.ConnectError(f"{host} has no address")
        return answer


class _BoundedStream(httpcore.NetworkStream):
    """A connection whose every wait ends at the deadline, however slowly bytes drip in."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = self._deadline.left_s()
        return _BoundedStream(
            self._stream.start_tls(ssl_context, server_hostname, left_s), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
