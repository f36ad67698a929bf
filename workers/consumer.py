"""Celery's consumer, made to outlive a message that nobody can read.

Celery takes an error of its own request parsing for a lost connection: it puts the message back,
reconnects, and reads it again, until the worker gives up and serves nothing any more. One message
without an id, from a client in another language, would stop every worker of its queue in turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

logger = logging.getLogger(__name__)

_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Rejects, for good, what Celery cannot make a request of."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        receive = super().create_task_handler(*args, **kwargs)

        def receive_or_reject(message: Any) -> None:
            try:
                _check_id(message)
                receive(message)
            except _MALFORMED as error:
                logger.error("malformed message dropped: %r", error)
                message.reject_log_error(logger, self.connection_errors)

        return receive_or_reject


def _check_id(message: Any) -> None:
    """Raise TypeError for an id that is no text: its task would never give its thread back."""
    task_id = (message.headers or {}).get("id", "")
    if not isinstance(task_id, str):
        raise TypeError(f"the id must be text, not {task_id!r}")
