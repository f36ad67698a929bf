"""Calibrate the shipped model for the log: `python -m benchmarks.savings.calibrate --out DIR`.

`nirvana calibrate` does the same for any model and log. This one draws its prompts as the log of
the savings benchmark is drawn, with another seed, and has the judge agree besides CLIPScore.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.savings.workload import Request, generate, owners_of
from cache.entry import StateKind
from evaluation.calibration.calibrate import Study, calibrate, k_set
from evaluation.calibration.drawing import DrawingPlan
from evaluation.calibration.floors import Rule
from evaluation.calibration.plots import calibration_plots
from evaluation.calibration.quality import ClipScore, Picture
from evaluation.pages import write_page
from evaluation.trace import Trace
from evaluation.vectors import Progress
from models import sampling
from models.scenes import Scene
from models.scoring import CLIP, Judge
from workers.denoising.families import loading

logger = logging.getLogger(__name__)

NUM_ROWS: Final = 8_000
SEED: Final = 51_203  # no other set of prompts of this project has it
#: The paper's share, of both measures.
ALPHAS: Final = {"clip_score": 0.9, "judge": 0.9}


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


def draw_log() -> list[Request]:
    """Draw requests as the evaluation's users make them, none with a prompt of the evaluation."""
    held_out = {request.prompt for request in generate()}
    return [one for one in generate(NUM_ROWS, seed=SEED) if one.prompt not in held_out]


def trace_of(requests: Sequence[Request]) -> Trace:
    """The requests as a prompt log."""
    return Trace(
        name="generated",
        prompts=[request.prompt for request in requests],
        users=owners_of(requests),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, or continue to, and write the thresholds, the curves and the plots."""
    parser = argparse.ArgumentParser(description="Calibrate the shipped model.")
    parser.add_argument("--model", type=Path, default=sampling.SMALL)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--near", type=int, default=90, help="more pairs, of the most alike")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kind", type=StateKind, choices=list(StateKind), action="append")
    parser.add_argument("--out", type=Path, required=True, help="a folder; run again to continue")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    requests = draw_log()
    scenes = {request.prompt: request.scene for request in requests}
    study = Study(
        family=loading.load(options.model),
        log=trace_of(requests),
        qualities=[ClipScore.load(options.model / CLIP.name), Judged(Judge.load(), scenes)],
        plan=DrawingPlan(
            num_inference_steps=sampling.NUM_STEPS,
            guidance_scale=sampling.GUIDANCE_SCALE,
            ks=k_set(sampling.NUM_STEPS),
            kinds=tuple(options.kind or StateKind),
            seed=SEED,
        ),
        rule=Rule(alphas=ALPHAS),
        num_pairs=options.pairs,
        num_near=options.near,
    )
    found = calibrate(study, options.out, num_threads=options.threads, stages=_log_stages)
    write_page(options.out, "The shipped model, calibrated", calibration_plots(found))
    print(json.dumps(found.calibration.to_json()))


@contextmanager
def _log_stages(title: str, total: int) -> Iterator[Progress]:
    num_done = 0

    def advance(num: int) -> None:
        nonlocal num_done
        num_done += num
        logger.info("%d of %d %s", num_done, total, title)

    yield advance


if __name__ == "__main__":
    main()
