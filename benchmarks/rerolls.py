"""Whether the same prompt with another seed still gives another picture, by what it starts from.

    python -m benchmarks.rerolls [--prompts 12] [--rerolls 8] [--steps-skipped 10 15 ...] [--json]
                                 [--ways WAY ...] [--rows FILE]

Of each prompt a few pictures are drawn from noise, and their states kept. Then a user asks for the
prompt again and again, each time with another seed and each time starting at step k, in all the
ways of WAYS; and as often without a cache. Diversity is the mean distance (1 - cosine of CLIP
features) of two of the re-rolls, judge the share of attributes asked for that an independent
classifier finds in them; both as ratios to the uncached ones, with a 95 % interval from resampling
prompts. Half of the prompts name the subject alone and leave the rest open, half name everything:
there two pictures differ little to begin with. Prints a table and, with --json, one JSON line.
With --rows a run that was stopped goes on.

Caveats: one small model, one scheduler (DDIM), exact repeats of the prompt. The CLIP was trained
on the generator's own drawings.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import models
from models.judge_net import JUDGED
from models.scenes import Scene, draw_scene, full_caption, subject_words, with_article
from models.scoring import CLIP, ClipScorer, Judge
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Encoding, Family
from workers.denoising.request import Denoised, DenoiseRequest, StartState

SMALL: Final = Path(models.__file__).parent / "small"
KS: Final = (5, 10, 15, 20, 25, 30, 35, 40, 45)
SOURCES: Final = 4  # pictures of a prompt that were drawn from noise and are cached
DIVERSITY_RATIO_MIN: Final = 0.8
JUDGE_RATIO_MIN: Final = 0.97
SEED: Final = 4021  # of scenes, choices and noise
RESAMPLES: Final = 2_000
INTERVAL: Final = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studio:
    """Draws one prompt."""

    engine: Engine
    family: Family
    encoding: Encoding
    ks: tuple[int, ...]
    alphas: Tensor  #: [N], the share of the picture's variance before each step
    seed: int  #: of the choices

    def draw(
        self, seed: int, start: StartState | None = None, *, is_kept: bool = False
    ) -> Denoised:
        """Draw a picture; `is_kept` keeps the states after each k, and after k + 1."""
        spec = self.family.spec
        request = DenoiseRequest(
            job_id=f"re-roll-{seed}",
            encoding=self.encoding,
            height=spec.height,
            width=spec.width,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            seed=seed,
            start=start,
            capture_steps=frozenset({*self.ks, *(k + 1 for k in self.ks)} if is_kept else ()),
            capture_final=True,
        )
        return self.engine.denoise(request).result()

    def estimate(self, source: Denoised, k: int) -> Tensor:
        """What the denoiser made out of the picture x_0 at step k, [C, h, w].

        DDIM mixes the same x_0 and noise into x_k and x_(k+1) (Song et al. 2021, equation 12,
        eta = 0), so that two states give it without another pass.
        """
        signal, level = self.alphas[k : k + 2].sqrt(), (1 - self.alphas[k : k + 2]).sqrt()
        now, after = source.captured[k].double(), source.captured[k + 1].double()
        picture = level[1] * now - level[0] * after
        return (picture / (signal[0] * level[1] - signal[1] * level[0])).float()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rerolls:
    """Pictures of one prompt, and for each the picture whose state it started from."""

    pictures: list[NDArray[np.uint8]]
    parents: list[NDArray[np.uint8]]


Sources = Sequence[Denoised]  # pictures of the prompt that were drawn from noise
Seeds = Sequence[int]  # of the re-rolls
Way = Callable[[Studio, Sources, int, Seeds], Rerolls]


def final_oldest(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """All from one finished picture, noised again with the job's own seed."""
    return _parallel(studio, [sources[0]] * len(seeds), k, seeds)


