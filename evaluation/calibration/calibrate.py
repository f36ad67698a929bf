"""Measure a model's thresholds: draw pairs, score them, find the floors.

pairs over similarity --> Drawer (the real engine) --> Quality --> MeasurementFile --> floors
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from cache.calibration import FILE_NAME, Calibration
from evaluation.calibration.drawing import Drawer, DrawingPlan, Drawn
from evaluation.calibration.floors import Curve, Rule, find_curves, floors
from evaluation.calibration.measurements import Measurement, MeasurementFile, Scores
from evaluation.calibration.pairs import ROWS_MAX, Pair, draw_pairs
from evaluation.calibration.quality import Picture, Quality
from evaluation.prepared import Stages, silent
from evaluation.sharing import SharedBy, sharing_groups
from evaluation.trace import Trace
from evaluation.vectors import Progress
from workers.denoising.engine import Engine
from workers.denoising.families.family import Family
from workers.denoising.threads import ThreadTable

K_FRACTIONS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of N
PAIRS_AT_ONCE: Final = 2  # their pictures share forward passes; what a kill can lose
BATCH_SIZE: Final = 16  # pictures in one forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is measured, and by which rule it is judged."""

    family: Family
    log: Trace  #: of prompts that no evaluation uses
    qualities: Sequence[Quality]
    plan: DrawingPlan
    rule: Rule
    num_pairs: int  #: spread over the range of similarity
    num_near: int = 0  #: more, of the most alike: most reuses are there

    def pairs(self) -> list[Pair]:
        """Draw the pairs; raises OptionInvalid where the prompts are too different."""
        prompts = self.log.prompts[:ROWS_MAX]
        sharing = SharedBy.NAMESPACE if self.log.users is None else SharedBy.USER
        return draw_pairs(
            prompts,
            self.family.embedding(prompts),
            sharing_groups(self.log, sharing)[:ROWS_MAX],
            count=self.num_pairs,
            num_near=self.num_near,
            rng=np.random.default_rng(self.plan.seed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a calibration found."""

    calibration: Calibration
    curves: tuple[Curve, ...]
    num_pairs: int
    alphas: dict[str, float]  #: by measure, the share that must be kept
    #: By measure, the share of pairs whose second seed scores under alpha of the first: chance.
    null_share_below: dict[str, float]


def calibrate(
    study: Study,
    folder: Path,
    *,
    num_threads: int,
    stages: Stages = silent,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Calibrated:
    """Measure the pairs that the folder lacks; write thresholds.json and curves.json into it.

    Raises OptionInvalid where the folder holds measurements of something else.
    """
    pairs = study.pairs()
    names = [quality.name for quality in study.qualities]
    file = MeasurementFile(folder / "pairs.jsonl", about(study.plan, study.family, names))
    threads = ThreadTable({1: num_threads})
    with (
        Engine(study.family, batch_size_max=BATCH_SIZE, threads=threads) as engine,
        stages("pairs", len(pairs)) as progress,
    ):
        drawer = Drawer(engine, study.family, study.plan)
        measure(pairs, drawer, study.qualities, file, progress=progress)
    found = conclude(file.of(pairs), study.rule, study.plan, study.family, now=clock())
    found.calibration.write(folder / FILE_NAME)
    (folder / "curves.json").write_text(json.dumps(asdict(found), indent=1) + "\n", "utf-8")
    return found


def measure(
    pairs: Sequence[Pair],
    drawer: Drawer,
    qualities: Sequence[Quality],
    file: MeasurementFile,
    *,
    progress: Progress = lambda _: None,
) -> None:
    """Draw and score the pairs that the file lacks; a pair's number chooses its seeds."""
    missing = file.missing(pairs)
    progress(len(pairs) - len(missing))
    for first in range(0, len(missing), PAIRS_AT_ONCE):
        chosen = missing[first : first + PAIRS_AT_ONCE]
        for (_, pair), drawn in zip(chosen, drawer.draw(chosen), strict=True):
            file.add(_measured(pair, drawn, qualities))
        progress(len(chosen))


def conclude(
    measurements: Sequence[Measurement],
    rule: Rule,
    plan: DrawingPlan,
    family: Family,
    *,
    now: datetime,
) -> Calibrated:
    """Find the floors, and name what they are good for."""
    curves = find_curves(measurements, rule)
    tables = {
        kind: tuple((k / plan.num_inference_steps, floor) for k, floor in found.items())
        for kind in plan.kinds
        if (found := floors(curves, kind))
    }
    calibration = Calibration(
        revision=family.revision,
        embedder=family.embedder.id,
        tables=tables,
        measured={
            "alphas": dict(rule.alphas),
            "confidence": rule.confidence,
            "pairs": len(measurements),
            "num_inference_steps": plan.num_inference_steps,
            "guidance_scale": plan.guidance_scale,
            "at": now.isoformat(timespec="seconds"),
        },
    )
    null = {name: _null_share(measurements, name, alpha) for name, alpha in rule.alphas.items()}
    return Calibrated(
        calibration=calibration,
        curves=tuple(curves),
        num_pairs=len(measurements),
        alphas=dict(rule.alphas),
        null_share_below=null,
    )


def about(plan: DrawingPlan, family: Family, names: Sequence[str]) -> dict[str, object]:
    """What a file of measurements is of: with anything else it is not continued."""
    return {
        "revision": family.revision,
        "embedder": family.embedder.id,
        "plan": asdict(plan),
        "measures": list(names),
    }


def k_set(num_inference_steps: int, fractions: Sequence[float] = K_FRACTIONS) -> tuple[int, ...]:
    """The steps that are measured."""
    return tuple(sorted({max(1, int(f * num_inference_steps + 1e-9)) for f in fractions}))


def _measured(pair: Pair, drawn: Drawn, qualities: Sequence[Quality]) -> Measurement:
    pictures = [*drawn.from_noise, *_pictures(drawn)]
    scores = iter(_scores(pictures, pair.asked, qualities))
    return Measurement(
        pair=pair,
        from_noise=(next(scores), next(scores)),
        from_state={
            kind: {k: next(scores) for k in by_k} for kind, by_k in drawn.from_state.items()
        },
    )


def _pictures(drawn: Drawn) -> Iterator[Picture]:
    for by_k in drawn.from_state.values():
        yield from by_k.values()


def _scores(pictures: Sequence[Picture], prompt: str, qualities: Sequence[Quality]) -> list[Scores]:
    columns = {
        quality.name: quality.score(pictures, [prompt] * len(pictures)) for quality in qualities
    }
    return [
        {name: round(float(column[row]), 5) for name, column in columns.items()}
        for row in range(len(pictures))
    ]


def _null_share(measurements: Sequence[Measurement], measure: str, alpha: float) -> float:
    pairs = [each.from_noise for each in measurements]
    below = [second[measure] < alpha * first[measure] for first, second in pairs]
    return sum(below) / len(below)
