"""The keeper of new states never holds up the end of its process."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from cache.approximate import ApproximateCache
from workers import captures
from workers.captures import CaptureKeeper
from workers.reuse import NewStates


class HangingCache:
    """A cache whose object store does not answer."""

    def __init__(self) -> None:
        self.is_storing, self.answers = threading.Event(), threading.Event()

    def store(self, *_: Any, **__: Any) -> None:
        self.is_storing.set()
        assert self.answers.wait(30)


def test_closing_gives_up_on_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_CLOSE_TIMEOUT_S", 0.1)
    cache = HangingCache()
    keeper = CaptureKeeper(cast("ApproximateCache", cache), waiting_max=1)
    states = NewStates(scope=cast("Any", None), entry=cast("Any", None), is_refresh=False)
    keeper.keep(states)
    assert cache.is_storing.wait(10)
    keeper.keep(states)
    keeper.keep(states)
    assert keeper.num_dropped == 1
    closing = threading.Thread(target=keeper.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    cache.answers.set()