def final_of_four(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """Each from one of four that were drawn from noise, chosen at random."""
    chance = np.random.default_rng(studio.seed)
    return _parallel(studio, [sources[int(chance.integers(SOURCES))] for _ in seeds], k, seeds)


def final_newest(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """Each from the one before it: a chain."""
    return _one_by_one(studio, sources[0], k, seeds, choose=lambda known: known - 1)


def final_random(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """Each from any earlier one, the first included."""
    chance = np.random.default_rng(studio.seed)
    return _one_by_one(
        studio, sources[0], k, seeds, choose=lambda known: int(chance.integers(known))
    )


def intermediate(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """All from one state after k steps, as it is."""
    return _resumed(studio, [0] * len(seeds), sources, k)


def intermediate_of_four(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """Each from the state of one of four pictures, chosen at random."""
    chance = np.random.default_rng(studio.seed)
    return _resumed(studio, [int(chance.integers(SOURCES)) for _ in seeds], sources, k)


def intermediate_fresh(studio: Studio, sources: Sources, k: int, seeds: Seeds) -> Rerolls:
    """All from one state after k steps: its picture as far as it was made out, with fresh noise."""
    start = StartState(latents=studio.estimate(sources[0], k), kind="final", k=k)
    drawn = [studio.draw(seed, start) for seed in seeds]
    return Rerolls(pictures=[one.image for one in drawn], parents=[sources[0].image] * len(drawn))


WAYS: Final[Mapping[str, Way]] = {
    "intermediate": intermediate,
    "intermediate, random of 4": intermediate_of_four,
    "intermediate, with fresh noise": intermediate_fresh,
    "final, the oldest": final_oldest,
    "final, the newest": final_newest,
    "final, random of all so far": final_random,
    "final, random of 4": final_of_four,
}


def _parallel(studio: Studio, parents: Sequence[Denoised], k: int, seeds: Sequence[int]) -> Rerolls:
    drawn = [studio.draw(seed, _final(one, k)) for one, seed in zip(parents, seeds, strict=True)]
    return Rerolls(pictures=[one.image for one in drawn], parents=[one.image for one in parents])


def _one_by_one(
    studio: Studio,
    source: Denoised,
    k: int,
    seeds: Seeds,
    *,
    choose: Callable[[int], int],
) -> Rerolls:
    known, parents = [source], []
    for seed in seeds:
        parent = known[choose(len(known))]
        parents.append(parent.image)
        known.append(studio.draw(seed, _final(parent, k)))
    return Rerolls(pictures=[one.image for one in known[1:]], parents=parents)


def _resumed(studio: Studio, chosen: Sequence[int], sources: Sequence[Denoised], k: int) -> Rerolls:
    """Draw each state once: the seed of a job changes nothing in what it makes of it."""
    starts = {
        at: StartState(latents=sources[at].captured[k], kind="intermediate", k=k)
        for at in set(chosen)
    }
    drawn = {at: studio.draw(SEED + at, start).image for at, start in starts.items()}
    return Rerolls(
        pictures=[drawn[at] for at in chosen], parents=[sources[at].image for at in chosen]
    )


def _final(source: Denoised, k: int) -> StartState:
    assert source.final_latents is not None
    return StartState(latents=source.final_latents, kind="final", k=k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt, and the attributes that it names."""

    prompt: str
    scene: Scene
    named: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        """Whether it leaves anything to chance."""
        return len(self.named) < len(JUDGED)


def draw_prompts(count: int) -> list[Asked]:
    """In turn one that names the subject alone, and one that names everything."""
    chance = np.random.default_rng(SEED)
    scenes = [draw_scene(chance) for _ in range(count)]
    return [_asked(scene, is_open=number % 2 == 0) for number, scene in enumerate(scenes)]


def _asked(scene: Scene, *, is_open: bool) -> Asked:
    if is_open:
        words = with_article(subject_words(scene.subject))
        return Asked(prompt=words, scene=scene, named=("subject",))
    return Asked(prompt=full_caption(scene), scene=scene, named=JUDGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of the re-rolls of one prompt."""

    diversity: float  #: mean distance of two of them
    from_parent: float  #: mean distance of one from the picture that it started from
    judge: float  #: share of the attributes asked for that are found


class Scorer:
    """Sees what pictures show."""

    def __init__(self, model: Path) -> None:
        self._clip, self._judge = ClipScorer.load(model / CLIP.name), Judge.load()

    def score(self, rerolls: Rerolls, asked: Asked) -> Score:
        """Compare the re-rolls with each other, with their parents, and with what was asked for."""
        pictures = [Image.fromarray(one) for one in rerolls.pictures]
        features = self._clip.embed_images(pictures).double().numpy()
        origins = self._clip.embed_images([Image.fromarray(one) for one in rerolls.parents])
        right = self._judge.accuracy(pictures, [asked.scene] * len(pictures))
        pairs = combinations(range(len(pictures)), 2)
        return Score(
            diversity=float(np.mean([1 - features[one] @ features[other] for one, other in pairs])),
            from_parent=float(np.mean(1 - (features * origins.double().numpy()).sum(-1))),
            judge=float(np.mean([right[name] for name in asked.named])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one prompt."""

    is_open: bool
    uncached: Score
    cached: dict[str, dict[int, Score]]  #: by way and k

    @classmethod
    def from_json(cls, line: str) -> Measured:
        """Read a line of --rows."""
        row = json.loads(line)
        cached = {
            way: {int(k): Score(**score) for k, score in by_k.items()}
            for way, by_k in row["cached"].items()
        }
        return cls(is_open=row["is_open"], uncached=Score(**row["uncached"]), cached=cached)


class Benchmark:
    """Draws prompts with a model and scores them; many pictures share a forward pass."""

    def __init__(
        self,
        engine: Engine,
        family: Family,
        scorer: Scorer,
        *,
        ways: Sequence[str],
        ks: Sequence[int],
        rerolls: int,
    ) -> None:
        self._engine, self._family, self._scorer = engine, family, scorer
        self._ways, self._ks, self._rerolls = tuple(ways), tuple(ks), rerolls
        scheduler = copy.deepcopy(family.scheduler)
        scheduler.set_timesteps(family.spec.num_inference_steps)
        self._alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()

    def measure(self, asked: Asked, *, first_seed: int) -> Measured:
        """Draw one prompt in all the ways, its seeds from `first_seed` on."""
        studio = Studio(
            engine=self._engine,
            family=self._family,
            encoding=self._engine.encode(asked.prompt).result(),
            ks=self._ks,
            alphas=self._alphas,
            seed=first_seed,
        )
        seeds = range(first_seed + SOURCES, first_seed + SOURCES + self._rerolls)
        tasks = [(way, k) for way in self._ways for k in self._ks]
        # One thread a task: each waits for its own pictures, which the engine draws together.
        with ThreadPoolExecutor(len(tasks) + SOURCES) as pool:
            keep = partial(studio.draw, is_kept=True)
            sources = list(pool.map(keep, range(first_seed, first_seed + SOURCES)))
            uncached = pool.map(studio.draw, seeds)
            drawn = pool.map(lambda task: WAYS[task[0]](studio, sources, task[1], seeds), tasks)
            # Without a cache there is no parent: another picture of the prompt stands in its place.
            apart = Rerolls(
                pictures=[one.image for one in uncached],
                parents=[sources[0].image] * len(seeds),
            )
            scores = {
                task: self._scorer.score(one, asked) for task, one in zip(tasks, drawn, strict=True)
            }
        return Measured(
            is_open=asked.is_open,
            uncached=self._scorer.score(apart, asked),
            cached={way: {k: scores[way, k] for k in self._ks} for way in self._ways},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """To the uncached re-rolls; the interval is of 95 %."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Ratio:
        """Ratio of means over prompts; prompts are resampled together with their base."""
        values, base = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        chosen = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
        low, high = np.quantile(values[chosen].mean(1) / base[chosen].mean(1), INTERVAL)
        return cls(value=float(values.mean() / base.mean()), low=float(low), high=float(high))

    def __str__(self) -> str:
        return f"{self.value:5.2f} [{self.low:4.2f} {self.high:4.2f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One way at one k."""

    diversity_open: Ratio  #: where the prompt names the subject alone
    diversity_full: Ratio  #: where it names everything
    from_parent: Ratio
    judge: Ratio

    @classmethod
    def of(cls, measured: Sequence[Measured], way: str, k: int) -> Figures:
        """Over the prompts."""

        def ratio(name: str, chosen: Sequence[Measured]) -> Ratio:
            pairs = [(one.cached[way][k], one.uncached) for one in chosen]
            return Ratio.of([(getattr(a, name), getattr(b, name)) for a, b in pairs])

        opened = [one for one in measured if one.is_open]
        return cls(
            diversity_open=ratio("diversity", opened),
            diversity_full=ratio("diversity", [one for one in measured if not one.is_open]),
            from_parent=ratio("from_parent", opened),
            judge=ratio("judge", measured),
        )

    @property
    def is_allowed(self) -> bool:
        """Whether re-rolls keep their variety, and show what was asked for."""
        diversity = min(self.diversity_open.value, self.diversity_full.value)
        return diversity >= DIVERSITY_RATIO_MIN and self.judge.value >= JUDGE_RATIO_MIN


Table = Mapping[str, Mapping[int, Figures]]


def k_max(found: Mapping[int, Figures]) -> int:
    """The largest k up to which every one is allowed; 0 if none is."""
    allowed = 0
    for k, one in sorted(found.items()):
        if not one.is_allowed:
            break
        allowed = k
    return allowed


def main(arguments: list[str] | None = None) -> None:
    """Draw, score, print."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    family = loading.load(options.model)
    assert type(family.scheduler).__name__ == "DDIMScheduler", "the estimates are DDIM's"
    with Engine(family, batch_size_max=options.batch_size) as engine:
        benchmark = Benchmark(
            engine,
            family,
            Scorer(options.model),
            ways=options.ways,
            ks=options.steps_skipped,
            rerolls=options.rerolls,
        )
        measured = _measure_all(benchmark, draw_prompts(options.prompts), options.rows)
    found = {
        way: {k: Figures.of(measured, way, k) for k in options.steps_skipped}
        for way in options.ways
    }
    _print_table(found, measured)
    if options.json:
        print(json.dumps(_summary(found, measured, options.rerolls)))


def _measure_all(benchmark: Benchmark, asked: Sequence[Asked], rows: Path | None) -> list[Measured]:
    """Measure the prompts that the file lacks."""
    known = rows.read_text("utf-8").splitlines() if rows and rows.exists() else []
    measured = [Measured.from_json(line) for line in known][: len(asked)]
    for number, one in list(enumerate(asked))[len(measured) :]:
        print(f"{number + 1}/{len(asked)}  {one.prompt}", file=sys.stderr, flush=True)
        measured.append(benchmark.measure(one, first_seed=SEED + 1_000 * number))
        if rows is not None:
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(measured[-1])) + "\n")
    return measured


def _print_table(found: Table, measured: Sequence[Measured]) -> None:
    columns = ("diversity, open", "diversity, full", "from its parent", "judge")
    head = f"{'starts from':36}{'k':>3}  " + " ".join(f"{name:18}" for name in columns)
    print(head, "-" * len(head), sep="\n")
    for way, by_k in found.items():
        for k, one in by_k.items():
            ratios = (one.diversity_open, one.diversity_full, one.from_parent, one.judge)
            print(f"{way:36}{k:>3}  " + " ".join(f"{ratio!s:18}" for ratio in ratios))
    print(f"\nRatios to uncached re-rolls of {len(measured)} prompts [95 % interval]; uncached:")
    print("  ".join(f"{name} {value:.4f}" for name, value in _uncached(measured).items()))
    for way, by_k in found.items():
        print(f"{way:36} keeps {DIVERSITY_RATIO_MIN:.0%} of the diversity up to k = {k_max(by_k)}")


def _uncached(measured: Sequence[Measured]) -> dict[str, float]:
    def mean(name: str, *, of: Sequence[bool]) -> float:
        chosen = [getattr(one.uncached, name) for one in measured if one.is_open in of]
        return float(np.mean(chosen))

    return {
        "diversity_open": mean("diversity", of=[True]),
        "diversity_full": mean("diversity", of=[False]),
        "judge": mean("judge", of=[True, False]),
    }


def _summary(found: Table, measured: Sequence[Measured], rerolls: int) -> dict[str, Any]:
    columns = ("diversity_open", "diversity_full", "from_parent", "judge")
    return {
        "benchmark": "rerolls",
        "prompts": len(measured),
        "rerolls": rerolls,
        "uncached": {name: round(value, 4) for name, value in _uncached(measured).items()},
        "k_max": {way: k_max(by_k) for way, by_k in found.items()},
        **{f"{name}_ratio": _column(found, name) for name in columns},
    }


def _column(found: Table, name: str) -> dict[str, dict[int, float]]:
    return {
        way: {k: round(getattr(one, name).value, 3) for k, one in by_k.items()}
        for way, by_k in found.items()
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=12, help="2 or more")
    parser.add_argument("--rerolls", type=int, default=8, help="2 or more")
    parser.add_argument("--steps-skipped", type=int, nargs="+", default=list(KS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures in a forward pass")
    parser.add_argument("--rows", type=Path, help="keeps each prompt's scores; a run goes on there")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
