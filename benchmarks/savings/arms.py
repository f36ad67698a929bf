"""What is compared: ways to serve one log, each as the settings of a fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from cache.calibration import Calibration, read_shipped
from cache.codec import encode
from cache.entry import Sharing, StateKind, ThresholdSource
from cache.selector import PAPER, Selector, Thresholds
from cache.settings import Policy
from producer.contract import CacheMode
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.schedulers import resumes

CAPACITY_SHARE: Final = 0.25  # of what the log would fill
#: Of N: how far a repeated prompt may skip in our arms. The log's captions leave nothing open, so
#: that re-rolls of them stay as different as uncached ones are: docs/savings.md has the numbers.
REROLL_FRACTION: Final = 0.74
EVICT_EVERY_S: Final = 2.0  # a few jobs: the cache is never far above its capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to serve the log through the fleet."""

    name: str
    title: str  #: in tables
    kind: StateKind | None = None  #: of the states it keeps; None keeps nothing
    source: ThresholdSource = ThresholdSource.CALIBRATED
    policy: Policy = Policy.LCBFU_AGED
    reroll_fraction: float = REROLL_FRACTION  #: 1 sets no limit

    @property
    def cache(self) -> CacheMode:
        """What its jobs ask of the cache."""
        return CacheMode.BYPASS if self.kind is None else CacheMode.USE


NONE: Final = Arm(name="none", title="no cache")
#: A sample of the jobs with other seeds: how far two uncached pictures of a prompt differ.
RESEEDED: Final = Arm(name="reseeded", title="no cache, other seeds")
NIRVANA: Final = Arm(
    name="nirvana",
    title="NIRVANA as published",
    kind=StateKind.INTERMEDIATE,
    source=ThresholdSource.PAPER,
    policy=Policy.LCBFU,
    reroll_fraction=1.0,
)
MODM: Final = Arm(
    name="modm",
    title="MoDM-style re-noising",
    kind=StateKind.FINAL,
    source=ThresholdSource.PAPER,
    policy=Policy.FIFO,
    reroll_fraction=1.0,
)
INTERMEDIATE: Final = Arm(
    name="intermediate", title="ours, intermediate states", kind=StateKind.INTERMEDIATE
)
FINAL: Final = Arm(name="final", title="ours, final states", kind=StateKind.FINAL)
FLEET_ARMS: Final = (NONE, RESEEDED, NIRVANA, MODM, INTERMEDIATE, FINAL)
OURS: Final = (INTERMEDIATE, FINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model that serves the log: what an arm's capacity depends on."""

    folder: Path
    revision: str
    num_inference_steps: int
    bytes_per_state: int
    calibration: Calibration | None  #: that the model ships; None: the paper's thresholds hold
    resumable: frozenset[int]  #: steps from which its scheduler can go on

    @classmethod
    def of(cls, folder: Path, family: Family) -> Served:
        """Measure a state as the cache would write it."""
        spec, scheduler = family.spec, family.scheduler
        latents = torch.zeros(family.latent_shape(spec.height, spec.width), dtype=family.dtype)
        num_steps = spec.num_inference_steps
        shipped = [
            one
            for one in read_shipped([str(folder)])
            if (one.revision, one.embedder) == (family.revision, family.embedder.id)
        ]
        return cls(
            folder=folder,
            revision=family.revision,
            num_inference_steps=num_steps,
            bytes_per_state=encode(latents).num_bytes,
            calibration=shipped[0] if shipped else None,
            resumable=frozenset(
                k for k in range(1, num_steps) if resumes(scheduler, num_steps, k=k)
            ),
        )

    def thresholds(self, arm: Arm) -> Thresholds:
        """Those that the arm's worker will use."""
        known = self.calibration
        is_paper = arm.source is ThresholdSource.PAPER
        if is_paper or known is None or arm.kind is None or arm.kind not in known.tables:
            return PAPER
        return Thresholds(version=known.version, is_calibrated=True, rows=known.tables[arm.kind])

    def k_set(self, arm: Arm) -> tuple[int, ...]:
        """Steps that a hit may skip."""
        ks = Selector.of(self.thresholds(arm)).k_set(self.num_inference_steps)
        is_any = arm.kind is StateKind.FINAL  # noised again, it depends on no solver's history
        return tuple(k for k in ks if is_any or k in self.resumable)

    def capacity_bytes(self, arm: Arm, num_jobs: int) -> int:
        """A quarter of what the log would fill if every job left all that it could."""
        per_job = len(self.k_set(arm)) if arm.kind is StateKind.INTERMEDIATE else 1
        return int(CAPACITY_SHARE * num_jobs * per_job * self.bytes_per_state)


def environment(
    arm: Arm, served: Served, *, num_jobs: int, sharing: Sharing, num_threads: int
) -> Mapping[str, str]:
    """The arm's settings of its worker."""
    given = {
        "NIRVANA_MODEL_PATH": str(served.folder.resolve()),
        "NIRVANA_DEVICE": "cpu",
        # Chosen once for all arms: a worker that measures may choose another number each time.
        "NIRVANA_NUM_THREADS": str(num_threads),
        "NIRVANA_EVICT_EVERY_S": str(EVICT_EVERY_S),
        "NIRVANA_CACHE_ENABLED": "false",
    }
    if arm.kind is not None:
        given |= {
            "NIRVANA_CACHE_ENABLED": "true",
            "NIRVANA_CACHE_STATE_KIND": arm.kind.value,
            "NIRVANA_CACHE_THRESHOLDS": arm.source.value,
            "NIRVANA_CACHE_POLICY": arm.policy.value,
            "NIRVANA_CACHE_SHARING": sharing.value,
            "NIRVANA_CACHE_REROLL_FRACTION": str(arm.reroll_fraction),
            "NIRVANA_CACHE_CAPACITY_BYTES": str(served.capacity_bytes(arm, num_jobs)),
        }
    return given


def load(folder: Path) -> tuple[Family, Served]:
    """Load the model here too: its embedder answers the replayed arms. Raises DenoisingError."""
    family = loading.load(folder)
    return family, Served.of(folder, family)
