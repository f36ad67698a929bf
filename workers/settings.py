"""Settings of the workers and of beat; the cache's and the client's stand in their own packages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """Read from `NIRVANA_*` variables, checked when a process starts."""

    model_config = SettingsConfigDict(
        env_prefix="NIRVANA_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    model: str = Field(default="small", pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")
    """Slug under which jobs ask for the model."""
    model_path: str = Field(default="models/small", min_length=1)
    """A diffusers folder, or a hub id."""
    scheduler: str | None = None
    """A scheduler class of diffusers to use instead of the model's own, with its configuration."""
    device: str = "auto"
    """`auto` (CUDA where there is one), or a torch device."""
    latent_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is float32 on a CPU; on a GPU float16, for Stable Diffusion 3 and Flux bfloat16."""
    num_threads: int = Field(default=1, ge=1)
    """Of torch on a CPU: one is best for small batches of a small model."""
    batch_size_max: int = Field(default=8, ge=1, le=256)
    """Jobs that share one forward pass."""
    jobs_in_flight: int = Field(default=8, ge=1, le=256)
    """Jobs one GPU worker takes on at once: Celery's concurrency."""
    image_size_max: int = Field(default=1_024, ge=8)
    """Pixels; larger images are refused."""

    lease_s: float = Field(default=8.0, ge=1)
    """A job whose worker gives no sign of life for this long may be taken over."""
    heartbeat_s: float = Field(default=1.0, gt=0)
    """How often a worker renews its leases and sees cancellations."""
    attempts_max: int = Field(default=3, ge=1)
    """Claims of one job before it fails as `attempts_exhausted`."""
    resend_grace_s: float = Field(default=10.0, ge=0)
    """How long a job may go unclaimed behind a claimed one before its message counts as lost."""
    storage_patience_s: float = Field(default=120.0, ge=0)
    """How long a job waits for a database or object store that is away."""
    captures_waiting_max: int = Field(default=64, ge=1)
    """Entries waiting to be stored; when full, states are dropped, never jobs delayed."""
    image_url_lifetime_s: int = Field(default=86_400, ge=60, le=7 * 86_400)
    """How long a signed image URL is good for."""
    public_s3_url: str | None = None
    """Scheme, host and port under which clients reach the object store, if another."""

    webhook_secret: str | None = Field(default=None, pattern=r"^whsec_[A-Za-z0-9+/=]+$", repr=False)
    """Signs webhooks of jobs that give a url and name no secret."""
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=30)
    """One attempt to deliver, all of it."""
    webhook_allow_private_addresses: bool = False
    """Whether webhooks may go to private, loopback and link-local addresses."""

    rescue_every_s: float = Field(default=2.0, gt=0)
    """How often lost jobs are looked for."""
    evict_every_s: float = Field(default=10.0, gt=0)
    """How often the cache is brought under its capacity."""
    deliver_every_s: float = Field(default=5.0, gt=0)
    """How often due webhooks are swept; a first attempt does not wait for it."""
    sweep_every_s: float = Field(default=3_600.0, gt=0)
    """How often objects without rows, and rows without objects, are looked for."""
    announce_every_s: float = Field(default=5.0, gt=0)
    """How often ends are told that no client could be told of at once."""

    @field_validator("heartbeat_s")
    @classmethod
    def _keeps_leases_alive(cls, heartbeat_s: float, others: ValidationInfo) -> float:
        lease_s = others.data.get("lease_s", heartbeat_s * 2)
        if heartbeat_s > lease_s / 2:
            raise ValueError(f"must be at most half of NIRVANA_LEASE_S, which is {lease_s:g}")
        return heartbeat_s
