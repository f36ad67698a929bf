"""The models of one device: loaded on first use, within a memory budget.

    jobs of a, b     lease(a) -> in use          lease(b): no room, a takes no new lease
    their threads    ...a's last job ends -> a is evicted -> b is loaded by the waiting thread

The engine's thread has no part in it: jobs of other models go on meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from workers.denoising.failures import release_memory
from workers.denoising.families.family import Family

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Place:
    """One model, loaded or not."""

    slug: str
    memory_bytes: int  # as estimated, then as measured
    family: Family | None = None
    num_leases: int = 0
    used_at: int = 0  # on the pool's own clock
    is_leaving: bool = False  # to be evicted: takes no new lease
    is_loading: bool = False  # from the first that asks for it on, while it waits for room too
    has_room: bool = False  # of the budget: while it is read into memory, and in it


class ModelPool:
    """Loads, lends and evicts models. Used by the threads of many jobs at once."""

    def __init__(
        self,
        slugs: Iterable[str],
        *,
        load: Callable[[str], Family],
        measure: Callable[[Family], int],
        estimate: Callable[[str], int],
        unload: Callable[[Family], None],
        memory_bytes_max: int | None = None,
    ) -> None:
        """`load` by slug, on the calling thread; `estimate` and `measure` a model's bytes.

        `unload` frees them, whoever still holds the model: those that it was lent to may.

        Without `memory_bytes_max` all models stay. A model that alone exceeds it is loaded all
        the same, and is then the only one.
        """
        self._load = load
        self._measure = measure
        self._unload = unload
        self._memory_bytes_max = memory_bytes_max
        self._places = {slug: _Place(slug, estimate(slug)) for slug in slugs}
        self._num_evicted = 0
        self._clock = itertools.count(1)
        self._changed = threading.Condition()  # guards all of the above
        self._loaders: deque[object] = deque()  # who waits for room, oldest first

    @property
    def loaded(self) -> list[str]:
        """Slugs of the models in memory."""
        with self._changed:
            return [place.slug for place in self._places.values() if place.family is not None]

    def peek(self, slug: str) -> Family | None:
        """The model if it is in memory; it may leave at any moment."""
        with self._changed:
            return self._places[slug].family

    @property
    def num_waiting(self) -> int:
        """Models that wait for room."""
        with self._changed:
            return len(self._loaders)

    def is_leaving(self, slug: str) -> bool:
        """Whether it takes no new lease, because another model needs its room."""
        with self._changed:
            return self._places[slug].is_leaving

    @contextmanager
    def lease(self, slug: str) -> Iterator[Family]:
        """Keep a model in memory inside the block, loading it first if need be.

        Waits while models in use leave no room: those then take no new jobs, so that a stream of
        them keeps nobody waiting. Raises what loading raises.
        """
        place = self._places[slug]
        family = self._acquire(place)
        try:
            yield family
        finally:
            with self._changed:
                place.num_leases -= 1
                place.used_at = next(self._clock)
                self._changed.notify_all()

    def _acquire(self, place: _Place) -> Family:
        with self._changed:
            while place.is_loading or place.is_leaving:
                self._changed.wait()
            if place.family is None:
                place.is_loading = True
            else:
                return self._lend(place, place.family)
        try:
            self._make_room(place)
            family = self._load(place.slug)
            memory_bytes = self._measure(family)
        except BaseException:
            release_memory()  # the parts that were read; before another takes their room
            with self._changed:
                place.is_loading = place.has_room = False
                self._changed.notify_all()
            raise
        with self._changed:
            place.family, place.memory_bytes = family, memory_bytes
            place.is_loading = False
            logger.info("model %s takes %d bytes", place.slug, place.memory_bytes)
            self._changed.notify_all()
            return self._lend(place, family)

    def _lend(self, place: _Place, family: Family) -> Family:
        place.num_leases += 1
        place.used_at = next(self._clock)
        return family

    def _make_room(self, newcomer: _Place) -> None:
        """Evict until the newcomer fits; wait for models in use, one newcomer after the other."""
        turn = object()
        with self._changed:
            before = self._num_evicted
            self._loaders.append(turn)
            try:
                while self._loaders[0] is not turn or not self._evict_for(newcomer):
                    self._changed.wait()
                newcomer.has_room = True
            finally:
                self._loaders.remove(turn)
                for place in self._places.values():
                    place.is_leaving = False
                self._changed.notify_all()
            is_anything_gone = self._num_evicted > before
        if is_anything_gone:
            release_memory()  # a model is full of cycles

    def _evict_for(self, newcomer: _Place) -> bool:
        """Whether the newcomer fits, after evicting what is idle and has to go."""
        if self._memory_bytes_max is None:
            return True
        # Not those that wait for room behind this one: each would wait for the other.
        others = [
            place for place in self._places.values() if place is not newcomer and place.has_room
        ]
        excess = newcomer.memory_bytes - self._memory_bytes_max
        excess += sum(place.memory_bytes for place in others)
        # Idle ones first, and of those the least recently used.
        others.sort(key=lambda place: (place.num_leases > 0 or place.is_loading, place.used_at))
        for place in others:
            place.is_leaving = excess > 0
            if not place.is_leaving:
                continue
            excess -= place.memory_bytes
            if not place.num_leases and not place.is_loading:
                self._evict(place)
        return not any(place.is_leaving for place in others)

    def _evict(self, place: _Place) -> None:
        logger.info("model %s leaves the memory", place.slug)
        assert place.family is not None
        self._unload(place.family)
        place.family, place.is_leaving, place.has_room = None, False, False
        self._num_evicted += 1
