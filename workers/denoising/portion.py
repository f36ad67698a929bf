"""How much side work (encoding, decoding) fits between two steps."""

from __future__ import annotations

NEWEST_WEIGHT = 0.3  # in the moving average of an item's seconds


class Portion:
    """As many items as take about one step's time, by measurement; at least one."""

    def __init__(self, *, size_max: int) -> None:
        self._size_max = size_max
        self._seconds_per_item: float | None = None

    def size(self, step_s: float | None) -> int:
        """Items to take on now; None where no step waits, so that nothing can be stalled."""
        if step_s is None:
            return self._size_max
        if self._seconds_per_item is None:
            return 1
        return max(1, min(self._size_max, int(step_s / self._seconds_per_item)))

    def note(self, num_items: int, seconds: float) -> None:
        """Learn from items that were done together."""
        newest = max(seconds, 1e-9) / num_items
        mean = newest if self._seconds_per_item is None else self._seconds_per_item
        self._seconds_per_item = NEWEST_WEIGHT * newest + (1 - NEWEST_WEIGHT) * mean
