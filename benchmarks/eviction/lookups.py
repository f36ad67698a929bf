"""A client that looks up at a steady pace: `python -m benchmarks.eviction.lookups --rate N`.

Reads the database's address from its input; prints, for each lookup, when it began (on the system's
monotonic clock, which all processes share) and how many milliseconds it took, until its input ends.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Engine, text

from benchmarks.eviction.rows import NUM_STEPS, scope_of
from cache import index
from cache.database import connect, transaction
from cache.entry import Scope

NUM_QUERIES: Final = 2_000
NEIGHBOURS: Final = 10  # as the setting's default

# Rows that lie anywhere, found without reading all.
_SOME_PROMPTS: Final = text("""
    SELECT p.scope_id, p.owner, CAST(p.embedding AS text) AS embedding
      FROM cached_prompts p
     WHERE p.id = ANY(ARRAY(
           SELECT CAST(random() * (SELECT max(id) FROM cached_prompts) AS bigint)
             FROM generate_series(1, :num)))
     LIMIT :num
""")


def main() -> None:
    """Look up until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="lookups a second")
    rate = parser.parse_args().rate
    engine = connect(sys.stdin.readline().strip(), is_reader=True, pool_size=1)
    is_over = _end_of_input()
    queries = some_prompts(engine)
    scopes = {scope_id: scope_of(scope_id) for scope_id in {query.scope_id for query in queries}}
    started, number = time.monotonic(), 0
    while not is_over.is_set():
        query = queries[number % len(queries)]
        began, took = look_up(engine, scopes[query.scope_id], query)
        print(f"{began:.6f} {1e3 * took:.3f}", flush=True)
        number += 1
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
    engine.dispose()


def _end_of_input() -> threading.Event:
    is_over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=wait, daemon=True).start()
    return is_over


def some_prompts(engine: Engine) -> Sequence[Any]:
    """Prompts that are cached, to ask for again."""
    with transaction(engine) as connection:
        return connection.execute(_SOME_PROMPTS, {"num": NUM_QUERIES}).all()


def look_up(engine: Engine, scope: Scope, query: Any) -> tuple[float, float]:
    """When a lookup among the user's own states began, and the seconds it took."""
    began = time.monotonic()
    with transaction(engine) as connection:
        index.find(
            connection,
            scope,
            query.embedding,
            owner=query.owner,
            allowances=scope.selector.allowances(NUM_STEPS),
            neighbours=NEIGHBOURS,
            own_newest=0,  # shared by user
            now=datetime.now(UTC),
        )
    return began, time.monotonic() - began


if __name__ == "__main__":
    main()
