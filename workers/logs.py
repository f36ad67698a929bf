"""Logs of a worker process: one line an event, with the event's own fields as key=value."""

from __future__ import annotations

import logging
import sys
from typing import Final

# Celery's two lines for each task would bury ours: a job's end is logged with its figures.
_CHATTY: Final = ("httpx", "urllib3", "diffusers", "celery.app.trace", "celery.worker.strategy")
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "data"}


class FieldsFormatter(logging.Formatter):
    """Appends what was given as `extra`, so that a job's lines can be found by its id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        line = super().formatMessage(record)
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return " ".join([line, *(f"{name}={value}" for name, value in sorted(fields.items()))])


def configure(level: str = "INFO") -> None:
    """Send the process's logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldsFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel("WARNING")
