"""Settings of the workers and of beat; the cache's and the client's stand in their own packages."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SLUG_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,63}$"


class WorkerSettings(BaseSettings):
    """Read from `NIRVANA_*` variables, checked when a process starts."""

    model_config = SettingsConfigDict(
        env_prefix="NIRVANA_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    model: str = Field(default="small", pattern=SLUG_PATTERN)
    """Slug under which jobs ask for the model; jobs that name none get it."""
    model_path: str = Field(default="models/small", min_length=1)
    """A diffusers folder, or a hub id."""
    models: Annotated[dict[str, str], NoDecode] = {}
    """More models, as JSON from slug to folder or hub id: loaded when a job first asks for one."""
    models_memory_bytes: int | None = Field(default=None, ge=1)
    """Of all loaded models' weights; the least recently used idle one makes room. Unset: no end."""
    scheduler: str | None = None
    """A scheduler class of diffusers to use instead of each model's own, with its configuration."""
    device: str = "auto"
    """`auto` (CUDA where there is one), or a torch device."""
    latent_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is float32 on a CPU; on a GPU float16, for Stable Diffusion 3 and Flux bfloat16."""
    channels_last: bool = False
    """Whether convolutions keep channels innermost; on a CPU no gain, not measured on a GPU."""
    compile_denoiser: bool = False
    """Whether torch.compile works on the denoiser; not measured on a GPU."""
    num_threads: int = Field(default=0, ge=0)
    """Of torch on a CPU; 0 chooses at start, by measuring one job and a full batch."""
    batch_size_max: int = Field(default=0, ge=0, le=256)
    """Jobs that share one forward pass; 0 is all in flight on a CPU, and on a GPU a measurement."""
    jobs_in_flight: int = Field(default=8, ge=1, le=256)
    """Jobs one GPU worker takes on at once: Celery's concurrency."""
    follow_wait_s: float = Field(default=30.0, ge=0, le=3_600)
    """How long a job waits for one like it in flight, to start from its prediction; 0: never."""
    follow_reroll_fraction: float = Field(default=0.4, ge=0, le=1)
    """Of num_inference_steps: the most that is skipped by following a job of the same words, which
    asks for another picture; 0 lets such jobs follow nobody."""
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
    captures_bytes_max: int = Field(default=256 * 1024**2, ge=1)
    """Latents waiting to be stored, at most; see NIRVANA_CAPTURES_WAITING_MAX."""
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
    webhooks_in_flight_max: int = Field(default=64, ge=1, le=1_024)
    """Webhooks that one io worker sends at once."""
    webhooks_per_receiver_max: int = Field(default=8, ge=1, le=1_024)
    """Of them, to one endpoint, or to one host and port of a namespace's urls."""

    job_retention_s: float = Field(default=30 * 86_400, ge=7_200)
    """How long an ended job is kept, with its image and webhooks; longer than a message may wait
    to be delivered again, or the job would run twice."""
    image_retention_s: float | None = Field(default=None, gt=0)
    """How long an image is kept after its job's end; unset: as long as the job."""
    delivery_retention_s: float | None = Field(default=None, gt=0)
    """How long a webhook is kept once it is delivered or given up; unset: as long as the job."""
    expire_max: int = Field(default=10_000, ge=1)
    """Jobs, images and webhooks that one run removes, at most, of each."""

    log_format: Literal["text", "json"] = "text"
    """Of worker processes' logs on stderr: one line an event, with key=value, or a JSON object."""
    gpu_metrics_port: int | None = Field(default=None, ge=1_024, le=65_535)
    """Where a GPU worker answers Prometheus; unset: nowhere."""
    io_metrics_port: int | None = Field(default=None, ge=1_024, le=65_535)
    """Where an io worker answers Prometheus; unset: nowhere."""
    metrics_address: str = "127.0.0.1"
    """Address of these ports."""

    rescue_every_s: float = Field(default=2.0, gt=0)
    """How often lost jobs are looked for."""
    evict_every_s: float = Field(default=10.0, gt=0)
    """How often the cache is brought under its capacity."""
    deliver_every_s: float = Field(default=5.0, gt=0)
    """How often due webhooks are swept; a first attempt does not wait for it."""
    sweep_every_s: float = Field(default=3_600.0, gt=0)
    """How often objects without rows, and rows without objects, are looked for."""
    index_every_s: float = Field(default=300.0, gt=0)
    """How often scopes are looked at that need an index for their lookups, or need it no more."""
    expire_every_s: float = Field(default=60.0, gt=0)
    """How often jobs, images and webhooks past their retention are removed."""
    refit_every_s: float = Field(default=600.0, gt=0)
    """How often the match predictors are fitted anew, where NIRVANA_CACHE_PREDICTOR is on."""
    announce_every_s: float = Field(default=5.0, gt=0)
    """How often ends are told that no client could be told of at once."""

    @property
    def model_paths(self) -> dict[str, str]:
        """Folder or hub id of every model that is served, by slug; the default comes first."""
        return {self.model: self.model_path, **self.models}

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: object) -> object:
        """Read the JSON here: an error of pydantic-settings' own would not name the variable."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f'must be JSON such as {{"sdxl": "/models/sdxl"}}: {error}') from None

    @field_validator("models")
    @classmethod
    def _are_models(cls, models: dict[str, str], others: ValidationInfo) -> dict[str, str]:
        for slug, path in models.items():
            if not re.fullmatch(SLUG_PATTERN, slug):
                raise ValueError(f"{slug!r} must match {SLUG_PATTERN}")
            if not path:
                raise ValueError(f"{slug!r} has no folder")
            if slug == others.data.get("model"):
                raise ValueError(f"{slug!r} is NIRVANA_MODEL, which has NIRVANA_MODEL_PATH")
        return models

    @field_validator("heartbeat_s")
    @classmethod
    def _keeps_leases_alive(cls, heartbeat_s: float, others: ValidationInfo) -> float:
        lease_s = others.data.get("lease_s", heartbeat_s * 2)
        if heartbeat_s > lease_s / 2:
            raise ValueError(f"must be at most half of NIRVANA_LEASE_S, which is {lease_s:g}")
        return heartbeat_s
