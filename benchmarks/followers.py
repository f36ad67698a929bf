"""What it saves to follow a job in flight: `python -m benchmarks.followers --json`.

Bursts as a user interface sends them, four seeds of one prompt (`seeds`) or four prompts that
differ in a word (`near`), through the real engine and the shipped model, with and without
following, from an idle machine to a full one: `--loads` bursts are in the works at any time. No
cache beside it: every leader starts from noise. Then, of `--prompts` prompts, what following at
each of `--fractions` of the steps does to four seeds of a prompt: CLIPScore, the share of
attributes that the judge finds, and diversity (mean pairwise 1 - cosine of CLIP features), as
ratios to the same four from noise.

Latency is from a burst's submission to each image, in CPU seconds of this process: its engine is
never idle while a job is in the works, so on a machine of its own they are seconds.

Caveats: one small model on one CPU thread, where a batch of n costs less than n; the CLIP was
trained on the generator's own drawings.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from PIL import Image

import models
from cache.approximate import ApproximateCache
from cache.calibration import read_shipped
from cache.entry import MissReason, ScopeSpec, Sharing, StateKind
from cache.selector import Selector, Thresholds
from models.scenes import SIZES, STYLES, Scene, draw_scene, full_caption
from models.scoring import CLIP, ClipScorer, Judge
from producer.contract import CacheOutcome, GenerationJob
from producer.result import CacheReport
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.request import Denoised, DenoiseRequest
from workers.leaders import Leaders
from workers.ledger import Claim
from workers.reuse import ReusePlan, scope_of

SMALL: Final = Path(models.__file__).parent / "small"
BURST: Final = 4  # jobs
IN_FLIGHT: Final = 8  # jobs, as a worker takes by default
SEED: Final = 8_117
WORKLOADS: Final = ("seeds", "near")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture of a burst."""

    scene: Scene
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ended:
    """A job's picture, and what it took."""

    denoised: Denoised
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedCache:
    """Finds nothing; its thresholds are those that ship with the model."""

    shipped: Selector

    def selector(self, _: ScopeSpec) -> Selector:
        """Of every scope."""
        return self.shipped


class Bench:
    """Runs bursts through one engine."""

    def __init__(
        self, engine: Engine, family: Family, selector: Selector, *, num_steps: int
    ) -> None:
        self._engine, self._family, self._selector = engine, family, selector
        self._num_steps = num_steps

    def run(
        self, bursts: Sequence[Sequence[Job]], *, at_once: int, wait_s: float, fraction: float
    ) -> list[list[Ended]]:
        """All bursts, `at_once` of them in the works at any time; as many jobs as a worker has."""
        leaders = Leaders(
            cast("ApproximateCache", ShippedCache(shipped=self._selector)),
            sharing=Sharing.USER,
            wait_s=wait_s,
            reroll_fraction=fraction,
        )
        with ThreadPoolExecutor(IN_FLIGHT) as slots, ThreadPoolExecutor(at_once) as users:

            def send(burst: Sequence[Job]) -> list[Ended]:
                sent_at = time.process_time()
                return list(slots.map(lambda job: self._do(job, leaders, sent_at), burst))

            return list(users.map(send, bursts))

    def _do(self, job: Job, leaders: Leaders, sent_at: float) -> Ended:
        claim, spec = self._claim(job), self._family.spec
        encoding = self._engine.encode(claim.job.prompt, family=self._family).result()
        plan = ReusePlan(
            scope=scope_of(claim.job, self._family),
            report=CacheReport(outcome=CacheOutcome.MISS, reason=MissReason.NONE_SIMILAR.value),
        )
        with leaders.place() as place:
            leaders.join(place, claim, plan, encoding.embedding)
            request = DenoiseRequest(
                job_id=claim.name,
                encoding=encoding,
                height=spec.height,
                width=spec.width,
                num_inference_steps=self._num_steps,
                guidance_scale=spec.guidance_scale,
                seed=job.seed,
                lead=place.lead,
                follow=place.follow,
            )
            denoised = self._engine.denoise(request, family=self._family).result()
        return Ended(denoised=denoised, latency_s=time.process_time() - sent_at)

    def _claim(self, job: Job) -> Claim:
        spec = self._family.spec
        asked = GenerationJob(
            prompt=full_caption(job.scene),
            model="small",
            height=spec.height,
            width=spec.width,
            num_inference_steps=self._num_steps,
            seed=job.seed,
        )
        now = datetime.now(UTC)
        return Claim(job_id=uuid.uuid4(), attempt=1, job=asked, claimed_at=now, deadline_at=None)


def make_bursts(workload: str, num_bursts: int) -> Iterator[list[Job]]:
    """Four seeds of a prompt, or four prompts, the later ones a word away from the first."""
    chance = np.random.default_rng(SEED)
    for number in range(num_bursts):
        scene = draw_scene(chance)
        scenes = [scene] * BURST if workload == "seeds" else _near(scene)
        yield [Job(scene=one, seed=BURST * number + n) for n, one in enumerate(scenes)]


