"""Connections to the broker: one for traces, one Celery app for messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from producer.errors import BrokerUnavailable, SettingsInvalid

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0


def open_connection(
    broker_url: str,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    command_timeout_s: float = COMMAND_TIMEOUT_S,
    retries: int = 2,
) -> redis.Redis:
    """Open a connection pool that decodes to str, and gives up after its retries.

    Connects at the first command. Raises SettingsInvalid when the address is not one.
    """
    try:
        return redis.Redis.from_url(
            _redis_url(broker_url),
            decode_responses=True,
            socket_connect_timeout=connect_timeout_s,
            socket_timeout=command_timeout_s,
            health_check_interval=15,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )
    except ValueError as error:
        raise SettingsInvalid(f"NIRVANA_BROKER_URL: {error}") from None


def open_app(
    broker_url: str,
    *,
    name: str = "nirvana",
    keeps_results: bool = True,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    command_timeout_s: float = COMMAND_TIMEOUT_S,
    **settings: Any,
) -> Celery:
    """Build a Celery app with what producers and workers must agree on: JSON and transport.

    The visibility timeout is kombu's: applications that share a broker get the shortest, so it
    stands here, once. It is long on purpose; lost jobs come back by the rescuer (docs/state.md).
    Without `keeps_results` the app asks for none: Celery's backend would otherwise subscribe to
    each message it sends.
    """
    url = _redis_url(broker_url)
    app = Celery(
        name, broker=url, backend=url if keeps_results else "disabled://", set_as_current=False
    )
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
        broker_connection_timeout=connect_timeout_s,
        broker_transport_options={
            "visibility_timeout": 3_600,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": "round_robin",
            "socket_timeout": command_timeout_s,
            "socket_connect_timeout": connect_timeout_s,
            "socket_keepalive": True,
        },
    )
    app.conf.update(settings)
    return app


@contextmanager
def naming_broker(broker_url: str) -> Iterator[None]:
    """Turn every failure of the broker into BrokerUnavailable, without its password."""
    try:
        yield
    except (redis.RedisError, OperationalError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokerUnavailable(shown_address(broker_url), reason) from error


def shown_address(broker_url: str) -> str:
    """Scheme, host, port and database: what may be shown."""
    parts = urlsplit(broker_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _redis_url(broker_url: str) -> str:
    url = broker_url.replace("valkey://", "redis://", 1)
    if url.startswith("rediss://") and "ssl_cert_reqs=" not in url:
        # Celery's backend refuses an address that leaves it open; redis-py checks anyway.
        url += ("&" if "?" in url else "?") + "ssl_cert_reqs=required"
    return url
