"""The life of a job. The first file to read.

    1 claim  2 encode  3 look up  4 fetch  5 denoise k..N  6 decode
    7 store the image  8 record result and webhook in one transaction  9 store new states

Steps 3 and 4 can only make a job cheaper: whatever goes wrong in the cache, it starts from noise.
"""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from producer.contract import SEED_MAX, GenerationJob
from producer.result import JobResult, StoredImage
from workers.announcer import Announcer
from workers.captures import CaptureKeeper
from workers.denoising.engine import Engine
from workers.denoising.errors import DenoisingError, EngineClosed
from workers.denoising.families.family import Encoding
from workers.denoising.request import Denoised, DenoiseRequest
from workers.errors import ClaimLost
from workers.images import Images
from workers.leaders import Leaders, Place
from workers.leases import LeaseKeeper
from workers.ledger import Claim, Ledger
from workers.model_pool import ModelPool
from workers.outcome import Outcome, failure, success
from workers.patience import Patience
from workers.progress import ProgressReporter
from workers.reuse import NewStates, Reuse, ReusePlan
from workers.shadows import CommittedHit, Shadows
from workers.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What one GPU process works with."""

    engine: Engine
    models: ModelPool
    reuse: Reuse
    leaders: Leaders
    shadows: Shadows
    captures: CaptureKeeper
    images: Images
    ledger: Ledger
    leases: LeaseKeeper
    announcer: Announcer
    progress: ProgressReporter
    patience: Patience


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A job's image, stored, and what else came of it."""

    result: JobResult
    request: DenoiseRequest
    plan: ReusePlan
    states: NewStates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedJob:
    """A message, checked and completed with the model's defaults."""

    job_id: uuid.UUID
    job: GenerationJob
    queue: str
    received_at: datetime


def generate(received: ReceivedJob, bench: Workbench) -> Outcome:
    """Do the job, commit its end, and return it.

    Raises DuplicateDelivery when the job is not ours to do, ClaimLost when it is not any more,
    StorageUnavailable or EngineClosed when it stays uncommitted: then its lease lapses and the
    rescuer has it.
    """
    claim = claim_job(received, bench)
    with bench.leases.hold(claim), bench.leaders.place() as place:
        try:
            drawn = draw(claim, place, bench)
        except EngineClosed:
            raise  # the worker ends, not the job
        except DenoisingError as error:
            return finish(claim, failure(claim, error), bench)
        outcome = finish(claim, drawn.result, bench)
        bench.reuse.count_use(drawn.plan)
        if drawn.states is not None:
            bench.captures.keep(drawn.states, then=place.stay())
    bench.shadows.consider(
        CommittedHit(
            claim=claim,
            scope=drawn.plan.scope.fingerprint,
            request=drawn.request,
            result=drawn.result,
        )
    )
    return outcome


def claim_job(received: ReceivedJob, bench: Workbench) -> Claim:
    """Step 1."""
    claim = bench.patience.outlast(
        lambda: bench.ledger.claim(
            received.job_id, received.job, queue=received.queue, received_at=received.received_at
        )
    )
    bench.announcer.announce_start(claim)
    return claim


def draw(claim: Claim, place: Place, bench: Workbench) -> Drawn:
    """Steps 2 to 7; raises DenoisingError, or StorageUnavailable for the image."""
    job, watch = claim.job, Stopwatch()
    assert job.model is not None  # filled in on receipt
    with bench.models.lease(job.model) as family:
        with watch.lap("encode"):
            encoding = bench.engine.encode(job.prompt, job.negative_prompt, family=family).result()
        plan = bench.reuse.plan(claim, family, encoding.embedding)
        bench.leaders.join(place, claim, plan, encoding.embedding)
        request = denoise_request(claim, encoding, plan, place, bench)
        denoised = bench.engine.denoise(request, family=family).result()
    plan = place.settle(claim, plan, denoised)
    with watch.lap("store"):
        image = store_image(claim, denoised, bench)
    seconds = watch.seconds | {"lookup": plan.lookup_s, "fetch": plan.fetch_s}
    return Drawn(
        result=success(
            claim,
            image=image,
            seed=request.seed,
            cache=plan.report,
            denoised=denoised,
            seconds=seconds,
        ),
        request=request,
        plan=plan,
        states=bench.reuse.new_states(claim, plan, encoding.embedding, denoised),
    )


def store_image(claim: Claim, denoised: Denoised, bench: Workbench) -> StoredImage:
    """Step 7, outlasting an object store that is away; raises StorageUnavailable."""
    return bench.patience.outlast(
        lambda: bench.images.put(
            denoised.image,
            namespace=claim.job.namespace,
            job_id=claim.job_id,
            attempt=claim.attempt,
        )
    )


def denoise_request(
    claim: Claim, encoding: Encoding, plan: ReusePlan, place: Place, bench: Workbench
) -> DenoiseRequest:
    """Say what the engine is to do; draws a seed where the job names none."""
    job, job_id = claim.job, str(claim.job_id)
    assert job.height is not None  # filled in on receipt, as the next two
    assert job.width is not None
    assert job.guidance_scale is not None
    return DenoiseRequest(
        job_id=claim.name,
        encoding=encoding,
        height=job.height,
        width=job.width,
        num_inference_steps=claim.num_inference_steps,
        guidance_scale=job.guidance_scale,
        seed=secrets.randbelow(SEED_MAX + 1) if job.seed is None else job.seed,
        start=plan.start,
        lead=place.lead,
        follow=place.follow,
        capture_steps=plan.captures.steps,
        capture_final=plan.captures.final,
        deadline_monotonic_s=_on_monotonic_clock(claim.deadline_at),
        on_progress=lambda done, asked: bench.progress.note(
            job_id, steps_done=done, steps_asked=asked
        ),
    )


def finish(claim: Claim, result: JobResult, bench: Workbench) -> Outcome:
    """Step 8, and telling the client."""
    try:
        delivery_id = bench.patience.outlast(lambda: bench.ledger.finish(claim, result))
    except ClaimLost:
        if result.image is not None:
            bench.images.take_back(result.image)
        raise
    finally:
        bench.progress.forget(result.job_id)
    bench.announcer.announce(result)
    return Outcome(result=result, delivery_id=delivery_id)


def _on_monotonic_clock(instant: datetime | None) -> float | None:
    if instant is None:
        return None
    return time.monotonic() + (instant - datetime.now(UTC)).total_seconds()
