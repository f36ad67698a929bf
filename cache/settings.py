"""Settings of the cache, read from NIRVANA_ variables and checked at start."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Self, cast

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cache.database import parse_database_url
from cache.entry import Sharing, StateKind, ThresholdSource
from cache.errors import InvalidUrl, SettingsInvalid
from cache.objects import S3Address
from cache.selector import ChoiceRules

PREFIX = "NIRVANA_"


class Policy(StrEnum):
    """Which states are evicted first: in SQL in `cache.policies`, in Python in `cache.ranking`."""

    LCBFU = "lcbfu"  # the paper's: fewest steps saved so far
    LCBFU_AGED = "lcbfu-aged"  # fewest uses, which age, so that the past does not stay for ever
    LRU = "lru"
    LFU = "lfu"
    FIFO = "fifo"


class CacheSettings(BaseSettings):
    """What the cache needs to know; `load` names the variable in its error."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="ignore",
        # compose passes what is not set as an empty string.
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        # Two of them hold passwords.
        hide_input_in_errors=True,
    )

    database_url: SecretStr
    """postgresql://user:password@host:port/database"""
    s3_url: SecretStr
    """http[s]://ACCESS:SECRET@host:port/bucket"""

    cache_enabled: bool = True
    """Off: every job starts from noise, and nothing is kept."""
    cache_capacity_bytes: Annotated[int, Field(gt=0)] = 10 * 1024**3
    """Bytes of states that each namespace keeps, where its own row says nothing else."""
    cache_budget_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Longest a job waits for the cache, lookup and fetch together."""
    cache_lookups_max: Annotated[int, Field(ge=1, le=1_000)] = 32
    """Lookups in progress at once; more start from noise."""
    cache_sharing: Sharing = Sharing.USER
    """Whose states a job may start from: its own user's, or all of its namespace."""
    cache_state_kind: StateKind = StateKind.FINAL
    """What is kept: latents after each step of the k set, or the finished ones, to be re-noised."""
    cache_thresholds: ThresholdSource = ThresholdSource.CALIBRATED
    """Similarities that allow a k: the newest measured for the model, else the paper's; or `paper`,
    the paper's in any case."""
    cache_k_fractions: Annotated[tuple[float, ...] | None, NoDecode] = None
    """Steps kept, as fractions of num_inference_steps, comma separated; unset: the thresholds'."""
    cache_neighbours: Annotated[int, Field(ge=1, le=1_000)] = 10
    """Nearest prompts among which the largest usable k is taken."""
    cache_own_newest: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Newest prompts of the job's own user that are compared exactly, beside a search of the whole
    namespace by its index; under namespace sharing only. 0 trusts the index alone."""
    cache_choice_margin: Annotated[float, Field(ge=0, le=0.1)] = 0.005
    """Among states that skip equally many steps, one is chosen at random whose prompt's similarity
    is within this much of the nearest's."""
    cache_reroll_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of num_inference_steps: the most that is skipped by a job whose user has asked for the same
    words before, and so for another picture; 0 starts it from noise, 1 sets no limit."""
    cache_reuse_max: Annotated[int | None, Field(ge=1)] = None
    """Uses after which a cached prompt is not offered any more; unset means no end."""

    cache_index_rows_min: Annotated[int, Field(ge=100)] = 2_000
    """Rows of a scope from which on it has an HNSW index of its own; fewer are searched exactly."""
    cache_index_m: Annotated[int, Field(ge=2, le=100)] = 24
    """Links of a row in the graph of HNSW, as it is built; a change builds all indexes anew. The
    same for all io workers."""
    cache_index_ef_construction: Annotated[int, Field(ge=4, le=1_000)] = 128
    """Candidates while an HNSW index is built; at least twice NIRVANA_CACHE_INDEX_M. A change
    builds all indexes anew. The same for all io workers."""
    cache_index_ef_search: Annotated[int, Field(ge=1, le=1_000)] = 20
    """Candidates of a lookup in an HNSW index: more find the nearest more often, more slowly."""
    cache_index_scan_tuples_max: Annotated[int, Field(ge=1)] = 20_000
    """Rows that a lookup visits, at most, where the nearest are expired or deleted."""
    cache_index_memory_bytes: Annotated[int, Field(ge=1024**2, le=2**40)] = 1024**3
    """Memory of PostgreSQL for the build of an index; builds that need more are far slower."""
    cache_index_workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Processes of PostgreSQL that help to build an index."""
    cache_index_growth_max: Annotated[float, Field(gt=1)] = 2.0
    """An index is built anew where its bytes by row are so many times those when it was built."""
    cache_predictor: bool = False
    """Whether the match predictor may send a job to noise without a lookup; under namespace sharing
    only. Off by default: a lookup costs less than the hits that it loses (docs/evaluation.md)."""

    cache_policy: Policy = Policy.LCBFU_AGED
    """Which states are evicted first; `lcbfu` is the paper's."""
    cache_evict_batch: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """Rows deleted in one transaction."""
    cache_evict_max: Annotated[int, Field(ge=1, le=1_000_000)] = 100_000
    """States evicted in one run, at most."""
    cache_evict_grace_s: Annotated[float, Field(ge=0)] = 600.0
    """Policy lcbfu leaves unused states alone for this long while older ones remain."""
    cache_ttl_s: Annotated[float, Field(gt=0)] | None = None
    """Time to live of a cached prompt; unset means until evicted."""
    cache_sweep_grace_s: Annotated[float, Field(ge=60)] = 3_600.0
    """Objects and rows younger than this are never called orphans."""

    cache_uses_batch: Annotated[int, Field(ge=1)] = 256
    """Uses are written after so many, or after so long."""
    cache_uses_flush_s: Annotated[float, Field(gt=0)] = 2.0
    """See NIRVANA_CACHE_USES_BATCH."""

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, url: SecretStr) -> SecretStr:
        return _checked(url, parse_database_url)

    @field_validator("s3_url")
    @classmethod
    def _is_s3_url(cls, url: SecretStr) -> SecretStr:
        return _checked(url, S3Address.parse)

    @field_validator("cache_k_fractions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value

    @field_validator("cache_k_fractions")
    @classmethod
    def _are_fractions(cls, fractions: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if fractions is None:
            return None
        if not fractions or not all(0 < fraction < 1 for fraction in fractions):
            raise ValueError("must be fractions between 0 and 1, comma separated")
        return tuple(sorted(set(fractions)))

    @field_validator("cache_index_ef_construction")
    @classmethod
    def _fits_links(cls, ef_construction: int, others: ValidationInfo) -> int:
        m = others.data.get("cache_index_m", 2)
        if ef_construction < 2 * m:
            raise ValueError(f"must be at least twice NIRVANA_CACHE_INDEX_M, which is {m}")
        return ef_construction

    @field_validator("cache_predictor")
    @classmethod
    def _tells_nobody(cls, is_on: bool, others: ValidationInfo) -> bool:
        """Refuse what would tell a user whether others' prompts are like theirs."""
        if is_on and others.data.get("cache_sharing") is Sharing.USER:
            raise ValueError("on needs NIRVANA_CACHE_SHARING=namespace")
        return is_on

    @property
    def choice_rules(self) -> ChoiceRules:
        """How a lookup chooses."""
        return ChoiceRules(
            margin=self.cache_choice_margin,
            again_fraction=self.cache_reroll_fraction,
            reuse_max=self.cache_reuse_max,
        )

    @classmethod
    def load(cls, **values: object) -> Self:
        """Read the environment; raises SettingsInvalid naming the first bad variable."""
        try:
            return cls(**cast("dict[str, Any]", values))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            name = PREFIX + str(problem["loc"][0]).upper()
            reason = "is required" if problem["type"] == "missing" else problem["msg"]
            raise SettingsInvalid(name, reason.removeprefix("Value error, ")) from None


def _checked(url: SecretStr, parse: Callable[[str], object]) -> SecretStr:
    try:
        parse(url.get_secret_value())
    except InvalidUrl as error:
        raise ValueError(str(error)) from None
    return url
