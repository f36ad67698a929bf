"""Which states go first: eviction policies as data, and the statement that chooses victims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import TextClause, text

from cache.settings import Policy


class Rule(NamedTuple):
    """A policy as SQL over uses `u` and scopes `c`: the smallest score goes first."""

    score: str
    #: Unused states within the grace time go last: without this, LCBFU evicts what was just
    #: stored before it can be used.
    spares_young: bool = False
    #: Whether the priority of what was evicted becomes the namespace's inflation.
    inflates: bool = False


def priority(*, uses: str, num_bytes: str) -> str:
    """SQL for a state's priority under `lcbfu-aged`, over its scope `c` and namespace `n`.

    One use more than it had, each worth its job, on top of the inflation of now (Cherkasova's
    Greedy-Dual-Size-Frequency): what was popular once is overtaken in the end. Written with a
    state's row and with its uses, so that an index holds the order of eviction.

    A use is not weighed by its own k: that saves less on real logs (docs/evaluation.md), since a
    state of a large k is asked for by fewer prompts. Scopes still compare by the time they save.
    """
    gpu_time = f"({uses} + 1) * c.num_inference_steps * COALESCE(c.seconds_per_step, 1)"
    return f"n.inflation + {gpu_time} / {num_bytes}"


RULES: Final[Mapping[Policy, Rule]] = {
    # NIRVANA (NSDI'24): least computationally beneficial and frequently used, uses x k. In GPU
    # seconds by byte, so that states of different scopes compare.
    Policy.LCBFU: Rule(
        "u.benefit * COALESCE(c.seconds_per_step, 1) / u.num_bytes", spares_young=True
    ),
    Policy.LCBFU_AGED: Rule("u.priority", inflates=True),
    Policy.LRU: Rule("u.last_used_at"),
    Policy.LFU: Rule("u.uses"),
    # Ids are given out in the order of arrival.
    Policy.FIFO: Rule("u.state_id"),
}

# By the index on priority; by the primary key for FIFO; the others read the namespace once and
# keep the worst. Only LCBFU's score needs the scopes: for the others the planner drops the join.
_CHOOSE_VICTIMS = """
    SELECT u.state_id AS id, u.num_bytes, u.priority
      FROM state_uses u
      LEFT JOIN scopes c ON c.id = u.scope_id
     WHERE u.namespace = :namespace
     ORDER BY {order}, u.state_id
     LIMIT :limit
"""

# Unused, and so last used when it was stored.
_IS_YOUNG: Final = "(u.uses = 0 AND u.last_used_at > :young_since)"


def choose_victims(policy: Policy) -> TextClause:
    """SQL for (id, num_bytes, priority) of a namespace's states, the worst first.

    Binds :namespace, :limit and, where the policy spares the young, :young_since.
    """
    rule = RULES[policy]
    order = f"{_IS_YOUNG}, {rule.score}" if rule.spares_young else rule.score
    return text(_CHOOSE_VICTIMS.format(order=order))
