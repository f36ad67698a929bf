"""The bound: for each job the largest k that keeps its own quality, known only afterwards.

A sample of the log's jobs is drawn from noise and from every k of the finished latents of the
nearest prompt that its user sent before, with the same seed. Kept is what stays at ALPHA of the
uncached CLIPScore and shows as much of what was asked for, by the judge. The cache of the oracle
holds everything, and a repeat may look like what it repeats: no policy with fewer states, no
selector that goes by the similarity of the nearest prompt saves more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.savings.calibrate import Judged
from benchmarks.savings.comparison import ALPHA
from benchmarks.savings.workload import Request, owners_of
from cache.entry import StateKind
from evaluation.calibration.calibrate import BATCH_SIZE, about, k_set, measure
from evaluation.calibration.drawing import Drawer, DrawingPlan
from evaluation.calibration.measurements import Measurement, MeasurementFile
from evaluation.calibration.pairs import Pair, nearest_earlier
from evaluation.calibration.quality import ClipScore, Quality
from evaluation.vectors import Progress
from models import sampling
from models.scoring import CLIP, Judge
from workers.denoising.engine import Engine
from workers.denoising.families.family import Family
from workers.denoising.threads import ThreadTable

ORACLE: Final = "oracle"
SAMPLE_MAX: Final = 120  # jobs
SEED: Final = 90_001
CLIP_SCORE, JUDGE = "clip_score", "judge"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Oracle:
    """The bound of a log; goes on where a killed run stopped."""

    folder: Path
    requests: Sequence[Request]
    vectors: NDArray[np.float32]  #: [n, dim], the requests' own

    @property
    def num_sampled(self) -> int:
        """Jobs, spread evenly over the log."""
        return min(SAMPLE_MAX, len(self.requests))

    def draw(self, family: Family, *, model: Path, num_threads: int) -> None:
        """Draw and score what the folder lacks; says on stderr how far it is."""
        scenes = {request.prompt: request.scene for request in self.requests}
        qualities: list[Quality] = [
            ClipScore.load(model / CLIP.name),
            Judged(Judge.load(), scenes),
        ]
        pairs = self._pairs()
        threads = ThreadTable({1: num_threads})
        with Engine(family, batch_size_max=BATCH_SIZE, threads=threads) as engine:
            drawer = Drawer(engine, family, _PLAN)
            measure(pairs, drawer, qualities, self._file(family), progress=_told(len(pairs)))

    def savings(self, family: Family) -> float | None:
        """Steps skipped / steps asked for over the sample; None before all of it is drawn.

        A job without an earlier prompt of its user skips none.
        """
        if not self._path.is_file():
            return None
        pairs = self._pairs()
        done = self._file(family).of(pairs)
        if len(done) < len(pairs):
            return None
        return sum(map(largest_k, done)) / (self.num_sampled * _PLAN.num_inference_steps)

    @property
    def _path(self) -> Path:
        return self.folder / f"{ORACLE}.jsonl"

    def _file(self, family: Family) -> MeasurementFile:
        return MeasurementFile(self._path, about(_PLAN, family, [CLIP_SCORE, JUDGE]))

    def _pairs(self) -> list[Pair]:
        """Each sampled job with the nearest of its user's earlier prompts, where there is one."""
        total = len(self.requests)
        sampled = {place * total // self.num_sampled for place in range(self.num_sampled)}
        nearest = nearest_earlier(self.vectors, owners_of(self.requests))
        return [
            Pair(
                cached=self.requests[cached].prompt,
                asked=self.requests[asked].prompt,
                similarity=similarity,
            )
            for cached, asked, similarity in sorted(nearest, key=lambda row: row[1])
            if asked in sampled
        ]


def largest_k(measurement: Measurement) -> int:
    """The most steps that this job could have skipped; 0 where every k costs too much."""
    uncached, _ = measurement.from_noise  # of the same seed
    floor = uncached[CLIP_SCORE] - (1 - ALPHA) * abs(uncached[CLIP_SCORE])
    by_k = measurement.from_state[StateKind.FINAL]
    kept = (
        k
        for k, scores in by_k.items()
        if scores[CLIP_SCORE] >= floor and scores[JUDGE] >= uncached[JUDGE]
    )
    return max(kept, default=0)


def _told(total: int) -> Progress:
    num_done = 0

    def progress(num: int) -> None:
        nonlocal num_done
        num_done += num
        end = "\n" if num_done == total else ""
        print(f"\r{ORACLE}: {num_done} of {total} jobs  ", end=end, file=sys.stderr)

    return progress


_PLAN: Final = DrawingPlan(
    num_inference_steps=sampling.NUM_STEPS,
    guidance_scale=sampling.GUIDANCE_SCALE,
    ks=k_set(sampling.NUM_STEPS),
    kinds=(StateKind.FINAL,),
    seed=SEED,
)
