"""Draw the card's grid of uncurated samples: `python -m models.samples --out FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from models import sampling
from models.figures import picture_grid
from models.scenes import draw_caption, draw_scene

NUM_PROMPTS = 24
NUM_SEEDS = 6
SEED = 4


def main(arguments: list[str] | None = None) -> None:
    """Draw the first prompts of a fixed seed, none left out."""
    parser = argparse.ArgumentParser(description="Draw uncurated samples.")
    parser.add_argument("--model", type=Path, default=sampling.SMALL)
    parser.add_argument("--out", type=Path, default=sampling.CARD / "samples.png")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(SEED)
    scenes = [draw_scene(rng, with_held_out=True) for _ in range(options.prompts)]
    prompts = [draw_caption(scene, rng).text for scene in scenes]
    repeated = [prompt for prompt in prompts for _ in range(NUM_SEEDS)]
    seeds = [*range(NUM_SEEDS)] * len(prompts)
    images = sampling.generate(sampling.load_pipeline(options.model), repeated, seeds)
    rows = [list(row) for row in torch.split(images, NUM_SEEDS)]
    picture_grid(rows, labels=prompts).save(options.out)


if __name__ == "__main__":
    main()
