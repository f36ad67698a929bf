"""Celery's consumer, made to outlive a message that nobody can read.

Celery takes an error of its own request parsing for a lost connection: it puts the message back,
reconnects, and reads it again, until the worker gives up and serves nothing any more. One message
without an id, from a client in another language, would stop every worker of its queue in turn.
What is rejected here is kept in the dead-letter list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

from workers.transport import MALFORMED, SteadyTransport

logger = logging.getLogger(__name__)


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Rejects, for good, what Celery cannot make a request of."""

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport_cls = SteadyTransport
        return self.ensure_connected(connection)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        receive = super().create_task_handler(*args, **kwargs)

        def receive_or_reject(message: Any) -> None:
            try:
                _check_id(message)
                receive(message)
            except MALFORMED as error:
                _keep(message, f"malformed: {type(error).__name__}: {error}")
                message.reject_log_error(logger, self.connection_errors)

        return receive_or_reject

    def on_unknown_message(self, body: Any, message: Any) -> None:
        _keep(message, "no Celery message: it names no task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        _keep(message, f"no task here is called {exc}")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        _keep(message, f"no valid task: {type(exc).__name__}: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        _keep(message, f"cannot be decoded: {type(exc).__name__}: {exc}")
        super().on_decode_error(message, exc)


def _keep(message: Any, reason: str) -> None:
    logger.error("unreadable message kept: %s", reason)
    message.channel.keep_dead(message, reason)


def _check_id(message: Any) -> None:
    """Raise TypeError for an id that is no text: its task would never give its thread back."""
    task_id = (message.headers or {}).get("id", "")
    if not isinstance(task_id, str):
        raise TypeError(f"the id must be text, not {task_id!r}")
