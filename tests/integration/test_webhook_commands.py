"""`nirvana webhooks`: what happened to webhooks, sending one again, endpoints and their secrets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
from sqlalchemy import Engine, select

from fleet.cli import main
from producer.contract import Webhook
from tests.unit.delivery.ended_jobs import SETTINGS, created_engine, end_job, only_row, run, to
from tests.unit.delivery.receiver import receiver, status
from workers.tables import endpoints

Nirvana = Callable[..., tuple[int, str]]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = created_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def nirvana(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Nirvana:
    """Run a command: its exit code, and what it printed on either stream."""
    monkeypatch.setenv("NIRVANA_DATABASE_URL", database_url)

    def run_command(*arguments: str) -> tuple[int, str]:
        code = main(["webhooks", *arguments])
        printed = capsys.readouterr()
        return code, printed.err + printed.out

    return run_command


def answer_of(nirvana: Nirvana, *arguments: str) -> dict[str, Any]:
    code, printed = nirvana(*arguments, "--json")
    assert code == 0, printed
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer


def test_list_shows_deliveries_and_their_attempts(engine: Engine, nirvana: Nirvana) -> None:
    with receiver(status(500)) as server:
        end_job(engine, Webhook(url=server.url("/hook?token=hidden")))
        run(engine)
    row = only_row(engine)
    (delivery,) = answer_of(nirvana, "list", "--job", str(row.job_id))["deliveries"]
    assert (delivery["webhook_id"], delivery["status"]) == (str(row.id), "pending")
    (attempt,) = delivery["attempts"]
    assert attempt["attempted_at"] == "2026-01-01T00:00:00Z"
    assert (attempt["status_code"], attempt["error_kind"]) == (500, "status")
    assert attempt["response"] == "ok"

    _, table = nirvana("list")
    assert f"127.0.0.1:{server.port}/hook" in table
    assert "status: answered 500" in table
    assert "hidden" not in table
    _, attempts = nirvana("list", "--attempts")
    assert f"{row.id}  job.succeeded of job {row.job_id}" in attempts
    assert "2026-01-01 00:00:00" in attempts


def test_list_of_the_failed_and_of_an_endpoint(engine: Engine, nirvana: Nirvana) -> None:
    end_job(engine, Webhook(endpoint="nobody"))
    run(engine)
    end_job(engine, Webhook(url="http://127.0.0.1:9/"))
    (failed,) = answer_of(nirvana, "list", "--failed")["deliveries"]
    assert failed["attempts"][0]["error_kind"] == "refused"
    assert answer_of(nirvana, "list", "--endpoint", "nobody")["deliveries"] == [failed]
    assert answer_of(nirvana, "list", "--endpoint", "other") == {"deliveries": []}
    assert len(answer_of(nirvana, "list")["deliveries"]) == 2


def test_a_refusal_is_told_in_few_words(engine: Engine, nirvana: Nirvana) -> None:
    end_job(engine, Webhook(url="http://10.0.0.1/"))
    run(engine, replace(SETTINGS, allow_private_addresses=False))
    _, table = nirvana("list")
    assert " refused: 10.0.0.1 is not at a public address" in table


def test_replay_makes_a_webhook_due_again_under_its_id(engine: Engine, nirvana: Nirvana) -> None:
    with receiver(status(410), status(200)) as server:
        delivery_id = end_job(engine, to(server))
        run(engine)
        assert answer_of(nirvana, "replay", str(delivery_id)) == {"replayed": [str(delivery_id)]}
        assert run(engine, now=datetime.now(UTC) + timedelta(seconds=1)).delivered == 1
    assert {request.headers["webhook-id"] for request in server.requests} == {str(delivery_id)}


def test_replay_of_an_unknown_id_replays_none(engine: Engine, nirvana: Nirvana) -> None:
    known, unknown = end_job(engine, Webhook(endpoint="nobody")), uuid.uuid4()
    run(engine)
    code, printed = nirvana("replay", str(known), str(unknown))
    assert (code, printed) == (
        1,
        f"nirvana: no webhook has the id {unknown}; none is sent again\n",
    )
    assert only_row(engine).status == "failed"
    code, printed = nirvana("replay", "7")
    assert code == 2
    assert "webhook_ids" in printed
    assert "should be a valid UUID" in printed


def test_an_endpoint_receives_with_its_secret_and_through_a_rotation(
    engine: Engine, nirvana: Nirvana
) -> None:
    now = datetime.now(UTC)
    with receiver() as server:
        old = answer_of(nirvana, "endpoints", "add", "shop", "--url", server.url())["secret"]
        new = answer_of(nirvana, "endpoints", "rotate", "shop")["secret"]
        (listed,) = answer_of(nirvana, "endpoints", "list")["endpoints"]
        end_job(engine, Webhook(endpoint="shop"), now=now)
        run(engine, now=now)
        answer_of(nirvana, "endpoints", "rotate", "shop", "--finish")
        end_job(engine, Webhook(endpoint="shop"), now=now)
        run(engine, now=now)
    assert old != new
    assert listed["is_rotating"] is True
    assert "secret" not in json.dumps(listed)
    during, after = server.requests
    for secret in (old, new):
        assert standardwebhooks.Webhook(secret).verify(during.body, during.headers)
    assert standardwebhooks.Webhook(new).verify(after.body, after.headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(old).verify(after.body, after.headers)


def test_an_endpoint_that_was_disabled_is_enabled_elsewhere(
    engine: Engine, nirvana: Nirvana
) -> None:
    with receiver(status(410)) as gone, receiver() as server:
        nirvana("endpoints", "add", "shop", "--url", gone.url())
        end_job(engine, Webhook(endpoint="shop"))
        run(engine)
        _, table = nirvana("endpoints", "list")
        assert "disabled: the receiver answered 410 Gone" in table
        answer_of(nirvana, "endpoints", "enable", "shop", "--url", server.url())
        end_job(engine, Webhook(endpoint="shop"))
        assert run(engine).delivered == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", "shop"], 1, "namespace 'default' has an endpoint 'shop' already"),
        (["add", "a b"], 2, "NAME: String should match pattern '^[A-Za-z0-9_.-]{1,64}$'"),
        (
            ["add", "b", "--namespace", "A"],
            2,
            "--namespace: String should match pattern '^[a-z0-9-]{1,64}$'",
        ),
        (
            ["add", "b", "--url", "http://"],
            2,
            "--url: the url must be http:// or https:// and name a host",
        ),
        (["rotate", "none"], 1, "namespace 'default' has no endpoint 'none'"),
        (["rotate", "shop", "--finish"], 1, "endpoint 'shop' in namespace 'default' is not being"),
        (["enable", "none"], 1, "namespace 'default' has no endpoint 'none'"),
        (["remove", "none"], 1, "namespace 'default' has no endpoint 'none'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    engine: Engine, nirvana: Nirvana, arguments: list[str], code: int, message: str
) -> None:
    nirvana("endpoints", "add", "shop")
    got, printed = nirvana("endpoints", *arguments)
    assert got == code
    assert printed.startswith(f"nirvana: {message}")
    assert printed.count("\n") == 1


def test_a_second_rotation_waits_for_the_end_of_the_first(engine: Engine, nirvana: Nirvana) -> None:
    nirvana("endpoints", "add", "shop")
    nirvana("endpoints", "rotate", "shop")
    code, printed = nirvana("endpoints", "rotate", "shop")
    assert (code, "is being rotated; finish it first" in printed) == (1, True)
    with engine.connect() as connection:
        assert len(connection.scalar(select(endpoints.c.secrets)) or []) == 2


def test_an_endpoint_that_is_removed_fails_what_is_due_to_it(
    engine: Engine, nirvana: Nirvana
) -> None:
    with receiver() as server:
        nirvana("endpoints", "add", "shop", "--url", server.url())
        end_job(engine, Webhook(endpoint="shop"))
        answer_of(nirvana, "endpoints", "remove", "shop")
        assert run(engine).failed == 1
    assert answer_of(nirvana, "endpoints", "list") == {"endpoints": []}


def test_a_database_that_is_away_is_said_in_one_line(
    nirvana: Nirvana, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIRVANA_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:9/x")
    code, printed = nirvana("list")
    assert code == 1
    assert "127.0.0.1:9/x" in printed
    assert "hunter2" not in printed
    assert printed.count("\n") == 1
