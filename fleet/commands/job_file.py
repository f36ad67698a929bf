"""A file of jobs: JSON Lines, one job of the wire form a line.

A job that names no id gets one made of the file's path, the job, and how many equal ones stand
above it. So a second run of the same file, also of one that was added to or sorted anew, sends the
same jobs, and the fleet takes only those that it does not have.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fleet.commands.console import UsageProblem
from producer.contract import GenerationJob
from producer.errors import InvalidJob

_IDS: Final = uuid.UUID("5b4d3c1e-6c5f-4f0e-9d53-2f1a7c0f6e21")  # of uuid5, drawn once


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """A job and the place where it stands, for messages."""

    place: str  #: file:line
    job: GenerationJob


def read_job_file(path: Path, defaults: Mapping[str, Any]) -> list[JobLine]:
    """Read all jobs; `defaults` are the fields that a line may leave out.

    Raises UsageProblem naming file, line and what is wrong there.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageProblem(f"--file {path}: {error.strerror}") from None
    jobs = list(_jobs(path, lines, defaults))
    if not jobs:
        raise UsageProblem(f"--file {path}: holds no jobs; expected one JSON object a line")
    return jobs


def with_lasting_ids(
    path: Path, lines: Sequence[JobLine], *, default_namespace: str
) -> list[JobLine]:
    """Give each job without an id the one that it gets at every run of the file."""
    num_equal: Counter[str] = Counter()
    given: list[JobLine] = []
    for line in lines:
        job = line.job
        if job.job_id is None:
            namespace = job.namespace if "namespace" in job.model_fields_set else default_namespace
            what = f"{path.resolve()}\n{namespace}\n{job.payload_hash}"
            num_equal[what] += 1
            job = job.model_copy(update={"job_id": uuid.uuid5(_IDS, f"{what}\n{num_equal[what]}")})
        given.append(replace(line, job=job))
    return given


def _jobs(path: Path, lines: list[bytes], defaults: Mapping[str, Any]) -> Iterator[JobLine]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        fields = _parsed(place, line)
        try:
            job = GenerationJob.from_wire({**defaults, **fields})
        except InvalidJob as error:
            raise UsageProblem(f"{place}: {error}") from None
        yield JobLine(place=place, job=job)


def _parsed(place: str, line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageProblem(f"{place}: is not UTF-8, at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise UsageProblem(f"{place}: is not JSON: {error.msg}, at column {error.colno}") from None
    except RecursionError:
        raise UsageProblem(f"{place}: is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UsageProblem(f"{place}: is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UsageProblem(f"{place}: must be a JSON object, not {type(fields).__name__}")
    return fields
