"""A worker whose engine has ended takes no more jobs."""

from __future__ import annotations

import threading
from typing import cast
from unittest.mock import Mock

import pytest

from workers import gpu_tasks
from workers.denoising.engine import Engine
from workers.gpu_tasks import ending_with


def test_the_worker_is_stopped_when_its_engine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    monkeypatch.setattr(gpu_tasks, "stop_worker", stopped.set)
    engine = Mock(spec=Engine, is_closed=False)
    with ending_with(cast("Engine", engine)):
        assert not stopped.wait(0.5)
        engine.is_closed = True
        assert stopped.wait(10)
