"""Measure the shipped model: `python -m models.evaluate --json` ends with one line of JSON."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import dataset, sampling
from models.assemble import read_atlas
from models.rendering import Renderer
from models.scenes import Scene, draw_scene, full_caption, is_held_out
from models.scoring import CLIP, JUDGE, ClipScorer, Judge

logger = logging.getLogger(__name__)

NUM_PROMPTS = 500
NUM_REAL = 1000  # fresh renderings that the judge is examined on
PROMPT_SEED = 20_240_416
REAL_SEED = 31_337
NUM_TIMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Shares are 0..1; half of the prompts name a pair held out from training."""

    subject_top1: float
    background_accuracy: float
    position_accuracy: float
    size_accuracy: float
    clip_score: float  # mean cosine
    judge_on_real: dict[str, float]
    held_out: dict[str, float]  # the judge's accuracy on held-out pairs
    seen: dict[str, float]  # and on the others
    seconds_per_image: float
    num_prompts: int
    guidance_scale: float


def draw_prompts(count: int, seed: int = PROMPT_SEED) -> list[Scene]:
    """Draw scenes for prompts, every other one of a held-out pair."""
    rng, scenes = np.random.default_rng(seed), list[Scene]()
    while len(scenes) < count:
        scene = draw_scene(rng, with_held_out=True)
        if is_held_out(scene.subject, scene.background) == bool(len(scenes) % 2):
            scenes.append(scene)
    return scenes


def examine_judge(judge: Judge, *, count: int = NUM_REAL) -> dict[str, float]:
    """Return the judge's accuracy by attribute on fresh pictures drawn as the generator's."""
    renderer = Renderer(read_atlas(JUDGE / "sprites.png"))
    rng = np.random.default_rng(REAL_SEED)
    scenes = [draw_scene(rng, with_held_out=True) for _ in range(count)]
    images = dataset.to_images(np.stack([renderer.render(scene, rng) for scene in scenes]))
    return shares(judge.accuracy(images, scenes), range(count))


def shares(right: dict[str, list[bool]], rows: Sequence[int]) -> dict[str, float]:
    """Return the share of right answers among the rows, by attribute."""
    return {
        name: round(statistics.mean(answers[row] for row in rows), 4)
        for name, answers in right.items()
    }


def seconds_per_image(pipeline: Any) -> float:
    """Time whole pictures at batch 1: 50 steps with guidance, text and decoding included."""
    times = []
    for seed in range(NUM_TIMED):
        started_at = time.perf_counter()
        pipeline(
            "a large red apple on a blue background",
            num_inference_steps=sampling.NUM_STEPS,
            guidance_scale=sampling.GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(seed),
        )
        times.append(time.perf_counter() - started_at)
    return round(statistics.median(times), 3)


def evaluate(model: Path, *, num_prompts: int, rows: Path | None = None) -> Report:
    """Generate a picture for every prompt and have it judged; `rows` takes each verdict."""
    pipeline, judge = sampling.load_pipeline(model), Judge.load()
    seconds = seconds_per_image(pipeline)
    logger.info("%.2f s for a picture; drawing %d", seconds, num_prompts)
    scenes = draw_prompts(num_prompts)
    prompts = [full_caption(scene) for scene in scenes]
    images = sampling.generate(pipeline, prompts, range(num_prompts))
    right = judge.accuracy(images, scenes)
    cosines = ClipScorer.load(model / CLIP.name).score(images, prompts)
    if rows:
        rows.write_text("".join(_verdicts(scenes, prompts, right)))
    overall = shares(right, range(num_prompts))
    return Report(
        subject_top1=overall["subject"],
        background_accuracy=overall["background"],
        position_accuracy=overall["position"],
        size_accuracy=overall["size"],
        clip_score=round(cosines.mean().item(), 4),
        judge_on_real=examine_judge(judge),
        held_out=shares(right, range(1, num_prompts, 2)),
        seen=shares(right, range(0, num_prompts, 2)),
        seconds_per_image=seconds,
        num_prompts=num_prompts,
        guidance_scale=sampling.GUIDANCE_SCALE,
    )


def _verdicts(
    scenes: list[Scene], prompts: list[str], right: dict[str, list[bool]]
) -> Iterator[str]:
    """Yield a JSON line for each prompt: what it was, and which attributes were found."""
    for row, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        held_out = is_held_out(scene.subject, scene.background)
        found = {name: answers[row] for name, answers in right.items()}
        line = {"prompt": prompt, "subject": scene.subject, "held_out": held_out, "found": found}
        yield json.dumps(line) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Print the report, as JSON in one last line or as a table."""
    parser = argparse.ArgumentParser(description="Measure the small model.")
    parser.add_argument("--json", action="store_true", help="one line of JSON, the last printed")
    parser.add_argument("--judge-only", action="store_true", help="only examine the judge")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--model", type=Path, default=sampling.SMALL)
    parser.add_argument("--rows", type=Path, help="a file for one JSON line a prompt")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    fields: dict[str, Any]
    if options.judge_only:
        fields = {"judge_on_real": examine_judge(Judge.load())}
    else:
        fields = asdict(evaluate(options.model, num_prompts=options.prompts, rows=options.rows))
    if options.json:
        print(json.dumps(fields))  # noqa: T201 - the command's output
    else:
        print("\n".join(f"{name:20} {value}" for name, value in fields.items()))  # noqa: T201


if __name__ == "__main__":
    main()
