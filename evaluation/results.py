"""What replays of a log say, as tables and JSON show it."""

from __future__ import annotations

from dataclasses import dataclass

from cache.entry import StateKind
from cache.settings import Policy
from evaluation.costs import Prices
from evaluation.predictor import PredictorQuality
from evaluation.queueing import Latency
from evaluation.sharing import SharedBy


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one cache did for the log."""

    policy: Policy
    state_kind: StateKind
    capacity_share: float
    capacity_bytes: int
    bytes_max: int
    hit_share: float
    hits_by_k: dict[int, int]
    steps_saved: int
    savings: float  # steps saved by steps asked for
    share_of_unbounded: float
    num_stored: int
    num_evicted: int
    gpu_hours_saved: float | None
    money_saved: float | None
    latency: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What no policy exceeds, whatever it knows (`evaluation.clairvoyant`)."""

    state_kind: StateKind
    capacity_share: float
    savings: float
    #: What a plan that knows the log reaches (`evaluation.planned`): the best lies between.
    planned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A log's replays."""

    trace: str
    num_jobs: int
    num_users: int | None
    unknown_user_share: float
    embedder: str
    shared_by: SharedBy
    admission: str
    num_inference_steps: int
    k_set: tuple[int, ...]
    prices: Prices | None
    num_gpus: int | None
    uncached_latency: Latency | None
    predictor: PredictorQuality | None
    runs: tuple[Run, ...]
    bounds: tuple[Bound, ...]
    caveats: tuple[str, ...]
