"""Writers, readers, evictions and sweeps at work on one cache together, and what they leave."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import torch
from sqlalchemy import Engine, text

from cache import live_bytes
from cache.approximate import ApproximateCache
from cache.database import connect, transaction
from cache.entry import ScopeSpec, StateKind
from cache.eviction import evict
from cache.lookup import Found
from cache.objects import ObjectStore
from cache.settings import CacheSettings, Policy
from cache.store import NewEntry, NewState
from cache.sweep import SweepReport, sweep

Action: TypeAlias = Callable[[random.Random], None]

NUM_WRITERS: Final = 8
NUM_READERS: Final = 8
NUM_USERS: Final = 4
ROUNDS_MIN: Final = 3  # of each thread, on a machine however slow
DIMENSION: Final = 8
SHAPE: Final = (4, 4, 4)
K_SET: Final = (5, 10, 15, 20, 25)
CAPACITY_STATES: Final = 60
ROWS_AGE_S: Final = 3_600.0  # so that sweeps look at every row, also when its state just goes
PAUSE_S: Final = 0.05

_SIZE: Final = text("SELECT min(num_bytes) FROM cached_states")
_STATES: Final = text("""
    SELECT u.state_id AS id, u.num_bytes, u.priority,
           u.benefit * COALESCE(c.seconds_per_step, 1) / u.num_bytes AS benefit
      FROM state_uses u
      JOIN scopes c ON c.id = u.scope_id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done, and whether the cache is as it should be."""

    #: hit, miss_<reason>, stored, store_failed, uses_dropped.
    counts: dict[str, int]
    errors: list[BaseException]
    capacity_bytes: int
    live_bytes: int
    #: Evicted at the end, from what was held then.
    num_last_victims: int
    #: Whether what stayed are the states with the highest scores.
    is_best_kept: bool
    #: At the end, of everything.
    swept: SweepReport


def run(
    settings: CacheSettings,
    objects: ObjectStore,
    *,
    seconds: float,
    policy: Policy,
    sweep_grace_s: float,
) -> Outcome:
    """Work for so long on a migrated, empty database and an empty bucket.

    The shorter the grace, the more objects the sweeps look at; a store that takes longer than half
    of it to write its objects gives up.
    """
    settings = settings.model_copy(
        update={
            "cache_policy": policy,
            "cache_evict_grace_s": 0.0,
            "cache_evict_batch": 20,
            "cache_budget_s": 30.0,
            "cache_sweep_grace_s": sweep_grace_s,
            "cache_uses_batch": 16,
            "cache_uses_flush_s": 0.1,
        }
    )
    with _opened(settings, objects) as (cache, engine):
        settings = settings.model_copy(
            update={"cache_capacity_bytes": CAPACITY_STATES * _state_bytes(cache, engine)}
        )
        work = _Work(cache=cache, engine=engine, objects=objects, settings=settings)
        errors = work.run(seconds)
        cache.flush()
        return _outcome(work, errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    cache: ApproximateCache
    engine: Engine
    objects: ObjectStore
    settings: CacheSettings

    def run(self, seconds: float) -> list[BaseException]:
        """Run all threads, and store on until there is something to evict."""
        errors: list[BaseException] = []
        for seed in range(NUM_USERS):  # else readers might meet nothing
            self.write(random.Random(seed))
        ends_at = time.monotonic() + seconds
        work: list[Action] = [self.evict, self.evict, self.sweep]
        work += [self.write] * NUM_WRITERS + [self.read] * NUM_READERS
        threads = [
            threading.Thread(target=_repeat, args=(action, ends_at, seed, errors))
            for seed, action in enumerate(work)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        chance = random.Random(len(threads))
        while not errors and _live_bytes(self.engine) <= self.settings.cache_capacity_bytes:
            self.write(chance)
        return errors

    def write(self, chance: random.Random) -> None:
        """Store a prompt's states, filled with their k; sometimes in place of the same prompt's."""
        states = tuple(
            NewState(kind=StateKind.INTERMEDIATE, k=k, latents=torch.full(SHAPE, float(k)))
            for k in K_SET
        )
        entry = NewEntry(
            owner=_user(chance),
            embedding=_near(chance),
            prompt_hash=str(chance.randrange(50)),
            source_job_id=None,
            states=states,
            seconds_per_step=0.05,
        )
        self.cache.store(_SPEC, entry, is_refresh=chance.random() < 0.2)

    def read(self, chance: random.Random) -> None:
        """Look up as a user, and count the use of what was found whole."""
        found = self.cache.find(_SPEC, _near(chance), owner=_user(chance))
        if isinstance(found, Found):
            assert torch.equal(found.latents, torch.full(SHAPE, float(found.hit.k)))
            self.cache.count_use(found.hit, found.hit.k)

    def evict(self, _: random.Random) -> None:
        """As beat does, only more often."""
        evict(self.engine, self.objects, self.settings, now=datetime.now(UTC))
        time.sleep(PAUSE_S)

    def sweep(self, _: random.Random) -> None:
        """Repair what is older than the grace time: nothing, if all is well."""
        report = sweep(
            self.engine,
            self.objects,
            now=datetime.now(UTC),
            repair=True,
            grace_s=self.settings.cache_sweep_grace_s,
        )
        assert report.rows_without_objects == report.truncated_objects == 0, report
        assert report.scopes_miscounted == 0, report
        time.sleep(PAUSE_S)


_SPEC: Final = ScopeSpec(
    namespace="together",
    model="tiny",
    revision="1",
    scheduler="ddim",
    scheduler_config="c0",
    num_inference_steps=50,
    height=32,
    width=32,
    latent_dtype="float32",
    embedder="random",
    embedding_dimension=DIMENSION,
    latent_shape=SHAPE,
)


def _outcome(work: _Work, errors: list[BaseException]) -> Outcome:
    """Evict a last time, when all is quiet, and look at everything."""
    with transaction(work.engine) as connection:
        held = connection.execute(_STATES).all()
    now = datetime.now(UTC)
    last = evict(work.engine, work.objects, work.settings, now=now)
    with transaction(work.engine) as connection:
        kept = {row.id for row in connection.execute(_STATES)}
    capacity_bytes = work.settings.cache_capacity_bytes
    in_a_minute = now + timedelta(minutes=1)
    return Outcome(
        counts=dict(work.cache.counts()),
        errors=errors,
        capacity_bytes=capacity_bytes,
        live_bytes=_live_bytes(work.engine),
        num_last_victims=last.evicted_states,
        is_best_kept=kept == _best(held, capacity_bytes, work.settings.cache_policy),
        swept=sweep(work.engine, work.objects, now=in_a_minute, grace_s=0.0),
    )


def _live_bytes(engine: Engine) -> int:
    return sum(live_bytes.by_namespace(engine).values())


def _best(held: Sequence[Any], capacity_bytes: int, policy: Policy) -> set[int]:
    """Ids of the states that a plain sort would keep."""
    score = "priority" if policy is Policy.LCBFU_AGED else "benefit"
    worst_first = sorted(held, key=lambda state: (getattr(state, score), state.id))
    num_bytes = sum(state.num_bytes for state in held)
    for number, state in enumerate(worst_first):
        if num_bytes <= capacity_bytes:
            return {kept.id for kept in worst_first[number:]}
        num_bytes -= state.num_bytes
    return set()


def _repeat(
    action: Action,
    until: float,
    seed: int,
    errors: list[BaseException],
) -> None:
    chance = random.Random(seed)
    try:
        for number in itertools.count():
            if number >= ROUNDS_MIN and time.monotonic() >= until:
                break
            action(chance)
    except BaseException as error:  # noqa: BLE001  a thread's end: part of the outcome
        errors.append(error)


def _user(chance: random.Random) -> str:
    return f"user-{chance.randrange(NUM_USERS)}"


def _near(chance: random.Random) -> list[float]:
    """A vector whose cosine to others like it is mostly above the smallest threshold."""
    return [1.0, *(chance.uniform(-0.3, 0.3) for _ in range(DIMENSION - 1))]


def _state_bytes(cache: ApproximateCache, engine: Engine) -> int:
    """Length of one object, from a first prompt."""
    latents = torch.zeros(SHAPE)
    state = NewState(kind=StateKind.INTERMEDIATE, k=K_SET[0], latents=latents)
    entry = NewEntry(
        owner="", embedding=[1.0] * DIMENSION, prompt_hash="", source_job_id=None, states=(state,)
    )
    cache.store(_SPEC, entry)
    with transaction(engine) as connection:
        return int(connection.execute(_SIZE).scalar_one())


@contextmanager
def _opened(
    settings: CacheSettings, objects: ObjectStore
) -> Iterator[tuple[ApproximateCache, Engine]]:
    url, age = settings.database_url.get_secret_value(), timedelta(seconds=ROWS_AGE_S)
    engine = connect(url)
    cache = ApproximateCache(
        settings,
        objects,
        reader=connect(
            url,
            is_reader=True,
            pool_size=NUM_READERS,
            pool_timeout_s=settings.cache_budget_s,
        ),
        writer=connect(url, pool_timeout_s=settings.cache_budget_s),
        clock=lambda: datetime.now(UTC) - age,
    )
    try:
        yield cache, engine
    finally:
        cache.close()
        engine.dispose()
