"""PostgreSQL frozen, gone and back: a job waits its budget at most, and the cache recovers."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, make_url

from cache import namespaces
from cache.approximate import CLOSE_TIMEOUT_S, ApproximateCache
from cache.entry import MissReason
from cache.lookup import Found
from tests.conformance.memory_objects import MemoryObjects
from tests.integration.cache_harness import QUERY, entry, migrated, rows, running_cache, spec

BUDGET_S = 0.4
SLACK_S = 0.3  # of a busy machine


class Proxy:
    """Forwards connections to a server; frozen, it accepts and forwards nothing."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._stopping = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def stop(self) -> None:
        """As a killed server: connections reset, new ones refused."""
        self._stopping.set()
        self.thaw()
        # On Linux closing does not wake a thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for each in self._open:
            each.close()

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            self._start(self._forward, client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with selectors.DefaultSelector() as selector:
            for each in other:
                selector.register(each, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select(timeout=0.02):
                    source: Any = key.fileobj
                    self._flowing.wait()
                    if not (data := source.recv(65_536)):
                        client.close()
                        server.close()
                        return
                    other[source].sendall(data)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@contextmanager
def proxied(database_url: str, **changes: Any) -> Iterator[tuple[Proxy, ApproximateCache]]:
    url = make_url(database_url)
    assert url.host
    assert url.port
    proxy = Proxy(url.host, url.port)
    with closing_proxy(proxy):
        through = url.set(port=proxy.port).render_as_string(hide_password=False)
        options = {"cache_budget_s": BUDGET_S, **changes}
        with running_cache(through, MemoryObjects(), **options) as cache:
            assert cache.store(spec(), entry())
            found_within_budget(cache)
            yield proxy, cache


@contextmanager
def closing_proxy(proxy: Proxy) -> Iterator[None]:
    try:
        yield
    finally:
        if not proxy._stopping.is_set():
            proxy.stop()


def found_within_budget(cache: ApproximateCache) -> MissReason | int:
    started = time.monotonic()
    outcome = cache.find(spec(), QUERY)
    assert time.monotonic() - started < BUDGET_S + SLACK_S
    return outcome.hit.k if isinstance(outcome, Found) else outcome.reason


def wait_until_found(cache: ApproximateCache) -> None:
    deadline = time.monotonic() + 20
    while found_within_budget(cache) != 25:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_frozen_database_costs_the_budget_then_nothing_and_is_found_again(
    database_url: str, engine: Engine
) -> None:
    with proxied(database_url, cache_lookups_max=2) as (proxy, cache):
        proxy.freeze()
        assert found_within_budget(cache) is MissReason.BUDGET_EXCEEDED
        assert found_within_budget(cache) is MissReason.BUDGET_EXCEEDED
        started = time.monotonic()
        assert found_within_budget(cache) is MissReason.TOO_BUSY
        assert time.monotonic() - started < SLACK_S
        proxy.thaw()
        wait_until_found(cache)


def test_a_database_that_is_gone_is_a_miss_at_once(database_url: str, engine: Engine) -> None:
    with proxied(database_url) as (proxy, cache):
        proxy.stop()
        for _ in range(5):
            assert found_within_budget(cache) is MissReason.DATABASE_UNREACHABLE
        assert cache.store(spec(), entry()) is None


def cut_connections(engine: Engine) -> None:
    rows(
        engine,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'",
    )


def found(cache: ApproximateCache) -> MissReason | int:
    outcome = cache.find(spec(), QUERY)
    return outcome.hit.k if isinstance(outcome, Found) else outcome.reason


def test_connections_that_were_cut_cost_one_miss(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "REFRESH_S", 1_000.0)
    with running_cache(database_url, MemoryObjects()) as cache, ThreadPoolExecutor(3) as threads:
        assert cache.store(spec(), entry())
        assert list(threads.map(found, [cache] * 12)) == [25] * 12
        cut_connections(engine)
        assert found(cache) is MissReason.DATABASE_UNREACHABLE
        assert [found(cache) for _ in range(5)] == [25] * 5


def test_connections_that_were_cut_cost_no_entry(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "REFRESH_S", 0.0)  # a store asks for the rules
    with running_cache(database_url, MemoryObjects()) as cache:
        assert cache.store(spec(), entry())
        cut_connections(engine)
        assert cache.store(spec(), entry())


def test_uses_outlive_an_outage(database_url: str, engine: Engine) -> None:
    with proxied(database_url, cache_uses_flush_s=0.05) as (proxy, cache):
        outcome = cache.find(spec(), QUERY)
        assert isinstance(outcome, Found)
        proxy.freeze()
        for _ in range(3):
            cache.count_use(outcome.hit, 25)
        assert rows(engine, "SELECT sum(uses) FROM state_uses") == [(0,)]
        proxy.thaw()
        deadline = time.monotonic() + 20
        while rows(engine, "SELECT sum(uses) FROM state_uses") != [(3,)]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_closing_does_not_wait_for_a_frozen_database(database_url: str, engine: Engine) -> None:
    with proxied(database_url, cache_uses_flush_s=1_000) as (proxy, cache):
        outcome = cache.find(spec(), QUERY)
        assert isinstance(outcome, Found)
        proxy.freeze()
        cache.count_use(outcome.hit, 25)
        started = time.monotonic()
        cache.close()
        assert time.monotonic() - started < 2 * CLOSE_TIMEOUT_S + 1
        proxy.thaw()


def test_a_server_that_accepts_and_never_answers(engine: Engine) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"postgresql://someone:hunter2@127.0.0.1:{mute.getsockname()[1]}/nirvana"
        with running_cache(url, MemoryObjects(), cache_budget_s=BUDGET_S) as cache:
            assert found_within_budget(cache) is MissReason.BUDGET_EXCEEDED
