"""What a model fills in and refuses, and how one is chosen; no broker."""

from __future__ import annotations

import dataclasses

import pytest

from producer.contract import GenerationJob
from producer.errors import InvalidJob, UnknownModel
from producer.models import ServedModel, choose_model
from producer.queues import admission_queue, bucket_queue, bucket_queues

SMALL = ServedModel(
    slug="small",
    is_default=True,
    num_inference_steps=20,
    guidance_scale=4.0,
    height=64,
    width=96,
    size_multiple=8,
    size_min=32,
    size_max=128,
    seconds_per_step=0.1,
    jobs_in_flight=4,
)
LARGE = dataclasses.replace(SMALL, slug="large", is_default=False)


def test_a_model_fills_in_only_what_the_job_left_out() -> None:
    job = GenerationJob(prompt="a fox", num_inference_steps=5, guidance_scale=0.0)
    complete = SMALL.complete(job)
    assert complete.num_inference_steps == 5
    assert complete.guidance_scale == 0.0
    assert (complete.model, complete.height, complete.width) == ("small", 64, 96)
    assert complete.seed is None


@pytest.mark.parametrize(("name", "pixels"), [("width", 36), ("height", 24), ("height", 136)])
def test_a_size_outside_the_model_is_refused_with_its_limits(name: str, pixels: int) -> None:
    job = GenerationJob.from_wire({"prompt": "a fox", name: pixels})
    with pytest.raises(InvalidJob, match=f"{name}: must be a multiple of 8, 32 to 128"):
        SMALL.complete(job)


def test_the_default_is_the_fleets_and_an_unknown_model_names_those_served() -> None:
    served = {"large": LARGE, "small": SMALL}
    assert choose_model(served, None) is SMALL
    assert choose_model(served, "large") is LARGE
    with pytest.raises(UnknownModel, match="'huge' is not served; served: large, small"):
        choose_model(served, "huge")
    with pytest.raises(UnknownModel, match="name one, there is no default; served: large"):
        choose_model({"large": LARGE}, None)
    with pytest.raises(UnknownModel, match="none yet"):
        choose_model({}, None)


def test_a_namespace_waits_in_the_same_bucket_everywhere() -> None:
    assert bucket_queue("small", "default", 8) == "generate.small.7"
    assert {bucket_queue("small", str(n), 8) for n in range(500)} == set(bucket_queues("small", 8))
    assert admission_queue("small") not in bucket_queues("small", 8)
