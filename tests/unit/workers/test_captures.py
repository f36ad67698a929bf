"""The keeper of new states holds up neither jobs nor the end of its process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cache.approximate import ApproximateCache
from workers import captures
from workers.captures import CaptureKeeper
from workers.reuse import NewStates

STATE_BYTES = 400


class HangingCache:
    """A cache whose object store does not answer."""

    def __init__(self) -> None:
        self.is_storing, self.answers = threading.Event(), threading.Event()
        self.num_stored = 0

    def store(self, *_: Any, **__: Any) -> None:
        self.is_storing.set()
        assert self.answers.wait(30)
        self.num_stored += 1


@pytest.fixture
def cache() -> Iterator[HangingCache]:
    cache = HangingCache()
    yield cache
    cache.answers.set()


def keeper_of(cache: HangingCache, **limits: int) -> CaptureKeeper:
    bounds: dict[str, int] = {"waiting_max": 100, "waiting_bytes_max": 10**9, **limits}
    return CaptureKeeper(cast("ApproximateCache", cache), **bounds)


def new_states() -> NewStates:
    latents = torch.zeros(STATE_BYTES // 4)
    entry = SimpleNamespace(states=(SimpleNamespace(latents=latents),))
    return NewStates(scope=cast("Any", None), entry=cast("Any", entry), is_refresh=False)


def test_closing_gives_up_on_a_store_that_hangs(
    cache: HangingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures, "_CLOSE_TIMEOUT_S", 0.1)
    keeper = keeper_of(cache, waiting_max=1)
    keeper.keep(new_states())
    assert cache.is_storing.wait(10)
    keeper.keep(new_states())
    keeper.keep(new_states())
    assert keeper.num_dropped == 1
    closing = threading.Thread(target=keeper.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_states_beyond_the_budget_in_bytes_are_dropped_and_counted(cache: HangingCache) -> None:
    keeper = keeper_of(cache, waiting_bytes_max=2 * STATE_BYTES)
    for _ in range(5):
        keeper.keep(new_states())
    assert keeper.num_dropped == 3  # what is being stored takes memory, too
    cache.answers.set()
    keeper.drain()
    for _ in range(2):
        keeper.keep(new_states())
    keeper.drain()
    assert (keeper.num_dropped, cache.num_stored) == (3, 4)
    keeper.close()
