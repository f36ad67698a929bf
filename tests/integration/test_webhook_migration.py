"""Deliveries of an older schema get the receiver that the code names."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, select, text

from cache.database import connect
from migrations import migrate
from producer.contract import GenerationJob, Status, Webhook
from producer.result import JobResult
from tests.unit.delivery.ended_jobs import job_row
from workers.delivery.outbox import receiver_of
from workers.tables import jobs, webhook_deliveries

WEBHOOKS = [
    Webhook(endpoint="shop"),
    Webhook(url="https://Example.com/hook?a=//b"),
    Webhook(url="http://me:p@ss@example.com:8080/x"),
    Webhook(url="https://example.com?x@y", secret_name="mine"),
]


@pytest.mark.parametrize("webhook", WEBHOOKS)
def test_an_old_delivery_has_its_receiver(database_url: str, webhook: Webhook) -> None:
    now = datetime.now(UTC)
    job = GenerationJob(prompt="a fox", namespace="n", webhook=webhook)
    job_id = uuid.uuid4()
    result = JobResult(job_id=str(job_id), status=Status.SUCCEEDED, attempt=1)
    engine = connect(database_url)
    try:
        migrate.upgrade(database_url, "0004")
        with engine.begin() as connection:
            connection.execute(insert(jobs).values(job_row(job_id, job, result, now)))
            name = webhook.endpoint or webhook.secret_name
            values = {"id": job_id, "name": name, "url": webhook.url}
            connection.execute(text(OLD_DELIVERY), values)
        migrate.upgrade(database_url)
        with engine.connect() as connection:
            found = connection.scalar(select(webhook_deliveries.c.receiver))
    finally:
        engine.dispose()
    assert found == receiver_of("n", webhook)


OLD_DELIVERY = """
    INSERT INTO webhook_deliveries (id, job_id, event, namespace, endpoint_name, url, body)
    VALUES (:id, :id, 'job.succeeded', 'n', :name, :url, '')
"""
