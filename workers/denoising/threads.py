"""How many threads torch uses on a CPU, by batch size."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class ThreadTable:
    """The measured best number of threads for some batch sizes; used by one thread."""

    def __init__(self, num_threads: Mapping[int, int]) -> None:
        """`num_threads` by batch size, at least one entry: {1: 2, 8: 1}."""
        assert num_threads
        self._num_threads = dict(sorted(num_threads.items()))

    def __repr__(self) -> str:
        return f"ThreadTable({self._num_threads})"

    def for_batch(self, batch_size: int) -> int:
        """What was best at the largest measured batch size that is not above this one."""
        measured = [size for size in self._num_threads if size <= batch_size]
        return self._num_threads[max(measured, default=next(iter(self._num_threads)))]

    def apply(self, batch_size: int) -> None:
        """Set torch's number for what the calling thread does next; costs nothing if it is set."""
        num_threads = self.for_batch(batch_size)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
