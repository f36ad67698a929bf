"""How jobs look to those who watch Celery: in Flower, in its API, to `AsyncResult`.

What a client's own Celery put into a message for Flower is not passed on: it may hold a webhook's
address. The worker tells of a message what `producer.shown` makes of it.
"""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from producer.contract import CacheOutcome
from producer.result import JobResult
from producer.shown import shown_arguments
from producer.trace import Progress


class ShownRequest(Request):  # type: ignore[misc]
    """A received message of the generate task; events describe its job in few words."""

    @property
    def argsrepr(self) -> str:
        """The job, as Flower's column of arguments has it."""
        arguments = self._message.payload[0] if isinstance(self._message.payload, list) else None
        return shown_arguments(arguments[0] if isinstance(arguments, list) and arguments else None)

    @property
    def kwargsrepr(self) -> str:
        """Nothing: a job has none."""
        return "{}"


class ShownResult:
    """A result that is stored whole, as its wire form, and shown in few words.

    Celery shows `repr` of what a task returns, and stores what its JSON makes of it.
    """

    def __init__(self, result: JobResult) -> None:
        self._result = result

    def __json__(self) -> dict[str, Any]:
        """What kombu's encoder stores."""
        return self._result.to_wire()

    def __repr__(self) -> str:
        return shown_result(self._result)


def shown_result(result: JobResult) -> str:
    """What came of a job that succeeded, for a column of a table."""
    parts = []
    if result.cache is not None:
        cache = result.cache
        parts.append(cache.outcome.value)
        if cache.outcome is CacheOutcome.HIT:
            parts.append(f"from step {cache.k}")
        if cache.outcome is CacheOutcome.HIT and cache.similarity is not None:
            parts.append(f"similarity {cache.similarity:.3f}")
    if result.steps is not None:
        parts.append(f"ran {result.steps.run} of {result.steps.asked} steps")
    return ", ".join(parts) or result.status.value


def shown_progress(progress: Progress) -> str:
    """How far a running job is."""
    return f"step {progress.steps_done} of {progress.steps_asked}"
