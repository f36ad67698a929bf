"""A namespace's own rules, taken up by a running worker: its off switch, and shadow runs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from cache import namespaces
from cache.database import transaction
from cache.forgotten import JobSubject
from cache.namespaces import RulesInForce, change_rules
from cache.objects import S3Objects
from evaluation.report.shadow import read_pairs, save_scores, score_pairs, summarize
from fleet.cli import main
from producer.broker import open_connection
from producer.contract import CacheOutcome
from producer.result import JobResult
from producer.trace import Traces
from workers.app import build_app
from workers.forgetting import Forgetter
from workers.gpu_process import GpuProcess
from workers.gpu_tasks import run_job
from workers.image_sweep import sweep_images
from workers.job_records import JobRecords
from workers.process_settings import ProcessSettings

QUEUE = "generate.tiny.0"
N, K = 10, 5
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _rules_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "REFRESH_S", 0.0)  # else the tests would wait for it


@pytest.fixture
def command(
    settings: ProcessSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Runs `nirvana` with --json and reads its answer."""
    monkeypatch.setenv("NIRVANA_DATABASE_URL", settings.cache.database_url.get_secret_value())
    monkeypatch.setenv("NIRVANA_S3_URL", settings.cache.s3_url.get_secret_value())

    def run_command(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return answer

    return run_command


def run(process: GpuProcess, seed: int = 1, **fields: object) -> JobResult:
    fox = {"prompt": "a fox in the snow", "num_inference_steps": N, "seed": seed, **fields}
    result = run_job(process, str(uuid.uuid4()), fox, queue=QUEUE)
    process.bench.captures.drain()
    process.bench.shadows.drain()
    return result


def outcome(result: JobResult) -> tuple[CacheOutcome, str | None]:
    assert result.cache is not None
    return result.cache.outcome, result.cache.reason


def rows(database: Engine) -> list[Any]:
    with database.connect() as connection:
        return list(connection.execute(text("SELECT * FROM shadow_runs")).all())


def shadow_all(database: Engine) -> None:
    with transaction(database) as connection:
        change_rules(connection, "default", shadow_fraction=1.0)


def image_keys(objects: S3Objects) -> list[str]:
    return [each.key for each in objects.list("images/")]


def test_a_namespace_is_switched_off_and_on_beside_a_running_worker(
    process: GpuProcess, database: Engine, command: Callable[..., dict[str, Any]]
) -> None:
    run(process)
    assert outcome(run(process))[0] is CacheOutcome.HIT
    assert command("cache", "namespace", "default", "--cache", "off")["is_cached"] is False
    with database.connect() as connection:
        states = text("SELECT count(*) FROM cached_states")
        before = connection.execute(states).scalar_one()
        assert outcome(run(process)) == (CacheOutcome.MISS, "disabled")
        assert outcome(run(process, namespace="other")) == (CacheOutcome.MISS, "none_similar")
        run(process, cache="refresh")
        of_default = text("""
            SELECT count(*) FROM cached_states s JOIN cached_prompts p ON p.id = s.prompt_id
              JOIN scopes c ON c.id = p.scope_id WHERE c.namespace = 'default'
        """)
        assert connection.execute(of_default).scalar_one() == before
    command("cache", "namespace", "default", "--cache", "on")
    assert outcome(run(process))[0] is CacheOutcome.HIT


def test_a_change_is_seen_when_the_rules_are_two_seconds_old(
    settings: ProcessSettings, database: Engine
) -> None:
    now = 100.0
    rules = RulesInForce(database, clock=lambda: now)
    assert rules.of("default").is_cached
    with transaction(database) as connection:
        change_rules(connection, "default", is_cached=False)
    now += namespaces.REFRESH_S - 0.1
    assert rules.of("default").is_cached
    now += 0.2
    assert not rules.of("default").is_cached
    assert not rules.last_known("default").is_cached


def test_the_command_changes_what_is_given_and_leaves_the_rest(
    settings: ProcessSettings, command: Callable[..., dict[str, Any]]
) -> None:
    assert command("cache", "namespace", "mine") == {
        "namespace": "mine",
        "is_cached": True,
        "capacity_bytes": None,
        "shadow_fraction": 0.0,
    }
    command("cache", "namespace", "mine", "--capacity", "1000", "--shadow", "0.02")
    assert command("cache", "namespace", "mine", "--cache", "off") == {
        "namespace": "mine",
        "is_cached": False,
        "capacity_bytes": 1000,
        "shadow_fraction": 0.02,
    }


@pytest.mark.parametrize(
    "arguments", [["Not One"], ["mine", "--shadow", "2"], ["mine", "--cache", "perhaps"]]
)
def test_what_no_namespace_could_set_is_refused(arguments: list[str]) -> None:
    assert main(["cache", "namespace", *arguments]) == 2


def test_a_hit_is_drawn_again_from_noise_with_its_own_seed(
    process: GpuProcess, database: Engine, objects: S3Objects
) -> None:
    bypassing = run(process, seed=7, cache="bypass")
    shadow_all(database)
    run(process)
    assert rows(database) == []  # a miss has nothing to be compared with
    hit = run(process, seed=7)
    (row,) = rows(database)
    assert hit.image is not None
    assert bypassing.image is not None
    assert (str(row.job_id), row.k, row.image_key) == (hit.job_id, K, hit.image.key)
    assert row.similarity == pytest.approx(1)
    assert objects.get(row.uncached_image_key) == objects.get(bypassing.image.key)


def test_without_a_share_nothing_is_shadowed(process: GpuProcess, database: Engine) -> None:
    run(process)
    run(process)
    assert rows(database) == []


def test_a_shadows_image_is_no_orphan_and_goes_with_its_job(
    process: GpuProcess, settings: ProcessSettings, database: Engine, objects: S3Objects
) -> None:
    shadow_all(database)
    run(process)
    hit = run(process)
    (row,) = rows(database)
    later = NOW + timedelta(days=1)
    assert sweep_images(database, objects, now=later, grace_s=60).images_without_results == 0
    app = build_app(settings.producer, settings.worker)
    with closing(open_connection(settings.producer.broker_url)) as connection:
        records = JobRecords(connection, Traces(connection, retention_s=60), app)
        forgetter = Forgetter(database=database, objects=objects, records=records)
        forgetter.forget(JobSubject(job_id=uuid.UUID(hit.job_id)), now=later)
    app.close()
    assert rows(database) == []
    assert row.uncached_image_key not in image_keys(objects)
    assert len(image_keys(objects)) == 1


class Brightness:
    """A measure that needs no network."""

    name = "clip_score"

    def score(self, pictures: Any, prompts: Any) -> NDArray[np.float64]:
        assert len(pictures) == len(prompts)
        return np.array([float(picture.mean()) + 1 for picture in pictures])


def test_the_report_reads_scores_and_keeps_them(
    process: GpuProcess,
    database: Engine,
    objects: S3Objects,
    command: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    shadow_all(database)
    for seed in (1, 2, 3):
        run(process, seed=seed)
    span: dict[str, Any] = {"since": NOW - timedelta(days=1), "until": NOW + timedelta(days=1)}
    with transaction(database) as connection:
        pairs = score_pairs(read_pairs(connection, **span), Brightness(), objects.get)
        save_scores(connection, pairs)
        again = read_pairs(connection, **span)
        assert read_pairs(connection, **span, namespace="other") == []
    assert [list((pair.scores or {})["clip_score"]) for pair in again] == [
        list((pair.scores or {})["clip_score"]) for pair in pairs
    ]
    found = summarize(again)
    assert (found.num_pairs, list(found.by_k)) == (2, [K])
    assert found.kept is not None
    assert found.kept.ratio == pytest.approx(1, abs=0.5)
    answer = command("report", "--out", str(tmp_path))
    assert answer["shadow"]["kept"]["num_pairs"] == 2
    assert {"shadows-over-time.png", "shadow-01.png"} <= {each.name for each in tmp_path.iterdir()}
