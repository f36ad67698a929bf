"""Logs of a worker process: one line an event, as text with key=value or as JSON."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from typing import Any, Final

# Celery's two lines for each task would bury ours: a job's end is logged with its figures.
_CHATTY: Final = ("httpx", "urllib3", "diffusers", "celery.app.trace", "celery.worker.strategy")
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "data"}


class FieldsFormatter(logging.Formatter):
    """Appends what was given as `extra`, so that a job's lines can be found by its id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        line = super().formatMessage(record)
        return " ".join([line, *(f"{k}={value}" for k, value in sorted(_fields(record).items()))])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, worker, message, what was given as `extra`."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "worker": self._worker,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str = "INFO", *, process: str = "worker", log_format: str = "text") -> None:
    """Send the process's logs to stderr; `log_format` is text or json."""
    worker = f"{process}@{socket.gethostname()}/{os.getpid()}"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if log_format == "json" else FieldsFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel("WARNING")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
