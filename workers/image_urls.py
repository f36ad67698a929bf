"""Signs urls of images when somebody asks: those of the results expire, the images stay longer."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Final

import redis

from cache.objects import S3Objects
from producer.image_urls import answer_key
from workers.ledger import Ledger

logger = logging.getLogger(__name__)

_ANSWER_LIFETIME_S: Final = 60


class ImageUrls:
    """Answers clients; only the ledger says which object is a job's image."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        objects: S3Objects,
        connection: redis.Redis,
        url_lifetime_s: int,
        public_url: str | None,
    ) -> None:
        self._ledger = ledger
        self._objects = objects
        self._connection = connection
        self._url_lifetime_s = url_lifetime_s
        self._public_url = public_url

    def answer(self, job_id: uuid.UUID, token: str) -> None:
        """Put the url, or null where there is no image, where the client waits for it."""
        answer = json.dumps({"url": self.sign(job_id)})
        with self._connection.pipeline() as pipeline:
            pipeline.rpush(answer_key(token), answer)
            pipeline.expire(answer_key(token), _ANSWER_LIFETIME_S)
            pipeline.execute()

    def sign(self, job_id: uuid.UUID) -> str | None:
        """Sign a url of the job's image; None where the job has none."""
        result = self._ledger.result(job_id)
        if result is None or result.image is None:
            return None
        return self._objects.presigned_url(
            result.image.key, expires_s=self._url_lifetime_s, public_url=self._public_url
        )
