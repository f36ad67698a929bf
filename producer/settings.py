"""Settings of a client: the broker's address and what a job gets where it names nothing."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from producer.errors import SettingsInvalid

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


class ProducerSettings(BaseSettings):
    """Read from `NIRVANA_*` variables, checked when read; an empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix="NIRVANA_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0", pattern=r"^(rediss?|valkey)://", repr=False
    )
    """Redis or Valkey: queues, traces, Celery's results."""
    namespace: str = Field(default="default", pattern=r"^[a-z0-9-]{1,64}$")
    """The namespace of jobs that name none."""
    client_name: str = Field(default="client", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Who sends, as Flower shows it beside the machine's name."""
    namespace_buckets: int = Field(default=8, ge=1, le=64)
    """Queues per model; kombu serves them in turn, so one tenant's backlog blocks no other's."""
    queue_length_max: int = Field(default=100_000, ge=1)
    """Waiting jobs of one queue and priority above which `submit` is refused."""
    trace_retention_s: int = Field(default=7 * 86_400, ge=60)
    """How long a job can be asked after, from its submission and again from its end."""


def load_settings(kind: type[SettingsT]) -> SettingsT:
    """Read settings from the environment; raises SettingsInvalid naming the variable."""
    try:
        return kind()
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in problem["loc"]).upper()
        raise SettingsInvalid(f"NIRVANA_{name}: {problem['msg']}") from None