def _near(scene: Scene) -> list[Scene]:
    sizes = [size for size in SIZES if size != scene.size]
    (style,) = (style for style in STYLES if style != scene.style)
    return [scene, *(replace(scene, size=size) for size in sizes), replace(scene, style=style)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one side at one load."""

    steps_saved: float  #: share of those asked for
    mean_s: float
    p95_s: float
    last_s: float  #: of a burst's last image, mean

    @classmethod
    def of(cls, bursts: Sequence[Sequence[Ended]]) -> Figures:
        """Over all jobs of the bursts."""
        ended = [one for burst in bursts for one in burst]
        skipped = sum(one.denoised.k for one in ended)
        latencies = [one.latency_s for one in ended]
        return cls(
            steps_saved=skipped / (skipped + sum(one.denoised.steps_run for one in ended)),
            mean_s=float(np.mean(latencies)),
            p95_s=float(np.quantile(latencies, 0.95)),
            last_s=float(np.mean([max(one.latency_s for one in burst) for burst in bursts])),
        )


class Scorer:
    """Sees what the pictures of a burst show."""

    def __init__(self) -> None:
        self._clip, self._judge = ClipScorer.load(SMALL / CLIP.name), Judge.load()

    def score(self, burst: Sequence[Ended], scene: Scene) -> dict[str, float]:
        """CLIPScore, the judge's share of attributes, and diversity."""
        pictures = [Image.fromarray(one.denoised.image) for one in burst]
        seen = self._clip.embed_images(pictures).double().numpy()
        said = self._clip.embed_texts([full_caption(scene)]).double().numpy()[0]
        right = self._judge.accuracy(pictures, [scene] * len(pictures))
        pairs = combinations(range(len(pictures)), 2)
        return {
            "clip_score": float((seen @ said).mean()),
            "judge": float(np.mean(list(right.values()))),
            "diversity": float(np.mean([1 - seen[one] @ seen[other] for one, other in pairs])),
        }


def measure_loads(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each workload at each load, with and without following, in turn."""
    rows = []
    print(f"{'workload':10}{'bursts at once':>15}{'steps saved':>13}{'mean s':>16}{'p95 s':>16}")
    for workload in WORKLOADS:
        bursts = list(make_bursts(workload, options.bursts))
        for load in options.loads:
            alone, following = (
                Figures.of(bench.run(bursts, at_once=load, wait_s=wait_s, fraction=0.4))
                for wait_s in (0.0, options.wait_s)
            )
            print(
                f"{workload:10}{load:>15}{following.steps_saved:>13.1%}"
                f"{alone.mean_s:>7.2f} -> {following.mean_s:<5.2f}"
                f"{alone.p95_s:>7.2f} -> {following.p95_s:<5.2f}",
                flush=True,
            )
            rows.append(
                {
                    "workload": workload,
                    "bursts_at_once": load,
                    "steps_saved": round(following.steps_saved, 4),
                    "mean_latency_ratio": round(following.mean_s / alone.mean_s, 3),
                    "p95_latency_ratio": round(following.p95_s / alone.p95_s, 3),
                    "last_latency_ratio": round(following.last_s / alone.last_s, 3),
                }
            )
    return rows


def measure_quality(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Four seeds of each prompt, from noise and following at each fraction."""
    scorer, bursts = Scorer(), list(make_bursts("seeds", options.prompts))

    def scores(wait_s: float, fraction: float) -> dict[str, float]:
        drawn = bench.run(bursts, at_once=2, wait_s=wait_s, fraction=fraction)
        each = [scorer.score(one, jobs[0].scene) for one, jobs in zip(drawn, bursts, strict=True)]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}

    base, rows = scores(0.0, 0.0), []
    print("\nfrom noise: " + ", ".join(f"{name} {value:.3f}" for name, value in base.items()))
    print(f"{'of N':>6}" + "".join(f"{name + ' ratio':>18}" for name in base))
    for fraction in options.fractions:
        ratios = {name: value / base[name] for name, value in scores(600.0, fraction).items()}
        print(f"{fraction:>6.0%}" + "".join(f"{v:>18.3f}" for v in ratios.values()), flush=True)
        named = {f"{name}_ratio": round(value, 3) for name, value in ratios.items()}
        rows.append({"fraction": fraction, **named})
    return rows


def shipped_selector() -> Selector:
    """The shipped model's table for finished latents, and half of the steps for equal prompts."""
    (calibration,) = read_shipped([str(SMALL)])
    rows = calibration.tables[StateKind.FINAL]
    rows = (*rows, (0.5, 0.99)) if rows[-1][0] < 0.5 else rows
    return Selector.of(Thresholds(version="shipped", is_calibrated=True, rows=tuple(rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.followers", description=__doc__)
    parser.add_argument("--bursts", type=int, default=6, help="of each workload and load")
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--wait-s", type=float, default=600.0, help="NIRVANA_FOLLOW_WAIT_S")
    parser.add_argument("--prompts", type=int, default=12, help="whose quality is looked at")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--steps", type=int, default=50, help="num_inference_steps")
    parser.add_argument("--json", action="store_true", help="one line of JSON, the last printed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    family = loading.load(SMALL)
    with Engine(family, batch_size_max=IN_FLIGHT) as engine:
        bench = Bench(engine, family, shipped_selector(), num_steps=options.steps)
        loads = measure_loads(bench, options)
        quality = measure_quality(bench, options)
    if options.json:
        print(json.dumps({"benchmark": "followers", "loads": loads, "quality": quality}))


if __name__ == "__main__":
    main()
