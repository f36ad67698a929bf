"""How many threads torch uses on a CPU, by batch size, and for whom it keeps them.

torch's OpenMP keeps a team of threads for every thread that has ever called it with more than one,
as long as that thread lives. Once the teams together hold more threads than there are cores, no
team spins at its barriers any more, all go to sleep there, and the steps of a small model take
twice as long. So the engine's thread alone may keep a team: what else computes, runs apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Returned = TypeVar("Returned")


def run_apart(function: Callable[[], Returned]) -> Returned:
    """Call in a thread that ends with it, and its OpenMP team with the thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as executor:
        return executor.submit(function).result()


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
