"""What a reused state does: finish B from A's state after k steps, over the range of similarity.

`python -m models.reuse --out DIR` writes `reuse.json` (the table) and `reuse.png` (the figure).
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import sampling
from models.dataset import COLUMNS, VALUES
from models.figures import picture_grid
from models.scenes import Scene, draw_scene, full_caption
from models.scoring import CLIP, ClipScorer, Judge

logger = logging.getLogger(__name__)

KEPT_STEPS = (5, 10, 15, 20, 25, 30, 35, 40, 45)
CHANGES = (
    ("style",),
    ("size",),
    ("position",),
    ("background",),
    ("subject",),
    ("subject", "style"),
    ("background", "position"),
    ("subject", "background"),
    ("subject", "background", "position"),
    COLUMNS,
)  # what sets B's prompt apart from A's
SIMILARITY_EDGES = (0.95, 0.85, 0.7, 0.5, 0.25, -1.0)  # lower edges of the table's rows
JUDGED_IN_B = ("subject", "background", "position")
SEED = 977


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A is cached, B is asked for."""

    a: Scene
    b: Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One way of making B's pictures; each tensor is (pairs,)."""

    judged: Tensor  # share of B's attributes that the judge finds
    clip: Tensor  # cosine with B's prompt
    likeness: Tensor  # CLIP cosine with A's finished picture
    distance: Tensor  # root mean square pixel difference from A's finished picture, 0..2


def draw_pairs(count: int) -> list[Pair]:
    """Draw pairs, the kinds of change in turn."""
    rng = np.random.default_rng(SEED)
    return [_change(draw_scene(rng), CHANGES[n % len(CHANGES)], rng) for n in range(count)]


def _change(a: Scene, columns: tuple[str, ...], rng: np.random.Generator) -> Pair:
    others = {c: [v for v in VALUES[c] if v != getattr(a, c)] for c in columns}
    return Pair(a=a, b=replace(a, **{c: str(rng.choice(others[c])) for c in columns}))


def measure(
    pipeline: Any, scorer: ClipScorer, pairs: list[Pair]
) -> tuple[dict[str, Measured], dict[str, Tensor]]:
    """Draw A, B from noise and B from each of A's states; return measures and pictures."""
    prompts = {"a": [full_caption(p.a) for p in pairs], "b": [full_caption(p.b) for p in pairs]}
    noise = sampling.draw_noise(range(len(pairs)))
    cached = sampling.denoise(pipeline, prompts["a"], noise, keep=KEPT_STEPS)
    # B from noise gets its own noise: with A's it would share A's layout from the start.
    own = sampling.draw_noise(range(10_000, 10_000 + len(pairs)))
    finished = {"a": cached.latents, "0": sampling.denoise(pipeline, prompts["b"], own).latents}
    for k in KEPT_STEPS:
        run = sampling.denoise(pipeline, prompts["b"], cached.states[k], start=k)
        finished[str(k)] = run.latents
    images = {name: sampling.decode(pipeline, latents) for name, latents in finished.items()}
    judge = Judge.load()
    measured = {
        name: _measure(image, images["a"], scorer, judge, pairs) for name, image in images.items()
    }
    return measured, images


def _measure(
    images: Tensor,
    images_a: Tensor,
    scorer: ClipScorer,
    judge: Judge,
    pairs: list[Pair],
) -> Measured:
    right = judge.accuracy(images, [pair.b for pair in pairs])
    return Measured(
        judged=torch.tensor([right[name] for name in JUDGED_IN_B]).float().mean(0),
        clip=scorer.score(images, [full_caption(pair.b) for pair in pairs]),
        likeness=(scorer.embed_images(images) * scorer.embed_images(images_a)).sum(-1),
        distance=(images - images_a).square().mean((1, 2, 3)).sqrt(),
    )


def tabulate(similarity: Tensor, measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """Average by similarity: rows from the most to the least alike, columns by k (0 is noise)."""
    rows, above = [], 1.01
    for edge in SIMILARITY_EDGES:
        chosen = (similarity >= edge) & (similarity < above)
        if chosen.any():
            row: dict[str, Any] = {
                "similarity": [edge, round(min(above, 1.0), 2)],
                "pairs": int(chosen.sum()),
            }
            for name in ("judged", "clip", "likeness", "distance"):
                row[name] = {
                    k: round(float(getattr(m, name)[chosen].mean()), 3)
                    for k, m in measured.items()
                    if k != "a"
                }
            rows.append(row)
        above = edge
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Write the table and the figure."""
    parser = argparse.ArgumentParser(description="Measure what reused states do.")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--model", type=Path, default=sampling.SMALL)
    parser.add_argument("--out", type=Path, default=sampling.CARD)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    pairs = draw_pairs(options.pairs)
    scorer = ClipScorer.load(options.model / CLIP.name)
    texts_a, texts_b = ([full_caption(getattr(p, side)) for p in pairs] for side in "ab")
    similarity = (scorer.embed_texts(texts_a) * scorer.embed_texts(texts_b)).sum(-1)
    measured, images = measure(sampling.load_pipeline(options.model), scorer, pairs)
    options.out.mkdir(parents=True, exist_ok=True)
    table = tabulate(similarity, measured)
    (options.out / "reuse.json").write_text(json.dumps(table, indent=1) + "\n")
    order = similarity.argsort(descending=True)
    shown = order[:: max(1, len(order) // 8)][:8].tolist()
    columns = {"A": "a", "B from noise": "0"} | {f"k = {k}": str(k) for k in KEPT_STEPS}
    labels = [f"{similarity[r]:.2f}\nA: {texts_a[r]}\nB: {texts_b[r]}" for r in shown]
    rows = [[images[name][row] for name in columns.values()] for row in shown]
    picture_grid(rows, labels=labels, heads=list(columns)).save(options.out / "reuse.png")
    logger.info("wrote reuse.json and reuse.png in %s", options.out)


if __name__ == "__main__":
    main()
