"""The wire form, version 1: the job that goes in, and the words that result.py shares with it.

JSON only. Every limit and every enumeration of the outside stands here; `docs/wire.md` shows it to
clients in other languages and `tests/unit/producer/golden/` pins it.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from producer.errors import InvalidJob
from producer.refusal import refusal

WIRE_VERSION: Final = 1
GENERATE_TASK: Final = "nirvana.generate"
CANCEL_TASK: Final = "nirvana.cancel"
PROMPT_CHARACTERS_MAX: Final = 4_000
SEED_MAX: Final = 2**53 - 1  # the largest integer that JSON numbers carry exactly everywhere
MESSAGE_BYTES_MAX: Final = 64 * 1024
_DATE_AND_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")


class Status(StrEnum):
    """Where a job is; the last three never change."""

    SUBMITTED = "submitted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing will move the job any more."""
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class Priority(StrEnum):
    """Which of its queue's lists a job waits in."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def celery_number(self) -> int:
        """kombu's list for it: 0 is served first, and lists stand at 0, 3, 6 and 9."""
        return {Priority.INTERACTIVE: 0, Priority.STANDARD: 3, Priority.BATCH: 6}[self]


class CacheMode(StrEnum):
    """What a job asks of the cache."""

    USE = "use"
    BYPASS = "bypass"  # neither read nor written
    REFRESH = "refresh"  # start from noise and replace what is cached


class CacheOutcome(StrEnum):
    """What the cache did for a job."""

    HIT = "hit"
    MISS = "miss"
    BYPASS = "bypass"
    REFRESH = "refresh"


class ErrorCode(StrEnum):
    """Why a job failed."""

    INVALID_JOB = "invalid_job"
    UNKNOWN_MODEL = "unknown_model"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL = "internal"


class EventType(StrEnum):
    """What a webhook tells."""

    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"

    @classmethod
    def of(cls, status: Status) -> Self:
        """The event of a terminal status."""
        return cls(f"job.{status}")


def _is_integer(number: object) -> object:
    """Refuse true and 1.0, which Python takes for 1."""
    if type(number) is not int:
        raise ValueError("input should be 1")
    return number


def _is_storable(text: str) -> str:
    """Refuse what neither UTF-8 nor PostgreSQL can hold."""
    if "\x00" in text:
        raise ValueError("must not contain the character U+0000")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    return text


def _is_plausible(instant: datetime) -> datetime:
    """Refuse what no clock shows, and what cannot be added to without an overflow."""
    if not 2_000 <= instant.year < 2_200:
        raise ValueError("must lie in the years 2000 to 2199")
    return instant


def _is_written_out(instant: object) -> object:
    """Refuse numbers, also as text: they could be seconds or milliseconds."""
    is_written = isinstance(instant, str) and _DATE_AND_TIME.match(instant)
    if not (is_written or isinstance(instant, datetime)):
        raise ValueError("must be a time as in RFC 3339, such as 2026-11-23T22:00:00Z")
    return instant


def _is_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Instant = Annotated[
    AwareDatetime,
    Field(strict=False),
    BeforeValidator(_is_written_out),
    AfterValidator(_is_plausible),
]
Event = Annotated[EventType, Field(strict=False)]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
ModelSlug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MetadataText = Annotated[str, StringConstraints(max_length=512), AfterValidator(_is_storable)]
Prompt = Annotated[
    str,
    StringConstraints(min_length=1, max_length=PROMPT_CHARACTERS_MAX),
    AfterValidator(_is_not_blank),
    AfterValidator(_is_storable),
]
NegativePrompt = Annotated[
    str, StringConstraints(max_length=PROMPT_CHARACTERS_MAX), AfterValidator(_is_storable)
]
User = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_is_storable)]
Url = Annotated[
    str, StringConstraints(max_length=2_048, pattern=r"^https?://"), AfterValidator(_is_storable)
]


class WireForm(BaseModel):
    """Frozen, strict (no "20" for 20), and closed: an unknown field is refused by name."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def to_wire(self) -> dict[str, Any]:
        """The JSON object, as plain Python values."""
        return self.model_dump(mode="json")


class Webhook(WireForm):
    """Where to call back: a registered endpoint, or a url signed with a registered secret."""

    endpoint: Name | None = None
    url: Url | None = None
    secret_name: Name | None = None
    events: Annotated[tuple[Event, ...], Field(strict=False, min_length=1)] = tuple(EventType)

    @model_validator(mode="after")
    def _names_one_target(self) -> Self:
        if (self.endpoint is None) == (self.url is None):
            raise ValueError("give either 'endpoint' or 'url'")
        if self.endpoint is not None and self.secret_name is not None:
            raise ValueError("'secret_name' goes with 'url'; an endpoint has its own secrets")
        return self


class GenerationJob(WireForm):
    """One image asked for (docs/wire.md). None means the model's own default."""

    version: Annotated[Literal[1], BeforeValidator(_is_integer)] = WIRE_VERSION
    prompt: Prompt
    negative_prompt: NegativePrompt = ""
    model: ModelSlug | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    height: Annotated[int, Field(ge=8, le=8_192)] | None = None
    width: Annotated[int, Field(ge=8, le=8_192)] | None = None
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] | None = None
    namespace: Namespace = "default"
    user: User | None = None
    priority: Annotated[Priority, Field(strict=False)] = Priority.STANDARD
    cache: Annotated[CacheMode, Field(strict=False)] = CacheMode.USE
    webhook: Webhook | None = None
    metadata: Annotated[dict[MetadataText, MetadataText], Field(max_length=16)] = Field(
        default_factory=dict
    )
    submitted_at: Instant | None = None
    deadline_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    job_id: Annotated[uuid.UUID, Field(strict=False)] | None = None

    @classmethod
    def from_wire(cls, fields: object) -> Self:
        """Read the JSON object of a message; raises InvalidJob naming the first bad field."""
        if not isinstance(fields, dict):
            raise InvalidJob("job", f"must be a JSON object, not {type(fields).__name__}")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise refusal(error, cls, fields) from None

    @property
    def payload_hash(self) -> str:
        """SHA-256 of what was asked, without the id and the time it was asked at."""
        fields = self.model_dump(mode="json", exclude={"job_id", "submitted_at"})
        return hashlib.sha256(canonical_json(fields)).hexdigest()

    def deadline_at(self, received_at: datetime) -> datetime | None:
        """When the job is worth nothing any more; `received_at` counts where no time was sent."""
        if self.deadline_s is None:
            return None
        return (self.submitted_at or received_at) + timedelta(seconds=self.deadline_s)


def canonical_json(value: object) -> bytes:
    """One byte form per JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
