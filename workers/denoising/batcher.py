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
from typing import Generic, Protocol, TypeVar

from workers.denoising.errors import QueueFull


class Batchable(Protocol):
    """Something that steps; items of equal group can share a forward pass."""

    @property
    def group(self) -> Hashable: ...


Item = TypeVar("Item", bound=Batchable)


class Batcher(Generic[Item]):
    """The items in flight, by group, in order of arrival.

    At most `batch_size_max` step together, and at most `num_waiting_max` wait for their first.
    """

    def __init__(self, *, batch_size_max: int, num_waiting_max: int) -> None:
        assert batch_size_max >= 1
        assert num_waiting_max >= 1
        self.batch_size_max = batch_size_max
        self.num_waiting_max = num_waiting_max
        self._groups: dict[Hashable, deque[Item]] = {}
        self._arrival: dict[int, int] = {}  # id(item) -> arrival number, of all in flight
        self._waiting: set[int] = set()  # id(item), of those that were never in a batch
        self._group_size_max: dict[Hashable, int] = {}  # below batch_size_max after halve()
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._arrival)

    def __contains__(self, item: Item) -> bool:
        return id(item) in self._arrival

    def __iter__(self) -> Iterator[Item]:
        """All items, in no order; a copy, so that items may be removed on the way."""
        return iter([item for group in self._groups.values() for item in group])

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, item: Item) -> None:
        """Put the item behind all others. Raises QueueFull."""
        if self.num_waiting >= self.num_waiting_max:
            raise QueueFull(f"{self.num_waiting} jobs wait already, as many as the engine holds")
        assert id(item) not in self._arrival
        self._groups.setdefault(item.group, deque()).append(item)
        self._arrival[id(item)] = self._num_arrived
        self._waiting.add(id(item))
        self._num_arrived += 1

    def next_batch(self) -> list[Item]:
        """The oldest item and the next oldest of its group; empty when nothing is in flight."""
        if not self._groups:
            return []
        group = min(self._groups.values(), key=lambda items: self._arrival[id(items[0])])
        size = self.size_max(group[0].group)
        batch = [item for item, _ in zip(group, range(size), strict=False)]
        self._waiting.difference_update(map(id, batch))
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

    def remove(self, item: Item) -> None:
        """Forget an item that has ended."""
        items = self._groups[item.group]
        items.remove(item)
        if not items:
            del self._groups[item.group]
        del self._arrival[id(item)]
        self._waiting.discard(id(item))

    def check(self) -> None:
        """Assert the invariants; for tests and for a suspicious operator."""
        held = {id(item) for item in self}
        assert held == set(self._arrival)
        assert held >= self._waiting
        assert len(self._waiting) <= self.num_waiting_max
        for group, items in self._groups.items():
            assert items
            assert all(item.group == group for item in items)
            arrivals = [self._arrival[id(item)] for item in items]
            assert arrivals == sorted(arrivals)
