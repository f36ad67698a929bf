"""Rows of the cache at full size, made with NumPy and loaded by COPY.

Three scopes of unequal size and speed share a namespace; users have between one prompt and some
hundreds (log-normal, eleven at the mean, as in the real logs). States of a prompt are stored
together, a fifth of them were used since, and prompts are scattered over all ages, so that the next
victims lie anywhere in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, TypeAlias

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, ForeignKeyConstraint, UniqueConstraint, text
from sqlalchemy.schema import AddConstraint, CreateIndex, DropConstraint, DropIndex

from cache import scopes, tables
from cache.database import transaction
from cache.entry import Scope, ScopeSpec, Sharing, StateKind

Column: TypeAlias = NDArray[Any]

NAMESPACE: Final = "benchmark"
DIMENSION: Final = 384
NUM_STEPS: Final = 100
K_SET: Final = (10, 20, 30, 40, 50)  # the paper's shares of N, all with two digits
STATE_BYTES: Final = 32_856  # float16 latents of 4 x 64 x 64, and safetensors' header
SECONDS_PER_STEP: Final = (0.05, 0.04, 0.11)
SHARE_OF_SCOPE: Final = (0.7, 0.2, 0.1)
PROMPTS_PER_USER: Final = 11
SIGMA: Final = 1.3  # of the logarithm of the prompts that a user has
CHUNK: Final = 20_000  # prompts of one COPY
SPAN_S: Final = 30 * 86_400  # the oldest prompt's age
USED_SHARE: Final = 0.2
INFLATION_MAX: Final = 100  # in uses of a state
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's

_PROMPT_COLUMNS: Final = (
    "id, scope_id, owner, is_shared, embedding, prompt_hash, source_job_id, created_at"
)
_STATE_COLUMNS: Final = "id, prompt_id, kind, k, num_bytes, key, sha256, created_at"
_USE_COLUMNS: Final = (
    "state_id, namespace, scope_id, num_bytes, uses, steps_saved, priority, last_used_at"
)
_COUNT_BYTES: Final = text("""
    UPDATE scopes c
       SET live_bytes = held.num_bytes
      FROM (SELECT scope_id, sum(num_bytes) AS num_bytes FROM state_uses GROUP BY scope_id) held
     WHERE c.id = held.scope_id
""")
_LOADED: Final = (tables.cached_prompts, tables.cached_states, tables.state_uses)


def register(engine: Engine) -> list[Scope]:
    """The benchmark's scopes, with their measured speeds."""
    with transaction(engine) as connection:
        found = [
            scopes.register(
                connection,
                _spec(number),
                sharing=Sharing.USER,
                state_kind=StateKind.INTERMEDIATE,
            )
            for number in range(len(SHARE_OF_SCOPE))
        ]
        connection.execute(
            text("UPDATE scopes SET seconds_per_step = :seconds WHERE id = :scope_id"),
            [
                {"scope_id": scope.id, "seconds": seconds}
                for scope, seconds in zip(found, SECONDS_PER_STEP, strict=True)
            ],
        )
    return found


def scope_of(scope_id: int) -> Scope:
    """The registered scope of an id, as a lookup needs it."""
    return Scope(
        id=scope_id, spec=_spec(0), sharing=Sharing.USER, state_kind=StateKind.INTERMEDIATE
    )


def load(engine: Engine, scope_ids: Sequence[int], num_states: int, *, seed: int) -> int:
    """Add prompts until there are `num_states` states; answers how many states were added."""
    with transaction(engine) as connection:
        held, newest = connection.execute(
            text("SELECT (SELECT count(*) FROM state_uses), (SELECT max(id) FROM cached_prompts)")
        ).one()
        num_prompts = math.ceil((num_states - int(held)) / len(K_SET))
        if num_prompts <= 0:
            return 0
        with _bare_tables(connection) if not held else nullcontext():
            _copy_all(connection, scope_ids, newest or 0, num_prompts, seed)
    return num_prompts * len(K_SET)


def _spec(number: int) -> ScopeSpec:
    return ScopeSpec(
        namespace=NAMESPACE,
        model=f"model-{number}",
        revision="1",
        scheduler="ddim",
        scheduler_config="c0",
        num_inference_steps=NUM_STEPS,
        height=512,
        width=512,
        latent_dtype="float16",
        embedder="random",
        embedding_dimension=DIMENSION,
        latent_shape=(4, 64, 64),
    )


