"""Slow receivers of webhooks do not take all threads of an io worker."""

from __future__ import annotations

import threading
import uuid
from typing import Any, cast

import pytest

from workers import beat_tasks
from workers.beat_tasks import deliver_first
from workers.io_process import IoProcess


class Process:
    first_deliveries = threading.BoundedSemaphore(1)


def test_what_is_too_much_at_once_is_left_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    process = cast("IoProcess", Process())
    meanwhile: list[dict[str, int]] = []

    def deliver_slowly(*_: Any) -> dict[str, int]:
        meanwhile.append(deliver_first(process, uuid.uuid4()))
        return {"delivered": 1}

    monkeypatch.setattr(beat_tasks, "deliver_now", deliver_slowly)
    for _ in range(2):
        assert deliver_first(process, uuid.uuid4()) == {"delivered": 1}
    assert meanwhile == [{}, {}]
