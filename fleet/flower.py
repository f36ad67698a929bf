"""Flower as this fleet runs it: read-only, behind a password, and remembering over a restart.

Flower's own command line is not used: its `/metrics` page asks for no password.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any, Final

from celery import Celery, states
from flower.app import Flower
from flower.options import options
from flower.urls import settings as web_settings
from flower.views.monitor import Metrics
from tornado import web

_TASKS_SHOWN_MAX: Final = 20_000
_INSPECT_TIMEOUT_MS: Final = 3_000.0
# What a killed Flower forgets; saving stops the page for a moment.
_SAVE_EVERY_MS: Final = 60_000
_COLUMNS: Final = "name,args,state,result,runtime,received,worker,uuid"


class GuardedMetrics(Metrics):  # type: ignore[misc]
    """Flower's metrics for Prometheus, behind the password of its other pages."""

    @web.authenticated
    async def get(self) -> None:
        """Answer in Prometheus' text form."""
        await super().get()


def serve(
    app: Celery, *, address: str, port: int, user: str, password: str, state_path: Path
) -> None:
    """Show Celery's events until SIGTERM or Ctrl-C.

    `state_path` is a file in a folder of Flower's own; what was shown is in it at the next start.
    Raises OSError where the folder or the port cannot be had.
    """
    state_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _order_progress()
    _set_options(
        address=address,
        port=port,
        basic_auth=[f"{user}:{password}"],
        read_only=True,
        persistent=True,
        db=str(state_path),
        state_save_interval=_SAVE_EVERY_MS,
        max_tasks=_TASKS_SHOWN_MAX,
        inspect_timeout=_INSPECT_TIMEOUT_MS,
        tasks_columns=_COLUMNS,
        format_task=readable,
    )
    flower = Flower(capp=app, options=options, **web_settings)
    flower.add_handlers(".*", [(r"/metrics", GuardedMetrics)])
    flower.start_http_server()
    loop: asyncio.AbstractEventLoop = flower.io_loop.asyncio_loop
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    try:
        flower.start()
    finally:
        flower.stop()


def readable(task: Any) -> Any:
    """Fill the column of results also where a task has none: with why it failed."""
    match task.state:
        case states.FAILURE:
            task.result = _message(task.exception)
        case states.REVOKED:
            task.result = "cancelled"
        case states.RECEIVED | states.PENDING:
            task.result = "waiting"
    return task


def _message(exception: str | None) -> str:
    """The words in `JobFailed('code: message')`, which is how Celery tells an exception."""
    text = exception or ""
    kind, opened, rest = text.partition("(")
    if opened and kind.isidentifier() and rest.endswith(")"):
        return rest[:-1].rstrip(",").strip("'\"")
    return text


def _order_progress() -> None:
    """Let what follows PROGRESS replace it.

    Celery counts a state that it does not know as later than REVOKED: a cancelled job would be
    shown as running for ever.
    """
    started, revoked = states.precedence(states.STARTED), states.precedence(states.REVOKED)
    states.PRECEDENCE_LOOKUP["PROGRESS"] = (started + revoked) / 2


def _set_options(**values: object) -> None:
    for name, value in values.items():
        setattr(options, name, value)
