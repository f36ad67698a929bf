"""From the options of `nirvana submit` to jobs, each refused where it stands."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fleet.commands.console import UsageProblem
from fleet.commands.job_file import JobLine, read_job_file
from producer.client import Client
from producer.contract import SEED_MAX, GenerationJob
from producer.errors import InvalidJob, UnknownModel
from producer.settings import ProducerSettings
from producer.submission import prepare

SEEDS_MAX: Final = 1_000
# The option in which a field is given, where the names differ.
_OPTIONS: Final = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative",
    "prompt": "PROMPT",
    "webhook.url": "--webhook-url",
    "webhook.endpoint": "--webhook-endpoint",
}


def requested_jobs(fields: dict[str, Any], file: Path | None, seeds: int | None) -> list[JobLine]:
    """The jobs that are asked for; raises UsageProblem naming the option or the line."""
    if (file is None) == ("prompt" not in fields):
        raise UsageProblem("give either a PROMPT, or --file with a job a line")
    if file is not None:
        if seeds is not None or "job_id" in fields:
            raise UsageProblem("--seeds and --job-id go with a PROMPT, not with --file")
        return read_job_file(file, fields)
    try:
        job = GenerationJob.from_wire(fields)
    except InvalidJob as error:
        raise UsageProblem(f"{_option(error.field)}: {error.reason}") from None
    return [JobLine(place="", job=each) for each in _one_per_seed(job, seeds)]


def _one_per_seed(job: GenerationJob, seeds: int | None) -> list[GenerationJob]:
    """As many jobs as seeds: from --seed on, else drawn."""
    if seeds is None:
        return [job]
    if not 1 <= seeds <= SEEDS_MAX or job.job_id is not None:
        raise UsageProblem(f"--seeds: must be 1 to {SEEDS_MAX:,}, and goes without --job-id")
    first = secrets.randbelow(SEED_MAX - SEEDS_MAX) if job.seed is None else job.seed
    if first + seeds - 1 > SEED_MAX:
        raise UsageProblem(f"--seeds: the last seed would be above {SEED_MAX:,}")
    return [job.model_copy(update={"seed": first + number}) for number in range(seeds)]


def check_jobs(client: Client, settings: ProducerSettings, lines: Sequence[JobLine]) -> None:
    """Refuse a job as `submit` would, but before any is sent, and naming its place."""
    served = client.models()
    for line in lines:
        try:
            prepare(line.job, served=served, settings=settings)
        except InvalidJob as error:
            place = line.place or _option(error.field)
            reason = str(error) if line.place else error.reason
            raise UsageProblem(f"{place}: {reason}") from None
        except UnknownModel as error:
            raise UsageProblem(f"{line.place}: {error}" if line.place else str(error)) from None


def read_metadata(pairs: Sequence[str]) -> dict[str, str] | None:
    """Read KEY=VALUE pairs; raises UsageProblem."""
    if not pairs:
        return None
    split = [pair.partition("=") for pair in pairs]
    for key, separator, _ in split:
        if not separator or not key:
            raise UsageProblem(f"--metadata: expected KEY=VALUE, got '{key}'")
    return {key: value for key, _, value in split}


def read_webhook(url: str | None, endpoint: str | None) -> dict[str, str] | None:
    """Give the job's `webhook` field; the contract says which of the two it takes."""
    given = {"url": url, "endpoint": endpoint}
    return {name: value for name, value in given.items() if value is not None} or None


def _option(field: str) -> str:
    return _OPTIONS.get(field) or "--" + field.partition(".")[0].replace("_", "-")
