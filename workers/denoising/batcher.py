"""Who steps together. Pure Python: no torch, no threads, no clock.

Each batch is the group of the oldest item in flight, filled with that group's next oldest. So
nobody waits behind a newcomer (only behind items that arrived before it), and newcomers take
the seats that would stay empty.

    arrivals, oldest first     a1 b1 a2 a3 b2      batch_size_max = 2
    batches                    [a1 a2] ... a1 leaves: the oldest is b1
                               [b1 b2] ... both leave
                               [a2 a3] ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from workers.denoising.errors import QueueFull


class Batchable(Protocol):
    """Something that steps, hashed by identity; items of equal group can share a forward pass."""

    @property
    def group(self) -> Hashable: ...


Item = TypeVar("Item", bound=Batchable)

NUM_FITS_TO_GROW = 256  # some seconds of steps


class Batcher(Generic[Item]):
    """The items in flight, by group, in order of arrival.

    At most `batch_size_max` step together, and at most `num_waiting_max` wait for their first step.
    """

    def __init__(self, *, batch_size_max: int, num_waiting_max: int) -> None:
        assert batch_size_max >= 1
        assert num_waiting_max >= 1
        self.batch_size_max = batch_size_max
        self.num_waiting_max = num_waiting_max
        self._groups: dict[Hashable, deque[Item]] = {}
        self._in_flight: dict[Item, None] = {}  # an ordered set, oldest first
        self._waiting: set[Item] = set()  # those that were never in a batch
        self._group_size_max: dict[Hashable, int] = {}  # below batch_size_max after halve()
        self._num_fits: dict[Hashable, int] = {}  # full batches of such a group since then

    def __len__(self) -> int:
        return len(self._in_flight)

    def __contains__(self, item: Item) -> bool:
        return item in self._in_flight

    def __iter__(self) -> Iterator[Item]:
        """All items, oldest first; a copy, so that items may be removed on the way."""
        return iter(list(self._in_flight))

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, item: Item) -> None:
        """Put the item behind all others. Raises QueueFull."""
        if self.num_waiting >= self.num_waiting_max:
            raise QueueFull(f"{self.num_waiting} jobs wait already, as many as the engine holds")
        assert item not in self._in_flight
        self._groups.setdefault(item.group, deque()).append(item)
        self._in_flight[item] = None
        self._waiting.add(item)

    def next_batch(self) -> list[Item]:
        """The oldest item and the next oldest of its group; empty when nothing is in flight."""
        if not self._in_flight:
            return []
        oldest = next(iter(self._in_flight))
        batch = list(islice(self._groups[oldest.group], self.size_max(oldest.group)))
        assert batch[0] is oldest
        self._waiting.difference_update(batch)
        return batch

    def size_max(self, group: Hashable) -> int:
        """How many of this group may step together."""
        return self._group_size_max.get(group, self.batch_size_max)

    def halve(self, batch: list[Item]) -> None:
        """After a batch that did not fit: half as many of its group from now on.

        Per group, because an image too large must not slow the small ones down.
        """
        assert len(batch) > 1
        self._group_size_max[batch[0].group] = len(batch) // 2
        self._num_fits[batch[0].group] = 0

    def note_fit(self, batch: list[Item]) -> None:
        """After a batch that fit: try twice as many, once NUM_FITS_TO_GROW full ones did.

        What took the memory may be gone; if not, the next attempt costs one failed pass.
        """
        group = batch[0].group
        if group not in self._group_size_max or len(batch) < self._group_size_max[group]:
            return
        self._num_fits[group] += 1
        if self._num_fits[group] == NUM_FITS_TO_GROW:
            self._num_fits[group] = 0
            self._group_size_max[group] = min(self.batch_size_max, 2 * self.size_max(group))

    def remove(self, item: Item) -> None:
        """Forget an item that has ended."""
        items = self._groups[item.group]
        items.remove(item)
        if not items:
            del self._groups[item.group]
        del self._in_flight[item]
        self._waiting.discard(item)

    def check(self) -> None:
        """Assert the invariants."""
        held = {item for items in self._groups.values() for item in items}
        assert held == set(self._in_flight)
        assert held >= self._waiting
        assert len(self._waiting) <= self.num_waiting_max
        for group, items in self._groups.items():
            assert items
            assert all(item.group == group for item in items)
            assert list(items) == [item for item in self if item.group == group]
