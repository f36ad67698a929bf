"""The match predictor in the product: fitted by beat, asked before the lookup, never trusted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from celery.contrib.testing.worker import start_worker
from kombu.entity import Queue
from sqlalchemy import Engine, text

from cache.approximate import ApproximateCache
from cache.database import transaction
from cache.entry import Miss, MissReason, embedding_text
from cache.errors import SettingsInvalid
from cache.forgotten import JobSubject, NamespaceSubject, Subject, UserSubject
from cache.lookup import Found
from cache.objects import S3Objects
from cache.predictor import Floats
from cache.predictor_rows import drop_predictors, lock_fitting
from cache.purge import purge_rows
from cache.refit import RefitReport, refit
from cache.settings import CacheSettings
from producer.queues import MAINTENANCE_QUEUE
from producer.settings import ProducerSettings
from tests.integration.cache_harness import (
    DIMENSION,
    QUERY,
    START,
    count,
    entry,
    migrated,
    rows,
    running_cache,
    spec,
)
from workers import beat_tasks
from workers.app import REFIT_TASK, build_app
from workers.io_process import io_process
from workers.process_settings import ProcessSettings
from workers.settings import WorkerSettings

NUM_PROMPTS = 200
UNLIKE = (0.0,) * (DIMENSION - 1) + (-1.0,)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with migrated(database_url) as engine:
        yield engine


@pytest.fixture
def objects(s3_url: str) -> Iterator[S3Objects]:
    with closing(S3Objects.from_url(s3_url)) as store:
        yield store


@pytest.fixture
def cache(database_url: str, engine: Engine, objects: S3Objects) -> Iterator[ApproximateCache]:
    with running_cache(
        database_url, objects, cache_sharing="namespace", cache_predictor="on"
    ) as cache:
        yield cache


def about_query(num: int = NUM_PROMPTS) -> Floats:
    noise = np.random.default_rng(0).normal(size=(num, DIMENSION)) * 0.15
    vectors: Floats = noise + np.asarray(QUERY)
    return vectors.astype(np.float32)


_INSERT_PROMPT = text("""
    INSERT INTO cached_prompts (scope_id, owner, is_shared, embedding, prompt_hash,
                                source_job_id, created_at)
    VALUES (:scope_id, 'ann', true, CAST(:embedding AS halfvec), :number, :job_id, :now)
