"""The eviction policies in plain Python: what each one's SQL in `cache.policies` says.

For replays of logs without a database; tests/conformance holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cache.settings import Policy


@dataclass(slots=True, kw_only=True)
class RankedState:
    """A state's row as eviction sees it; counters change with its uses."""

    id: int
    num_bytes: int
    seconds_per_step: float
    #: Its scope's.
    num_inference_steps: int
    #: Seconds on any clock, as the other instants.
    created_at: float
    last_used_at: float
    #: The namespace's when this was stored or last used.
    inflation: float
    uses: int = 0
    steps_saved: int = 0

    def count_use(self, steps: int, *, at: float, inflation: float) -> None:
        """Count one use, as `cache.uses` does."""
        self.uses += 1
        self.steps_saved += steps
        self.last_used_at = max(self.last_used_at, at)
        self.inflation = max(self.inflation, inflation)


def _lcbfu(state: RankedState) -> float:
    return state.steps_saved * state.seconds_per_step / state.num_bytes


def _lcbfu_aged(state: RankedState) -> float:
    steps = (state.uses + 1) * state.num_inference_steps
    return state.inflation + steps * state.seconds_per_step / state.num_bytes


#: The smallest score goes first, then the smallest id.
SCORES: Final[Mapping[Policy, Callable[[RankedState], float]]] = {
    Policy.LCBFU: _lcbfu,
    Policy.LCBFU_AGED: _lcbfu_aged,
    Policy.LRU: lambda state: state.last_used_at,
    Policy.LFU: lambda state: float(state.uses),
    Policy.FIFO: lambda state: state.created_at,
}
