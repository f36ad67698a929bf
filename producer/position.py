"""Where a waiting job stands, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from producer.models import ServedModel
from producer.queues import bucket_queues
from producer.trace import Trace, Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a job stands that nobody has claimed; 0 ahead once somebody has."""

    num_ahead: int  #: jobs to be claimed before it
    #: As long as it can take one worker: job by job, none a hit. None until a step was measured.
    estimated_wait_s: float | None


def find_position(
    trace: Trace, traces: Traces, *, served: Mapping[str, ServedModel], num_buckets: int
) -> Position:
    """Count the jobs ahead in all queues of the job's model; raises what redis raises."""
    slug = str(trace.job["model"])
    num_ahead = traces.num_ahead(trace, beside=bucket_queues(slug, num_buckets))
    model = served.get(slug)
    if model is None or not model.seconds_per_step:
        return Position(num_ahead=num_ahead, estimated_wait_s=None)
    seconds_per_job = model.num_inference_steps * model.seconds_per_step
    return Position(num_ahead=num_ahead, estimated_wait_s=num_ahead * seconds_per_job)
