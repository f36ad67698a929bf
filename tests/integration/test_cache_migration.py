"""States of an older schema get the priority and the counts that the code writes for new ones."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from cache.live_bytes import miscounted
from migrations import migrate
from tests.integration.cache_harness import insert, migrated, register, rows, use

PRIORITIES = """
    SELECT u.state_id, u.namespace, u.scope_id, u.num_bytes, u.priority
      FROM state_uses u
     ORDER BY u.state_id
"""


def test_old_states_have_their_priority_and_their_scopes_their_bytes(database_url: str) -> None:
    with migrated(database_url) as engine:
        fast, slow = register(engine, "one"), register(engine, "two", model="slow")
        register(engine, "three", model="unused")
        with engine.begin() as connection:
            connection.execute(text("UPDATE namespaces SET inflation = 2 WHERE namespace = 'one'"))
            connection.execute(
                text("UPDATE scopes SET seconds_per_step = 0.5 WHERE id = :id"), {"id": slow.id}
            )
        insert(engine, fast, [(5, 100), (10, 200)])
        insert(engine, slow, [(5, 300)])
        use(engine, rows(engine, "SELECT min(id) FROM cached_states")[0][0], 5, times=3)
        new = rows(engine, PRIORITIES)
        assert [row.priority for row in new] == [2 + 4 * 50 / 100, 2 + 50 / 200, 50 * 0.5 / 300]
        migrate.downgrade(database_url, "0006")
        assert rows(engine, "SELECT inflation FROM state_uses ORDER BY state_id") == [
            (2.0,),
            (2.0,),
            (0.0,),
        ]
        migrate.upgrade(database_url)
        old = rows(engine, PRIORITIES)
        assert [row[:4] for row in old] == [row[:4] for row in new]
        assert [row.priority for row in old] == pytest.approx([row.priority for row in new])
        held = rows(engine, "SELECT namespace, live_bytes FROM scopes ORDER BY id")
        assert held == [("one", 300), ("two", 300), ("three", 0)]
        assert miscounted(engine, limit=10) == []
