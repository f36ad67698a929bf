"""A file of jobs: JSON Lines, one job of the wire form a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.commands.console import UsageProblem
from producer.contract import GenerationJob
from producer.errors import InvalidJob


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
