"""Calibrate the shipped model: `python -m models.calibrate --out DIR` writes `thresholds.json`.

`nirvana calibrate` does the same for any model and log. This one draws its prompts as the model's
captions are drawn, one to three attributes changed, and has the judge agree besides CLIPScore.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cache.calibration import FILE_NAME
from cache.entry import StateKind
from evaluation.calibration.calibrate import about, conclude, k_set, measure
from evaluation.calibration.drawing import Drawer, DrawingPlan
from evaluation.calibration.floors import Rule
from evaluation.calibration.measurements import MeasurementFile
from evaluation.calibration.pairs import draw_pairs
from evaluation.calibration.quality import ClipScore, Picture, Quality
from models import sampling
from models.dataset import COLUMNS, VALUES
from models.scenes import Scene, draw_scene, full_caption
from models.scoring import CLIP, Judge
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.threads import ThreadTable

logger = logging.getLogger(__name__)

NUM_SCENES: Final = 1_200
SEED: Final = 51_203  # no other set of prompts of this project has it
BATCH_SIZE: Final = 16
CHANGES_MAX: Final = 3  # attributes
# The judge is nearly noiseless, so more must be kept than of the paper's CLIPScore.
ALPHAS: Final = {"clip_score": 0.9, "judge": 0.95}


class Judged:
    """Which share of a prompt's attributes the judge finds."""

    name = "judge"

    def __init__(self, judge: Judge, scenes: dict[str, Scene]) -> None:
        self._judge, self._scenes = judge, scenes

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return shares, [n]."""
        scenes = [self._scenes[prompt] for prompt in prompts]
        right = self._judge.accuracy([Image.fromarray(each) for each in pictures], scenes)
        shares: NDArray[np.float64] = np.array(list(right.values()), dtype=np.float64).mean(axis=0)
        return shares


def draw_scenes(rng: np.random.Generator) -> dict[str, Scene]:
    """Draw scenes by their prompts, each followed by some that differ in a few attributes."""
    scenes: dict[str, Scene] = {}
    while len(scenes) < NUM_SCENES:
        scene = draw_scene(rng)
        scenes[full_caption(scene)] = scene
        for num_changes in range(1, CHANGES_MAX + 1):
            changed = rng.choice(COLUMNS, size=num_changes, replace=False)
            values = {column: str(rng.choice(VALUES[column])) for column in changed}
            other = replace(scene, **values)
            scenes[full_caption(other)] = other
    return scenes


def main(arguments: list[str] | None = None) -> None:
    """Measure, or continue to, and write the thresholds and the curves."""
    parser = argparse.ArgumentParser(description="Calibrate the shipped model.")
    parser.add_argument("--model", type=Path, default=sampling.SMALL)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kind", type=StateKind, choices=list(StateKind), action="append")
    parser.add_argument("--out", type=Path, required=True, help="a folder; run again to continue")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    family = loading.load(options.model)
    scenes = draw_scenes(np.random.default_rng(SEED))
    vectors = family.embedding(list(scenes))
    pairs = draw_pairs(list(scenes), vectors, count=options.pairs, rng=np.random.default_rng(SEED))
    plan = DrawingPlan(
        num_inference_steps=sampling.NUM_STEPS,
        guidance_scale=sampling.GUIDANCE_SCALE,
        ks=k_set(sampling.NUM_STEPS),
        kinds=tuple(options.kind or StateKind),
        seed=SEED,
    )
    qualities: list[Quality] = [
        ClipScore.load(options.model / CLIP.name),
        Judged(Judge.load(), scenes),
    ]
    names = [quality.name for quality in qualities]
    file = MeasurementFile(options.out / "pairs.jsonl", about(plan, pairs, family, names))
    threads = ThreadTable({1: options.threads})
    with Engine(family, batch_size_max=BATCH_SIZE, threads=threads) as engine:
        drawer = Drawer(engine, family, plan)
        measure(pairs, drawer, qualities, file, progress=_log_progress(len(pairs)))
    found = conclude(file.done, Rule(alphas=ALPHAS), plan, family, now=datetime.now(UTC))
    found.calibration.write(options.out / FILE_NAME)
    print(json.dumps(found.calibration.to_json()))  # noqa: T201 - the command's output


def _log_progress(total: int) -> Callable[[int], None]:
    num_done = 0

    def advance(num: int) -> None:
        nonlocal num_done
        num_done += num
        logger.info("%d of %d pairs", num_done, total)

    return advance


if __name__ == "__main__":
    main()