@contextmanager
def _bare_tables(connection: Connection) -> Iterator[None]:
    """Load without indexes and constraints, and make them afterwards: many times faster."""
    constraints = [
        constraint
        for table in _LOADED
        for constraint in table.constraints
        if isinstance(constraint, ForeignKeyConstraint | UniqueConstraint)
    ]
    indexes = [index for table in _LOADED for index in table.indexes]
    for constraint in constraints:
        connection.execute(DropConstraint(constraint))
    for index in indexes:
        connection.execute(DropIndex(index))
    yield
    connection.execute(text("SET LOCAL maintenance_work_mem = '1GB'"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    for index in indexes:
        connection.execute(CreateIndex(index))
    for constraint in constraints:
        connection.execute(AddConstraint(constraint))


def _copy_all(
    connection: Connection, scope_ids: Sequence[int], newest: int, num_prompts: int, seed: int
) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    rng = np.random.default_rng([seed, newest])
    owners = _owners(rng, num_prompts)
    for start in range(0, num_prompts, CHUNK):
        chunk = _Chunk.draw(rng, scope_ids, newest + 1 + start, owners[start : start + CHUNK])
        _copy(connection, f"cached_prompts ({_PROMPT_COLUMNS})", chunk.prompts(rng))
        _copy(connection, f"cached_states ({_STATE_COLUMNS})", chunk.states(rng))
        _copy(connection, f"state_uses ({_USE_COLUMNS})", chunk.uses(rng))
    connection.execute(_COUNT_BYTES)
    for table in (tables.cached_prompts, tables.cached_states):
        sequence = f"pg_get_serial_sequence('{table.name}', 'id')"
        connection.execute(text(f"SELECT setval({sequence}, (SELECT max(id) FROM {table.name}))"))


def _owners(rng: np.random.Generator, num_prompts: int) -> Column:
    """Each prompt's user."""
    num_users = num_prompts // PROMPTS_PER_USER + 1
    sizes = rng.lognormal(math.log(PROMPTS_PER_USER) - SIGMA**2 / 2, SIGMA, num_users)
    users = np.repeat(np.arange(num_users), np.ceil(sizes).astype(int))
    names = np.char.mod("u%07d", np.resize(rng.permutation(users), num_prompts))
    return names.astype("S8")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Some prompts; their states are numbered after them."""

    ids: Column
    #: Place in `SECONDS_PER_STEP`, and the row's id.
    scope: Column
    scope_id: Column
    owners: Column
    #: 0 is now, 1 the oldest.
    age: Column
    created_at: Column

    @classmethod
    def draw(
        cls, rng: np.random.Generator, scope_ids: Sequence[int], first_id: int, owners: Column
    ) -> Self:
        """The next prompts, of these owners."""
        scope = rng.choice(len(scope_ids), size=len(owners), p=SHARE_OF_SCOPE)
        age = rng.random(len(owners))
        now_us = (datetime.now(UTC) - _EPOCH) / timedelta(microseconds=1)
        return cls(
            ids=np.arange(first_id, first_id + len(owners)),
            scope=scope,
            scope_id=np.asarray(scope_ids)[scope],
            owners=owners,
            age=age,
            created_at=now_us - age * SPAN_S * 1e6,
        )

    def prompts(self, rng: np.random.Generator) -> list[Column]:
        num = len(self.ids)
        return [
            _int8(self.ids),
            _int8(self.scope_id),
            self.owners,
            np.zeros(num, "u1"),  # not shared
            _halfvecs(rng, num),
            _hex(rng, num, 32),
            _hex(rng, num, 18),
            _int8(self.created_at),
        ]

    def states(self, rng: np.random.Generator) -> list[Column]:
        num = self.num_states
        scope_folders = np.char.mod("states/%03d/", self.scope_id).astype("S11")
        folders = np.char.add(scope_folders, _hex(rng, len(self.ids), 16))
        names = np.char.mod("/intermediate-%d.safetensors", self._of_states(K_SET))
        return [
            _int8(self.state_ids),
            _int8(self._of_prompts(self.ids)),
            np.full(num, b"intermediate"),
            self._of_states(K_SET).astype(">i4"),
            _int8(np.full(num, STATE_BYTES)),
            np.char.add(self._of_prompts(folders), names.astype("S28")),
            _hex(rng, num, 32),
            _int8(self._of_prompts(self.created_at)),
        ]

    def uses(self, rng: np.random.Generator) -> list[Column]:
        num = self.num_states
        uses = rng.geometric(0.3, num) * (rng.random(num) < USED_SHARE)
        weight = NUM_STEPS * np.asarray(SECONDS_PER_STEP) / STATE_BYTES
        inflation = (1 - self.age) * INFLATION_MAX * weight[0]
        priority = self._of_prompts(inflation) + (uses + 1) * self._of_prompts(weight[self.scope])
        return [
            _int8(self.state_ids),
            np.full(num, NAMESPACE.encode()),
            _int8(self._of_prompts(self.scope_id)),
            _int8(np.full(num, STATE_BYTES)),
            _int8(uses),
            _int8(uses * self._of_states(K_SET)),
            priority.astype(">f8"),
            _int8(self._of_prompts(self.created_at)),
        ]

    @property
    def num_states(self) -> int:
        return len(self.ids) * len(K_SET)

    @property
    def state_ids(self) -> Column:
        return self._of_prompts(self.ids) * len(K_SET) + self._of_states(range(len(K_SET)))

    def _of_prompts(self, values: Column) -> Column:
        return np.repeat(values, len(K_SET))

    def _of_states(self, values: Sequence[int]) -> Column:
        return np.tile(np.asarray(values), len(self.ids))


def _int8(values: Column) -> Column:
    return values.astype(">i8")


def _hex(rng: np.random.Generator, num: int, num_bytes: int) -> Column:
    digits = rng.bytes(num * num_bytes).hex().encode()
    return np.frombuffer(digits, f"S{2 * num_bytes}")


def _halfvecs(rng: np.random.Generator, num: int) -> Column:
    """Random directions [num, DIMENSION] as pgvector sends them: dimension, 0, half floats."""
    vectors = rng.standard_normal((num, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sent = np.zeros((num, DIMENSION + 2), ">u2")
    sent[:, 0] = DIMENSION
    sent[:, 2:] = vectors.astype(np.float16).view(np.uint16)
    return sent


def _copy(connection: Connection, target: str, columns: Sequence[Column]) -> None:
    """Send columns of one width each in PostgreSQL's binary format."""
    layout: list[tuple[Any, ...]] = [("num_fields", ">i2")]
    for n, column in enumerate(columns):
        layout += [(f"size{n}", ">i4"), (f"value{n}", column.dtype, column.shape[1:])]
    rows = np.empty(len(columns[0]), layout)
    rows["num_fields"] = len(columns)
    for n, column in enumerate(columns):
        rows[f"size{n}"] = column.nbytes // len(column)
        rows[f"value{n}"] = column
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with driver.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN (FORMAT binary)") as out:
        out.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff")
