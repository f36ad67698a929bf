"""Waiting for storage that is away: for how long, and for what."""

from __future__ import annotations

import threading

import pytest

from cache.errors import ObjectStoreError
from workers.errors import StorageUnavailable
from workers.patience import Patience


def test_storage_that_comes_back_is_outlasted() -> None:
    answers = iter([ObjectStoreError("away"), None])

    def operation() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "done"

    assert Patience(60).outlast(operation) == "done"


def always_away() -> None:
    raise ObjectStoreError("away")


def test_patience_ends() -> None:
    with pytest.raises(StorageUnavailable, match="away"):
        Patience(0).outlast(always_away)


def test_what_is_no_outage_is_not_waited_out() -> None:
    with pytest.raises(ZeroDivisionError):
        Patience(60).outlast(lambda: 1 / 0)


def test_a_worker_that_is_told_to_stop_waits_no_longer() -> None:
    patience = Patience(60)
    threading.Timer(0.1, patience.close).start()
    with pytest.raises(StorageUnavailable):
        patience.outlast(always_away)
