"""`nirvana report`: what rows of jobs say about savings, on jobs whose sums are known."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine, text

from cache.database import connect
from cache.objects import S3Objects
from evaluation.costs import Prices
from evaluation.report.plots import report_plots
from evaluation.report.savings import Savings, read_savings
from fleet.cli import main
from migrations.migrate import upgrade
from producer.contract import CacheOutcome, GenerationJob, Status
from producer.result import CacheReport, JobResult, Steps, StoredImage
from workers.ledger import Ledger

N = 50


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    upgrade(database_url)
    connected = connect(database_url)
    yield connected
    connected.dispose()


def finish(
    engine: Engine,
    prompt: str,
    *,
    k: int = 0,
    source: uuid.UUID | None = None,
    status: Status = Status.SUCCEEDED,
    namespace: str = "default",
    at: datetime | None = None,
) -> uuid.UUID:
    """A job that has ended, at a time of the test's choice."""
    job_id = uuid.uuid4()
    job = GenerationJob(prompt=prompt, model="small", namespace=namespace)
    ledger = Ledger(engine, worker="one", lease_s=60, attempts_max=3)
    claim = ledger.claim(job_id, job, queue="generate.small.0", received_at=datetime.now(UTC))
    ledger.finish(
        claim,
        JobResult(
            job_id=str(job_id),
            status=status,
            attempt=claim.attempt,
            image=StoredImage(key=f"images/{job_id}.png", width=8, height=8, sha256=""),
            cache=CacheReport(
                outcome=CacheOutcome.HIT if k else CacheOutcome.MISS,
                k=k,
                similarity=0.9 if k else None,
                source_job_id=str(source) if source else None,
                reason=None if k else "none_similar",
            ),
            steps=Steps(asked=N, run=N - k),
        ),
    )
    if at is not None:
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE jobs SET finished_at = :at WHERE id = :id"), {"at": at, "id": job_id}
            )
    return job_id


def read(engine: Engine, **changes: Any) -> Savings:
    now = datetime.now(UTC)
    times: dict[str, Any] = {"since": now - timedelta(days=7), "until": now + timedelta(hours=1)}
    with engine.connect() as connection:
        return read_savings(connection, **{**times, **changes})


def test_sums_of_what_succeeded(engine: Engine) -> None:
    first = finish(engine, "a fox")
    finish(engine, "a red fox", k=25, source=first)
    finish(engine, "a blue fox", k=10, source=first)
    finish(engine, "lost", k=10, status=Status.FAILED)
    found = read(engine, prices=Prices(seconds_per_step=36.0, gpu_price_per_hour=2.0))
    assert (found.num_jobs, found.num_hits) == (3, 2)
    assert (found.steps_asked, found.steps_run) == (3 * N, 3 * N - 35)
    assert found.share_saved == pytest.approx(35 / 150)
    assert found.gpu_hours_saved == pytest.approx(0.35)
    assert found.money_saved == pytest.approx(0.7)
    assert found.hits_by_k == {10: 1, 25: 1}
    assert {(o.outcome, o.reason, o.num_jobs) for o in found.by_outcome} == {
        ("hit", None, 2),
        ("miss", "none_similar", 1),
    }
    assert [s.outcome for s in found.seconds] == ["hit", "miss"]
    assert [(p.prompt, p.source_prompt, p.k) for p in found.pairs] == [
        ("a red fox", "a fox", 25),
        ("a blue fox", "a fox", 10),
    ]


def test_a_time_and_a_namespace_are_told_apart(engine: Engine) -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    finish(engine, "a", at=noon)
    finish(engine, "b", at=noon + timedelta(hours=2, minutes=30))
    finish(engine, "c", namespace="other", at=noon + timedelta(hours=2))
    span = {"since": noon, "until": noon + timedelta(hours=3)}
    assert read(engine, **span).num_jobs == 3
    own = read(engine, **span, namespace="default")
    assert [(p.starts_at, p.num_jobs) for p in own.by_period] == [
        (noon, 1),
        (noon + timedelta(hours=2), 1),
    ]
    assert read(engine, since=noon, until=noon + timedelta(hours=1)).num_jobs == 1
    assert read(engine, since=noon - timedelta(days=1), until=noon).share_saved is None


def test_evictions_are_summed_by_the_hour(engine: Engine) -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO namespaces (namespace) VALUES ('a'), ('b')"))
        for namespace, hours, num_states in (("a", 0, 3), ("b", 0, 4), ("a", 2, 5), ("a", 9, 6)):
            connection.execute(
                text("INSERT INTO evictions VALUES (:namespace, :hour, :num_states, 100)"),
                {
                    "namespace": namespace,
                    "hour": noon + timedelta(hours=hours),
                    "num_states": num_states,
                },
            )
    span = {"since": noon, "until": noon + timedelta(hours=3)}
    found = read(engine, **span).evicted
    assert [(each.hour, each.num_states, each.num_bytes) for each in found] == [
        (noon, 7, 200),
        (noon + timedelta(hours=2), 5, 100),
    ]
    assert [each.num_states for each in read(engine, **span, namespace="b").evicted] == [4]
    assert [plot.name for plot in report_plots(read(engine, **span))] == ["evictions"]


def test_the_page_shows_plots_and_pairs_and_survives_a_lost_image(
    engine: Engine,
    database_url: str,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = finish(engine, "a fox")
    second = finish(engine, "a red fox", k=25, source=first)
    finish(engine, "its image is gone", k=10, source=first)
    objects = S3Objects.from_url(s3_url)
    objects.ensure_bucket()
    for job_id in (first, second):
        png = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(png, format="PNG")
        objects.put(f"images/{job_id}.png", png.getvalue())
    objects.close()
    monkeypatch.setenv("NIRVANA_DATABASE_URL", database_url)
    monkeypatch.setenv("NIRVANA_S3_URL", s3_url)
    assert main(["report", "--out", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["num_hits"], answer["steps_run"]) == (2, 3 * N - 35)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"index.html", "savings-over-time.png", "hits-by-k.png", "pair-01.png"}
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "from its state after step 25 (cosine 0.900): “a red fox”" in page


def test_a_fleet_without_jobs_has_a_report_too(
    engine: Engine,
    database_url: str,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NIRVANA_DATABASE_URL", database_url)
    monkeypatch.setenv("NIRVANA_S3_URL", s3_url)
    assert main(["report"]) == 0
    assert "no job that asked for steps has succeeded in that time" in capsys.readouterr().out
