"""A real HTTP server on loopback whose answers are scripted, well-behaved or not."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpcore

CERTIFICATE = Path(__file__).with_name("receiver.example.pem")


@dataclass(frozen=True, slots=True)
class Request:
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """Answers each connection with the next of `answers`, the last one again and again."""

    listener: socket.socket
    port: int
    answers: list[Callable[[socket.socket], None]]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    # Set when the test is over: whoever drips or stays silent ends.
    is_over: threading.Event = field(default_factory=threading.Event)
    # One item for each request as soon as it has been read.
    arrived: queue.SimpleQueue[Request] = field(default_factory=queue.SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve_one, args=[connection])
            self.threads.append(thread)
            thread.start()

    def _serve_one(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                self._answer(connection)
        except OSError:
            connection.close()  # the sender went away, which is what some tests are about

    def _answer(self, connection: socket.socket) -> None:
        request = read_request(connection)
        if request is None:
            return
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        self.arrived.put(request)
        answer(connection)

    # What it may answer.

    def silence(self, connection: socket.socket) -> None:
        self.is_over.wait()

    def drip_head(self, connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 10_000:
            if self.is_over.wait(0.02):
                return
            connection.sendall(bytes([byte]))

    def drip_body(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n")
        while not self.is_over.wait(0.02):
            connection.sendall(b"x")


def status(code: int, *headers: str) -> Callable[[socket.socket], None]:
    """An ordinary answer."""
    head = "\r\n".join([f"HTTP/1.1 {code} Whatever", "content-length: 2", *headers])

    def answer(connection: socket.socket) -> None:
        connection.sendall(f"{head}\r\n\r\nok".encode())

    return answer


def raw(answer_bytes: bytes) -> Callable[[socket.socket], None]:
    """Exactly these bytes."""
    return lambda connection: connection.sendall(answer_bytes)


def endless_body(connection: socket.socket) -> None:
    """A body without end; ends as the sender hangs up."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65_536)


def read_request(connection: socket.socket) -> Request | None:
    """One request with a body of known length; None if the sender hung up."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65_536)
        if not chunk:
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65_536)
    return Request(first.split(" ")[1], headers, body)


@contextmanager
def receiver(
    *answers: Callable[[socket.socket], None] | str, is_tls: bool = False, port: int = 0
) -> Iterator[Receiver]:
    """Serve on 127.0.0.1, by default any free port; a str names one of Receiver's own answers."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = Receiver(listener, listener.getsockname()[1], [])
        server.answers = [
            getattr(server, answer) if isinstance(answer, str) else answer for answer in answers
        ] or [status(200)]
        if is_tls:
            server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(CERTIFICATE)
            server.tls.sni_callback = lambda _, name, __: server.server_names.append(name)
        accepting = threading.Thread(target=server.serve)
        accepting.start()
        try:
            yield server
        finally:
            server.is_over.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in [accepting, *server.threads]:
                thread.join(timeout=10)


class UnreachableNetwork(httpcore.NetworkBackend):
    """Notes where connections were asked for, and opens none."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.NetworkStream:
        self.asked.append(host)
        raise httpcore.ConnectError("unreachable")