""")


def fill(engine: Engine, cache: ApproximateCache, vectors: Floats, **changes: Any) -> None:
    """Prompts without states: what a predictor is fitted on."""
    scope = cache.scope(spec(**changes))
    prompts = [
        {
            "scope_id": scope.id,
            "embedding": embedding_text(vector, DIMENSION),
            "number": str(number),
            "job_id": f"job-{number}",
            "now": START,
        }
        for number, vector in enumerate(vectors)
    ]
    with transaction(engine) as connection:
        connection.execute(_INSERT_PROMPT, prompts)


def fitted(engine: Engine, **changes: Any) -> RefitReport:
    return refit(engine, now=START, prompts_min=NUM_PROMPTS, **changes)


def reason(cache: ApproximateCache, embedding: Any = UNLIKE) -> MissReason | int:
    outcome = cache.find(spec(), embedding)
    return outcome.hit.k if isinstance(outcome, Found) else outcome.reason


def refresh(cache: ApproximateCache) -> None:
    """What its thread does some time."""
    assert cache._predictors is not None
    cache._predictors.refresh()


def test_what_is_unlike_the_cached_prompts_goes_to_noise_without_a_lookup(
    engine: Engine, cache: ApproximateCache
) -> None:
    fill(engine, cache, about_query())
    cache.store(spec(), entry())
    assert reason(cache) is MissReason.NONE_SIMILAR  # no predictor yet
    assert fitted(engine) == RefitReport(scopes_fitted=1, prompts_read=NUM_PROMPTS + 1)
    refresh(cache)
    assert cache.find(spec(), UNLIKE) == Miss(reason=MissReason.PREDICTED)
    assert reason(cache, QUERY) == 25
    assert cache.counts()["miss_predicted"] == 1


def test_a_scope_without_a_predictor_is_looked_up(engine: Engine, cache: ApproximateCache) -> None:
    fill(engine, cache, about_query())
    fitted(engine)
    cache.scope(spec(revision="2"))
    refresh(cache)
    other = cache.find(spec(revision="2"), UNLIKE)
    assert other == Miss(reason=MissReason.NONE_SIMILAR)


def test_a_scope_with_few_prompts_gets_none_and_one_that_shrank_loses_its_own(
    engine: Engine, cache: ApproximateCache
) -> None:
    fill(engine, cache, about_query(NUM_PROMPTS - 1))
    assert fitted(engine) == RefitReport()
    fill(engine, cache, about_query(1))
    assert fitted(engine).scopes_fitted == 1
    with transaction(engine) as connection:
        connection.execute(text("DELETE FROM cached_prompts WHERE prompt_hash = '7'"))
    assert fitted(engine) == RefitReport(predictors_dropped=1)
    refresh(cache)
    assert reason(cache) is MissReason.NONE_SIMILAR


def test_a_refit_follows_what_is_cached(engine: Engine, cache: ApproximateCache) -> None:
    fill(engine, cache, about_query())
    fitted(engine)
    fill(engine, cache, -about_query())
    assert reason(cache, tuple(-value for value in QUERY)) is MissReason.NONE_SIMILAR
    refresh(cache)
    assert reason(cache, tuple(-value for value in QUERY)) is MissReason.PREDICTED
    fitted(engine, prompts_max=NUM_PROMPTS)  # the newest
    refresh(cache)
    assert reason(cache, tuple(-value for value in QUERY)) is MissReason.NONE_SIMILAR
    assert reason(cache, QUERY) is MissReason.PREDICTED


DAMAGES = {
    "flipped bytes": (
        "weights = set_byte(weights, 1000, 255 - get_byte(weights, 1000))",
        "checksum",
    ),
    "no safetensors": ("weights = 'pickle', sha256 = encode(sha256('pickle'), 'hex')", "not_safe"),
    "another scope's": (
        "(weights, sha256) = (SELECT o.weights, o.sha256 FROM match_predictors o"
        " WHERE o.scope_id <> m.scope_id)",
        "other_scope",
    ),
}


@pytest.mark.parametrize(("damage", "refusal"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_and_foreign_weights_are_refused_counted_and_no_job_s_concern(
    engine: Engine, cache: ApproximateCache, damage: str, refusal: str
) -> None:
    fill(engine, cache, about_query(), revision="2")
    fill(engine, cache, about_query())
    cache.store(spec(), entry())
    assert fitted(engine).scopes_fitted == 2
    with transaction(engine) as connection:
        own = "m.scope_id = (SELECT max(scope_id) FROM match_predictors)"
        connection.execute(text(f"UPDATE match_predictors m SET {damage} WHERE {own}"))
    assert reason(cache) is MissReason.NONE_SIMILAR  # asked for: from now on it is refreshed
    refresh(cache)
    refresh(cache)  # the same again is not read again
    assert reason(cache) is MissReason.NONE_SIMILAR
    assert reason(cache, QUERY) == 25
    refused = {name: num for name, num in cache.counts().items() if name.startswith("predictor_")}
    assert list(refused.values()) == [1]
    assert next(iter(refused)).startswith(f"predictor_refused_{refusal}")


def test_a_database_that_is_away_leaves_the_predictor_that_is_known(
    engine: Engine, cache: ApproximateCache
) -> None:
    fill(engine, cache, about_query())
    fitted(engine)
    reason(cache)
    refresh(cache)
    with transaction(engine) as connection:
        connection.execute(text("ALTER TABLE match_predictors RENAME TO elsewhere"))
    with pytest.raises(Exception, match="match_predictors"):
        refresh(cache)  # its thread logs it
    assert reason(cache) is MissReason.PREDICTED


@pytest.mark.parametrize(
    "subject",
    [
        UserSubject(namespace="default", user="ann"),
        NamespaceSubject(namespace="default"),
        JobSubject(job_id="job-3"),  # type: ignore[arg-type]
    ],
)
def test_what_is_forgotten_takes_its_scope_s_predictor_along(
    engine: Engine, cache: ApproximateCache, subject: Subject
) -> None:
    fill(engine, cache, about_query())
    fitted(engine)
    assert count(engine, "match_predictors") == 1
    purge_rows(engine, subject, now=START)
    assert count(engine, "match_predictors") == 0


def test_dropping_waits_for_a_fit_under_way(engine: Engine, cache: ApproximateCache) -> None:
    fill(engine, cache, about_query())
    fitted(engine)
    ((scope_id,),) = rows(engine, "SELECT scope_id FROM match_predictors")
    with transaction(engine) as connection:
        lock_fitting(connection)
        dropping = threading.Thread(target=drop_predictors, args=(engine, [scope_id]))
        dropping.start()
        dropping.join(0.2)
        assert dropping.is_alive()
    dropping.join(10)
    assert count(engine, "match_predictors") == 0


def test_users_learn_nothing_of_each_other(database_url: str, engine: Engine) -> None:
    with pytest.raises(SettingsInvalid, match="NIRVANA_CACHE_SHARING=namespace"):
        CacheSettings.load(
            database_url=database_url, s3_url="http://a:b@c:1/d", cache_predictor="on"
        )
    # Rows that were stored under user sharing are in no predictor.
    with transaction(engine) as connection:
        connection.execute(text("UPDATE cached_prompts SET is_shared = false"))
    assert fitted(engine) == RefitReport()


def test_beat_fits_anew(database_url: str, broker_url: str, s3_url: str, engine: Engine) -> None:
    settings = ProcessSettings(
        producer=ProducerSettings(broker_url=broker_url),
        cache=CacheSettings.load(
            database_url=database_url,
            s3_url=s3_url,
            cache_sharing="namespace",
            cache_predictor="on",
            cache_budget_s=10,
        ),
        worker=WorkerSettings(),
    )
    app = build_app(settings.producer, settings.worker)
    assert app.conf.beat_schedule[REFIT_TASK]["schedule"] == settings.worker.refit_every_s
    with (
        closing(app),
        closing(ApproximateCache.open(settings.cache)) as cache,
        io_process(settings, app) as process,
    ):
        fill(engine, cache, about_query(1_000))
        beat_tasks.register(app, process)
        app.conf.task_queues = [Queue(MAINTENANCE_QUEUE)]  # type: ignore[no-untyped-call]
        app.tasks[REFIT_TASK].ignore_result = False
        sent = app.send_task(REFIT_TASK, queue=MAINTENANCE_QUEUE, ignore_result=False)
        with start_worker(app, pool="threads", perform_ping_check=False):
            report = sent.get(timeout=60)
        assert report == {"scopes_fitted": 1, "prompts_read": 1_000, "predictors_dropped": 0}
        assert reason(cache) in {MissReason.NONE_SIMILAR, MissReason.PREDICTED}
        refresh(cache)
        assert reason(cache) is MissReason.PREDICTED


def test_without_the_setting_beat_fits_nothing(
    database_url: str, broker_url: str, s3_url: str
) -> None:
    settings = ProcessSettings(
        producer=ProducerSettings(broker_url=broker_url),
        cache=CacheSettings.load(database_url=database_url, s3_url=s3_url),
        worker=WorkerSettings(),
    )
    app = build_app(settings.producer, settings.worker)
    with closing(app), io_process(settings, app) as process:
        assert beat_tasks.refit_now(process) == {}


def test_an_io_worker_that_cannot_fit_says_so_at_start(
    database_url: str, broker_url: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProcessSettings(
        producer=ProducerSettings(broker_url=broker_url),
        cache=CacheSettings.load(
            database_url=database_url,
            s3_url=s3_url,
            cache_sharing="namespace",
            cache_predictor="on",
        ),
        worker=WorkerSettings(),
    )
    monkeypatch.setattr("workers.io_process.find_spec", lambda name: None)
    app = build_app(settings.producer, settings.worker)
    with (
        closing(app),
        pytest.raises(SettingsInvalid, match="nirvana-serving\\[predictor\\]"),
        io_process(settings, app),
    ):
        pass
