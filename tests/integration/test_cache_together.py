"""Eight writers, eight readers, evictions and sweeps at once: `benchmarks.eviction.concurrency`."""

from __future__ import annotations

from contextlib import closing

import pytest

from benchmarks.eviction.concurrency import run
from cache.objects import S3Address, S3Objects
from cache.settings import Policy
from migrations import migrate
from tests.integration.cache_harness import settings

SECONDS = 8.0
PATIENCE_S = 60.0
SWEEP_GRACE_S = 60.0  # a store may take half of it, also on a busy machine
# A time-out would be the machine's fault, an object that has just gone is nobody's.
WRONG = {
    "miss_internal",
    "miss_checksum_mismatch",
    "miss_object_truncated",
    "miss_latents_mismatch",
}


@pytest.mark.parametrize("policy", [Policy.LCBFU_AGED, Policy.LCBFU])
def test_nothing_is_lost_or_leaked_and_the_best_states_are_kept(
    database_url: str, s3_url: str, policy: Policy
) -> None:
    migrate.upgrade(database_url)
    with closing(S3Objects(S3Address.parse(s3_url), read_timeout_s=PATIENCE_S)) as objects:
        outcome = run(
            settings(database_url, s3_url),
            objects,
            seconds=SECONDS,
            policy=policy,
            sweep_grace_s=SWEEP_GRACE_S,
        )
    assert outcome.errors == []
    assert outcome.counts["hit"] > 0
    assert not WRONG & outcome.counts.keys(), outcome.counts
    assert outcome.num_last_victims > 0
    assert 0 < outcome.live_bytes <= outcome.capacity_bytes
    assert outcome.is_best_kept
    swept = outcome.swept
    assert (swept.objects_without_rows, swept.rows_without_objects) == (0, 0), swept
    assert (swept.truncated_objects, swept.prompts_without_states) == (0, 0), swept
    assert (swept.doomed_objects, swept.scopes_miscounted) == (0, 0), swept
