"""Whether many small scopes cost a large one's lookups anything.

`python -m benchmarks.lookup --small-scopes 3000 --rows 20000`: lookups in a scope with an index,
first alone, then beside so many scopes of a few rows, then with indexes for some of those too,
each of which every lookup's planner has to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from benchmarks.lookup.database import Database, fill, register_scopes
from benchmarks.lookup.exact import Answer, exact_answers
from benchmarks.lookup.measure import Query, figures, measure, queries_of
from benchmarks.lookup.vectors import Prompts, make_kept
from cache.entry import Sharing
from cache.nearest_index import maintain
from cache.settings import CacheSettings
from migrations import migrate

ROWS_OF_SMALL: Final = 20
NUM_INDEXED: Final = 100  # small scopes that get an index in the end
ROWS_OF_INDEXED: Final = 100


def beside_small_scopes(
    database: Database, settings: CacheSettings, cached: Prompts, queries: Prompts, *, num: int
) -> list[dict[str, Any]]:
    """Figures of the large scope's lookups: alone, beside `num` small ones, and with indexes."""
    migrate.upgrade(database.url)
    large = register_scopes(database, cached.vectors.shape[1], Sharing.NAMESPACE, num=1)[0]
    stream, asked = _in_one_scope(cached), _in_one_scope(queries)
    exact = exact_answers(stream, make_kept(len(stream)), asked, Sharing.NAMESPACE)
    wanted = queries_of(asked, [large])
    _grow(database, settings, stream, num=1)
    rows = [_figures("alone", settings, wanted, exact)]
    stream = _joined(stream, cached, np.repeat(np.arange(1, num + 1), ROWS_OF_SMALL))
    _grow(database, settings, stream, num=num + 1)
    rows.append(_figures(f"beside {num} scopes", settings, wanted, exact))
    stream = _joined(stream, cached, np.repeat(np.arange(1, NUM_INDEXED + 1), ROWS_OF_INDEXED))
    few = settings.model_copy(update={"cache_index_rows_min": ROWS_OF_INDEXED})
    _grow(database, few, stream, num=num + 1)
    rows.append(_figures(f"{NUM_INDEXED} with an index", settings, wanted, exact))
    return rows


def _figures(
    name: str, settings: CacheSettings, queries: Sequence[Query], exact: Sequence[Answer]
) -> dict[str, Any]:
    return {"state": name, **figures(measure(settings, queries), exact)}


def _grow(database: Database, settings: CacheSettings, stream: Prompts, *, num: int) -> None:
    """Put in what is not there yet, and have beat's maintenance run."""
    scopes = register_scopes(database, stream.vectors.shape[1], Sharing.NAMESPACE, num=num)
    fill(database, stream, make_kept(len(stream)), [scope.id for scope in scopes])
    maintain(settings)


def _in_one_scope(prompts: Prompts) -> Prompts:
    return replace(prompts, scopes=np.zeros_like(prompts.scopes))


def _joined(stream: Prompts, cached: Prompts, scopes: Any) -> Prompts:
    """The stream and, after it, the first prompts again, in other scopes."""
    rows = np.arange(len(scopes)) % len(cached)
    return Prompts(
        vectors=np.concatenate([stream.vectors, cached.vectors[rows]]),
        users=np.concatenate([stream.users, cached.users[rows]]),
        scopes=np.concatenate([stream.scopes, scopes.astype(np.int32)]),
    )
