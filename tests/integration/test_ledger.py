"""The transitions of a job in PostgreSQL (who may change what, and when)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, text

from cache.database import connect
from migrations.migrate import upgrade
from producer.contract import GenerationJob, Status, Webhook
from producer.result import JobResult
from workers.errors import ClaimLost, DuplicateDelivery
from workers.ledger import Claim, Ledger

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
QUEUE = "generate.small.0"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    upgrade(database_url)
    connected = connect(database_url)
    yield connected
    connected.dispose()


def ledger(engine: Engine, *, worker: str = "one", attempts_max: int = 3) -> Ledger:
    return Ledger(engine, worker=worker, lease_s=60, attempts_max=attempts_max)


def claim(at: Ledger, job_id: uuid.UUID | None = None, *, webhook: Webhook | None = None) -> Claim:
    job = GenerationJob(prompt="a fox", model="small", num_inference_steps=10, webhook=webhook)
    return at.claim(job_id or uuid.uuid4(), job, queue=QUEUE, received_at=NOW)


def ended(of: Claim, status: Status = Status.SUCCEEDED) -> JobResult:
    return JobResult(job_id=str(of.job_id), status=status, attempt=of.attempt)


def let_leases_lapse(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE jobs SET lease_expires_at = now() - interval '1 second'"
                " WHERE lease_expires_at IS NOT NULL"
            )
        )


def test_the_first_claim_is_attempt_one(engine: Engine) -> None:
    assert claim(ledger(engine)).attempt == 1


def test_a_live_lease_keeps_others_out(engine: Engine) -> None:
    held = claim(ledger(engine))
    with pytest.raises(DuplicateDelivery):
        claim(ledger(engine, worker="two"), held.job_id)


def test_a_lapsed_lease_is_taken_over_with_the_next_attempt(engine: Engine) -> None:
    held = claim(ledger(engine))
    let_leases_lapse(engine)
    assert claim(ledger(engine, worker="two"), held.job_id).attempt == 2


def test_a_renewed_lease_does_not_lapse(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at)
    let_leases_lapse(engine)
    assert at.renew([held]).lost == ()
    with pytest.raises(DuplicateDelivery):
        claim(ledger(engine, worker="two"), held.job_id)


def test_a_stale_worker_learns_that_it_lost_and_cannot_finish(engine: Engine) -> None:
    at = ledger(engine)
    stale = claim(at)
    let_leases_lapse(engine)
    current = claim(ledger(engine, worker="two"), stale.job_id)
    assert at.renew([stale, current]).lost == (stale,)
    with pytest.raises(ClaimLost):
        at.finish(stale, ended(stale))
    at.finish(current, ended(current))
    stored = at.result(stale.job_id)
    assert stored is not None
    assert stored.attempt == 2


def test_a_job_that_ended_never_changes(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at)
    at.finish(held, ended(held))
    with pytest.raises(ClaimLost):
        at.finish(held, ended(held, Status.CANCELLED))
    with pytest.raises(DuplicateDelivery):
        claim(at, held.job_id)
    with pytest.raises(DuplicateDelivery):
        at.end_unclaimed(held.job, ended(held), queue=QUEUE, received_at=NOW)


def test_result_and_webhook_are_committed_together(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at, webhook=Webhook(url="https://example.com/hook"))
    delivery_id = at.finish(held, ended(held))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, job_id FROM webhook_deliveries")).all()
    assert rows == [(delivery_id, held.job_id)]


def test_a_lost_claim_leaves_no_webhook(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at, webhook=Webhook(url="https://example.com/hook"))
    let_leases_lapse(engine)
    claim(ledger(engine, worker="two"), held.job_id)
    with pytest.raises(ClaimLost):
        at.finish(held, ended(held))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM webhook_deliveries")).scalar() == 0


def test_attempts_come_to_an_end(engine: Engine) -> None:
    at = ledger(engine, attempts_max=2)
    held = claim(at)
    let_leases_lapse(engine)
    claim(at, held.job_id)
    let_leases_lapse(engine)
    with pytest.raises(DuplicateDelivery):
        claim(at, held.job_id)


def test_a_lapsed_job_can_be_given_back_and_ended(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at)
    let_leases_lapse(engine)
    (lapsed,) = at.lapsed(limit=10)
    assert (lapsed.job_id, lapsed.attempt, lapsed.queue) == (held.job_id, 1, QUEUE)
    assert at.give_back(lapsed)
    assert not at.give_back(lapsed)
    at.end_unclaimed(lapsed.job, ended(held, Status.FAILED), queue=QUEUE, received_at=NOW)
    assert at.lapsed(limit=10) == []


def test_a_lapsed_job_can_be_ended_at_once(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at)
    with pytest.raises(DuplicateDelivery):
        at.end_unclaimed(held.job, ended(held, Status.FAILED), queue=QUEUE, received_at=NOW)
    let_leases_lapse(engine)
    at.end_unclaimed(held.job, ended(held, Status.FAILED), queue=QUEUE, received_at=NOW)
    with pytest.raises(ClaimLost):
        at.finish(held, ended(held))


def test_only_a_running_job_takes_a_request_to_cancel(engine: Engine) -> None:
    at = ledger(engine)
    assert not at.request_cancel(uuid.uuid4())
    held = claim(at)
    assert at.request_cancel(held.job_id)
    assert at.renew([held]).cancelled == (held,)
    at.finish(held, ended(held, Status.CANCELLED))
    assert not at.request_cancel(held.job_id)


def test_an_end_is_due_until_it_is_announced(engine: Engine) -> None:
    at = ledger(engine)
    held = claim(at)
    at.finish(held, ended(held))
    assert [each.job_id for each in at.unannounced(older_than_s=0, limit=10)] == [str(held.job_id)]
    at.mark_announced(held.job_id)
    assert at.unannounced(older_than_s=0, limit=10) == []
