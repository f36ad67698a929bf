"""Asks the fleet for a signed url of an image: a client has no credentials of the object store.

An io worker answers into `nirvana:answer:<token>`, a list that is read once and soon gone.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Final, cast

import redis
from celery import Celery

from producer.contract import SIGN_TASK
from producer.errors import ImageUnavailable
from producer.queues import IO_QUEUE

_LOOK_S: Final = 1.0  # shorter than the connection's time-out for one command


def answer_key(token: str) -> str:
    """Where the answer to one question is put."""
    return f"nirvana:answer:{token}"


def ask_for_url(job_id: str, *, connection: redis.Redis, app: Celery, timeout_s: float) -> str:
    """Have a url signed now; raises ImageUnavailable, and what redis and kombu raise."""
    token = uuid.uuid4().hex
    app.send_task(
        SIGN_TASK, args=[job_id, token], queue=IO_QUEUE, serializer="json", expires=timeout_s
    )
    give_up_at = time.monotonic() + timeout_s
    while (left_s := give_up_at - time.monotonic()) > 0:
        found = connection.blpop([answer_key(token)], timeout=min(_LOOK_S, left_s))
        if found is not None:
            return _url_of(job_id, cast("tuple[str, str]", found)[1])
    raise ImageUnavailable(
        f"no io worker signed a url for job {job_id} within {timeout_s:g} s; is one running?"
    )


def _url_of(job_id: str, answer: str) -> str:
    url = json.loads(answer)["url"]
    if url is None:
        raise ImageUnavailable(f"job {job_id} has no image any more")
    return str(url)
