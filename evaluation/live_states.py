"""The states of one capacity pool during a replay, and which of them goes next."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

from cache.policies import RULES
from cache.ranking import SCORES, RankedState
from cache.settings import Policy

_REBUILD: Final = 4  # outdated heap entries by live state, before they are thrown out


class LiveStates:
    """States within a capacity in bytes, under one policy.

    Scores change only when a state is used, so a heap with outdated entries gives the same victims
    as sorting all states at every eviction, which is what the SQL does.
    """

    def __init__(self, policy: Policy, *, capacity_bytes: int, grace_s: float = 0.0) -> None:
        self._score = SCORES[policy]
        self._rule = RULES[policy]
        self._grace_s = grace_s
        self.capacity_bytes = capacity_bytes
        self._states: dict[int, RankedState] = {}
        self._worst_first: list[tuple[float, int]] = []
        #: Unused states of policies that spare them, the oldest first, until they have aged.
        self._young: deque[RankedState] = deque()
        self.num_bytes = 0
        self.num_bytes_max = 0
        self.inflation = 0.0

    def store(self, state: RankedState) -> None:
        """Add a state, whose `inflation` is set to the pool's."""
        state.inflation = self.inflation
        self._states[state.id] = state
        self.num_bytes += state.num_bytes
        if self._rule.spares_young and self._grace_s > 0:
            self._young.append(state)
        else:
            self._push(state)

    def use(self, state_id: int, steps: int, *, at: float) -> None:
        """Count a use."""
        state = self._states[state_id]
        state.count_use(steps, at=at, inflation=self.inflation)
        self._push(state)

    def discard(self, state_id: int) -> None:
        """Remove a state, whatever it is worth."""
        self.num_bytes -= self._states.pop(state_id).num_bytes

    def evict(self, *, now: float) -> list[int]:
        """Remove the worst until the pool is within its capacity; answers their ids, in order."""
        victims: list[int] = []
        self._let_age(now)
        while self.num_bytes > self.capacity_bytes:
            state = self._pop_worst()
            if self._rule.inflates:
                self.inflation = max(self.inflation, self._score(state))
            victims.append(state.id)
            self.num_bytes -= state.num_bytes
            del self._states[state.id]
        self.num_bytes_max = max(self.num_bytes_max, self.num_bytes)
        return victims

    def _push(self, state: RankedState) -> None:
        heapq.heappush(self._worst_first, (self._score(state), state.id))
        if len(self._worst_first) > _REBUILD * max(len(self._states), 1_000):
            self._worst_first = [entry for entry in self._worst_first if self._is_current(entry)]
            heapq.heapify(self._worst_first)

    def _pop_worst(self) -> RankedState:
        while self._worst_first:
            entry = heapq.heappop(self._worst_first)
            if self._is_current(entry):
                return self._states[entry[1]]
        return self._pop_young()

    def _is_current(self, entry: tuple[float, int]) -> bool:
        state = self._states.get(entry[1])
        return state is not None and self._score(state) == entry[0]

    def _let_age(self, now: float) -> None:
        """Move the unused states whose grace is over to the others."""
        while self._young and self._young[0].created_at <= now - self._grace_s:
            state = self._young.popleft()
            if state.id in self._states and state.uses == 0:
                self._push(state)

    def _pop_young(self) -> RankedState:
        """The oldest spared state: their scores are all 0, so the smallest id goes first."""
        while True:
            state = self._young.popleft()
            if state.id in self._states and state.uses == 0:
                return state
