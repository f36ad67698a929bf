"""Telling a job's end never turns a committed job into a failed task."""

from __future__ import annotations

from typing import cast
from unittest.mock import Mock

from sqlalchemy.exc import OperationalError

from producer.contract import Status
from producer.result import JobResult
from producer.trace import Traces
from workers.announcer import Announcer
from workers.ledger import Ledger

RESULT = JobResult(
    job_id="0b6e1d3e-1c5c-4b43-8a3f-0d9a3f0c1a11", status=Status.SUCCEEDED, attempt=1
)


def test_a_database_that_goes_away_after_the_commit_leaves_the_end_due() -> None:
    ledger = Mock(spec=Ledger)
    ledger.mark_announced.side_effect = OperationalError("UPDATE", {}, Exception("gone"))
    announcer = Announcer(cast("Ledger", ledger), cast("Traces", Mock(spec=Traces)))
    assert not announcer.announce(RESULT)
