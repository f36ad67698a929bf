"""Connections to the broker: one for traces, one Celery app for messages."""

from __future__ import annotations

from typing import Any, Final

import redis
from celery import Celery
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0


def open_connection(broker_url: str) -> redis.Redis:
    """Open a connection pool that decodes to str, gives up in seconds and retries twice."""
    url = broker_url.replace("valkey://", "redis://", 1)
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=COMMAND_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def open_app(broker_url: str, *, name: str = "nirvana", **settings: Any) -> Celery:
    """Build a Celery app with what producers and workers must agree on: JSON and transport.

    The visibility timeout is kombu's: applications that share a broker get the shortest, so it
    stands here, once. It is long on purpose; lost jobs come back by the rescuer (STATE: section 2).
    """
    url = broker_url.replace("valkey://", "redis://", 1)
    app = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_transport_options={
            "visibility_timeout": 3_600,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": "round_robin",
            "socket_timeout": COMMAND_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
        },
        **settings,
    )
    return app
