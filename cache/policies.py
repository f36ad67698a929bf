"""Which states go first: eviction policies as data, and the statement that chooses victims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import TextClause, text

from cache.settings import Policy


class Rule(NamedTuple):
    """A policy as SQL over states `s`, uses `u` and scopes `c`: the smallest score goes first."""

    score: str
    #: Unused states within the grace time go last: without this, LCBFU evicts what was just
    #: stored before it can be used.
    spares_young: bool = False
    #: Whether the score of what was evicted becomes the namespace's inflation.
    inflates: bool = False


# GPU seconds by byte, so that states of different scopes compare.
_SECONDS_PER_STEP_AND_BYTE: Final = "COALESCE(c.seconds_per_step, 1) / s.num_bytes"

RULES: Final[Mapping[Policy, Rule]] = {
    # NIRVANA (NSDI'24): least computationally beneficial and frequently used, uses x k.
    Policy.LCBFU: Rule(f"u.benefit * {_SECONDS_PER_STEP_AND_BYTE}", spares_young=True),
    # One use more than it had, each worth its job, on top of the inflation at its last use
    # (Cherkasova's Greedy-Dual-Size-Frequency): what was popular once is overtaken in the end.
    # A use is not weighed by its own k: that saves less on real logs (docs/evaluation.md), since a
    # state of a large k is asked for by fewer prompts. Scopes still compare by the time they save.
    Policy.LCBFU_AGED: Rule(
        f"u.inflation + (u.uses + 1) * c.num_inference_steps * {_SECONDS_PER_STEP_AND_BYTE}",
        inflates=True,
    ),
    Policy.LRU: Rule("extract(epoch FROM u.last_used_at)"),
    Policy.LFU: Rule("u.uses"),
    Policy.FIFO: Rule("extract(epoch FROM s.created_at)"),
}

# The worst states of a namespace: each of those before which less than the excess is freed. Excess
# and victims are of one snapshot, so that two runs at once choose the same and not twice as many.
_CHOOSE_VICTIMS = """
    WITH live AS (
         SELECT sum(s.num_bytes) - :capacity_bytes AS excess, min(s.num_bytes) AS smallest
           FROM cached_states s
           JOIN cached_prompts p ON p.id = s.prompt_id
           JOIN scopes c ON c.id = p.scope_id
          WHERE c.namespace = :namespace
    ), worst AS (
         SELECT s.id, s.num_bytes,
                {is_spared} AS is_spared,
                CAST({score} AS float8) AS score
           FROM cached_states s
           JOIN state_uses u ON u.state_id = s.id
           JOIN cached_prompts p ON p.id = s.prompt_id
           JOIN scopes c ON c.id = p.scope_id
          WHERE c.namespace = :namespace
          ORDER BY is_spared, score, s.id
          LIMIT (SELECT CAST(LEAST(:limit, GREATEST(0, COALESCE(ceil(excess / smallest), 0)))
                             AS bigint)
                   FROM live)
    ), summed AS (
         SELECT id, score,
                sum(num_bytes) OVER (ORDER BY is_spared, score, id) - num_bytes AS freed_before
           FROM worst
    )
    SELECT id, score
      FROM summed
     WHERE freed_before < (SELECT excess FROM live)
     ORDER BY freed_before
"""

_IS_YOUNG: Final = "(u.uses = 0 AND s.created_at > :young_since)"


def choose_victims(policy: Policy) -> TextClause:
    """SQL for (id, score) of the states to evict, the worst first.

    Binds :namespace, :capacity_bytes, :limit and, where the policy spares the young, :young_since.
    """
    rule = RULES[policy]
    is_spared = _IS_YOUNG if rule.spares_young else "false"
    return text(_CHOOSE_VICTIMS.format(score=rule.score, is_spared=is_spared))
