"""Which models are in memory, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, cast

import pytest

from workers import model_pool
from workers.denoising.errors import UnsupportedModel
from workers.denoising.families.family import Family
from workers.model_pool import ModelPool

TIMEOUT_S = 10.0
SIZES = {"a": 10, "b": 10, "c": 10, "huge": 100}


class Loader:
    """Counts loads; `hold` stops them until it is set."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.is_loading, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def __call__(self, slug: str) -> Family:
        self.loads.append(slug)
        self.is_loading.set()
        assert self.may_go_on.wait(TIMEOUT_S)
        return cast("Family", cast("Any", f"family of {slug}"))


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a third of a second with torch in the process, and there is nothing to collect."""
    monkeypatch.setattr(model_pool, "release_memory", lambda: None)


@pytest.fixture
def loader() -> Loader:
    return Loader()


def pool_of(load: Callable[[str], Family], memory_bytes_max: int | None = None) -> ModelPool:
    return ModelPool(
        SIZES,
        load=load,
        measure=lambda family: SIZES[str(family).removeprefix("family of ")],
        estimate=SIZES.__getitem__,
        unload=lambda family: None,
        memory_bytes_max=memory_bytes_max,
    )


def use(pool: ModelPool, slug: str) -> None:
    with pool.lease(slug) as family:
        assert str(family) == f"family of {slug}"


def test_a_model_is_loaded_when_it_is_first_asked_for_and_stays(loader: Loader) -> None:
    pool = pool_of(loader)
    assert pool.loaded == []
    for slug in ("a", "b", "a"):
        use(pool, slug)
    assert loader.loads == ["a", "b"]
    assert pool.loaded == ["a", "b"]


def test_the_least_recently_used_idle_model_makes_room(loader: Loader) -> None:
    pool = pool_of(loader, memory_bytes_max=20)
    for slug in ("a", "b", "a", "c"):
        use(pool, slug)
    assert pool.loaded == ["a", "c"]
    with pool.lease("a"):  # older, but in use
        use(pool, "c")
        use(pool, "b")
        assert pool.loaded == ["a", "b"]


def test_a_model_beyond_the_whole_budget_is_then_the_only_one(loader: Loader) -> None:
    pool = pool_of(loader, memory_bytes_max=20)
    for slug in ("a", "b", "huge"):
        use(pool, slug)
    assert pool.loaded == ["huge"]
    use(pool, "a")
    assert pool.loaded == ["a"]


def test_no_stream_of_newcomers_keeps_another_model_out(loader: Loader) -> None:
    """Jobs of `a` overlap without an end, and yet `b` gets its turn; then they go on."""
    pool = pool_of(loader, memory_bytes_max=10)
    order: list[str] = []
    loader.is_loading.clear()

    def job_of_b() -> None:
        with pool.lease("b"):
            order.append("b")

    def newcomer() -> None:
        with pool.lease("a"):
            order.append("newcomer of a")

    with ThreadPoolExecutor(2) as threads:
        with ExitStack() as first:
            first.enter_context(pool.lease("a"))
            waiting = threads.submit(job_of_b)
            while not pool.is_leaving("a"):
                assert not waiting.done()
            late = threads.submit(newcomer)
            assert pool.loaded == ["a"]
        waiting.result(TIMEOUT_S)
        late.result(TIMEOUT_S)
    assert order == ["b", "newcomer of a"]
    assert loader.loads == ["a", "b", "a"]


def test_other_models_are_lent_while_one_is_loading(loader: Loader) -> None:
    pool = pool_of(loader)
    use(pool, "a")
    loader.may_go_on.clear()
    loader.is_loading.clear()
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(use, pool, "b")
        assert loader.is_loading.wait(TIMEOUT_S)
        use(pool, "a")
        assert not loading.done()
        loader.may_go_on.set()
        loading.result(TIMEOUT_S)


def test_many_jobs_load_a_model_once(loader: Loader) -> None:
    pool = pool_of(loader)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: use(pool, "a"), range(32)))
    assert loader.loads == ["a"]


def test_a_model_that_cannot_be_loaded_fails_its_job_and_is_tried_again() -> None:
    loads: list[str] = []

    def load(slug: str) -> Family:
        loads.append(slug)
        raise UnsupportedModel(f"{slug} is broken")

    pool = pool_of(load, memory_bytes_max=20)
    for _ in range(2):
        with pytest.raises(UnsupportedModel, match="a is broken"), pool.lease("a"):
            pass
    assert loads == ["a", "a"]
    assert pool.loaded == []


def test_threads_that_want_all_models_at_once_all_get_them(loader: Loader) -> None:
    pool = pool_of(loader, memory_bytes_max=20)
    with ThreadPoolExecutor(6) as threads:
        jobs = [threads.submit(use, pool, "abc"[n % 3]) for n in range(120)]
        for job in jobs:
            job.result(TIMEOUT_S)
    assert len(pool.loaded) <= 2


def test_two_models_that_wait_for_room_do_not_wait_for_each_other(loader: Loader) -> None:
    """What another newcomer will take, once it is its turn, is no room taken yet."""
    pool = pool_of(loader, memory_bytes_max=10)
    with ThreadPoolExecutor(2) as threads:
        with pool.lease("a"):
            jobs = [threads.submit(use, pool, slug) for slug in ("b", "c")]
            while pool.num_waiting < len(jobs):
                assert not any(job.done() for job in jobs)
        for job in jobs:
            job.result(TIMEOUT_S)
    assert loader.loads[0] == "a"
    assert sorted(loader.loads[1:]) == ["b", "c"]


def test_a_model_that_cannot_be_measured_keeps_nobody_waiting(loader: Loader) -> None:
    families: list[Family] = []

    def measure(family: Family) -> int:
        families.append(family)
        if len(families) == 1:
            raise RuntimeError("cannot be measured")
        return 10

    pool = ModelPool(
        SIZES,
        load=loader,
        measure=measure,
        estimate=SIZES.__getitem__,
        unload=lambda family: None,
    )
    with pytest.raises(RuntimeError, match="cannot be measured"), pool.lease("a"):
        pass
    use(pool, "a")
    assert pool.loaded == ["a"]
