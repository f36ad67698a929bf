"""Shadow runs: a sampled share of hits is drawn once more, from noise and with the same seed.

So what the cache does to live pictures is measured and not assumed. A run begins when the hit is
committed, takes steps only while the engine has nothing else to do, and is dropped where it would
have to wait too long, or its model is to leave the memory. `nirvana report` reads the pairs.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Engine as Database
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from cache.database import transaction
from cache.errors import CacheError
from producer.contract import CacheOutcome
from producer.result import JobResult, StoredImage
from workers.denoising.engine import Engine
from workers.denoising.errors import DenoisingError
from workers.denoising.request import Denoised, DenoiseRequest
from workers.images import Images
from workers.ledger import Claim
from workers.model_pool import ModelPool

logger = logging.getLogger(__name__)

WAITING_MAX: Final = 8  # hits, with their conditioning; more are not shadowed
RUN_MAX_S: Final = 300.0  # a run that found no time in so long is dropped
_LOOK_EVERY_S: Final = 0.1  # whether the model is wanted out of the memory
_UNCACHED: Final = "-uncached"  # in the image's key

_INSERT: Final = text("""
    INSERT INTO shadow_runs (job_id, namespace, scope, k, similarity, image_key,
                             uncached_image_key, drawn_at)
    VALUES (:job_id, :namespace, :scope, :k, :similarity, :image_key, :uncached_image_key, now())
        ON CONFLICT (job_id) DO NOTHING
""")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CommittedHit:
    """A hit whose result is out, and what drew it."""

    claim: Claim
    scope: str  # fingerprint
    request: DenoiseRequest
    result: JobResult


class Shadows:
    """A bounded queue and one thread; no job waits for it."""

    def __init__(
        self,
        *,
        engine: Engine,
        models: ModelPool,
        images: Images,
        database: Database,
        fraction_of: Callable[[str], float],
    ) -> None:
        """`fraction_of` a namespace: the share of its hits that is shadowed now."""
        self._engine, self._models = engine, models
        self._images, self._database = images, database
        self._fraction_of = fraction_of
        self._waiting: queue.Queue[CommittedHit | None] = queue.Queue(WAITING_MAX)
        self._closing = threading.Event()
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)
        self._thread.start()

    def consider(self, hit: CommittedHit) -> None:
        """Have it shadowed, if the sample takes it and not too many wait; never waits."""
        cache, job = hit.result.cache, hit.claim.job
        if cache is None or cache.outcome is not CacheOutcome.HIT:
            return
        if not is_sampled(hit.claim.job_id, self._fraction_of(job.namespace)):
            return
        try:
            self._waiting.put_nowait(hit)
        except queue.Full:
            self.num_dropped += 1

    def drain(self) -> None:
        """Wait until all that was taken is drawn or dropped."""
        self._waiting.join()

    def close(self) -> None:
        """Drop what waits and what runs, and stop."""
        self._closing.set()
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
                self._waiting.task_done()
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (hit := self._waiting.get()) is not None:
            try:
                self._shadow(hit)
            except (DenoisingError, CacheError) as error:
                self.num_dropped += 1
                logger.info("hit not shadowed: %s", error, extra={"job_id": hit.result.job_id})
            except Exception:
                logger.exception("hit not shadowed", extra={"job_id": hit.result.job_id})
            finally:
                self._waiting.task_done()

    def _shadow(self, hit: CommittedHit) -> None:
        denoised = self._draw(hit)
        image = self._images.put(
            denoised.image,
            namespace=hit.claim.job.namespace,
            job_id=hit.claim.job_id,
            attempt=hit.claim.attempt,
            variant=_UNCACHED,
        )
        self._record(hit, image)

    def _draw(self, hit: CommittedHit) -> Denoised:
        model = hit.claim.job.model
        assert model is not None  # filled in on receipt
        request = uncached(hit.request, give_up_at=time.monotonic() + RUN_MAX_S)
        if self._models.peek(model) is None:  # no model is loaded for this
            raise DenoisingError(f"{model} is not loaded any more")
        with self._models.lease(model) as family:
            future = self._engine.denoise(request, family=family)
            while not _is_done_within(future, _LOOK_EVERY_S):
                if self._closing.is_set() or self._models.is_leaving(model):
                    self._engine.cancel(request.job_id)
            return future.result()

    def _record(self, hit: CommittedHit, image: StoredImage) -> None:
        """Write the row, unless the job has been forgotten meanwhile."""
        cache, delivered = hit.result.cache, hit.result.image
        assert cache is not None
        assert delivered is not None
        row = {
            "job_id": hit.claim.job_id,
            "namespace": hit.claim.job.namespace,
            "scope": hit.scope,
            "k": cache.k,
            "similarity": cache.similarity,
            "image_key": delivered.key,
            "uncached_image_key": image.key,
        }
        try:
            with transaction(self._database) as connection:
                connection.execute(_INSERT, row)
        except IntegrityError:
            self._images.take_back(image)


def is_sampled(job_id: uuid.UUID, fraction: float) -> bool:
    """Whether a job is among so many of all; the same whoever asks."""
    digest = hashlib.sha256(job_id.bytes).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def uncached(request: DenoiseRequest, *, give_up_at: float) -> DenoiseRequest:
    """The same picture from noise, for when nothing else is to be done."""
    return replace(
        request,
        job_id=f"{request.job_id}/uncached",
        start=None,
        lead=None,
        follow=None,
        capture_steps=frozenset(),
        capture_final=False,
        deadline_monotonic_s=give_up_at,
        on_progress=None,
        is_background=True,
    )


def _is_done_within(future: Future[Denoised], timeout_s: float) -> bool:
    try:
        future.exception(timeout_s)
    except TimeoutError:
        return False
    return True
