"""Draw what a calibration compares: a prompt from noise twice, and from another one's states."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from cache.entry import StateKind
from evaluation.calibration.pairs import Pair
from evaluation.calibration.quality import Picture
from workers.denoising.engine import Engine
from workers.denoising.families.family import Encoding, Family
from workers.denoising.request import Denoised, DenoiseRequest, StartState
from workers.denoising.schedulers import resumes


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingPlan:
    """What is drawn of each pair."""

    num_inference_steps: int
    guidance_scale: float
    ks: tuple[int, ...]  #: steps skipped
    kinds: tuple[StateKind, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """The pictures of the prompt that was asked for."""

    from_noise: tuple[Picture, Picture]  #: of two seeds: what chance alone changes
    from_state: dict[StateKind, dict[int, Picture]]  #: by kind and k


class Drawer:
    """Draws pairs with a model, many pictures in one forward pass."""

    def __init__(self, engine: Engine, family: Family, plan: DrawingPlan) -> None:
        self._engine, self._family, self._plan = engine, family, plan
        self._ks = {
            kind: tuple(k for k in plan.ks if kind is StateKind.FINAL or self._resumes(k))
            for kind in plan.kinds
        }

    def draw(self, numbered: Sequence[tuple[int, Pair]]) -> list[Drawn]:
        """Draw pairs; a pair's number chooses its seeds."""
        seeds = [self._plan.seed + 3 * number for number, _ in numbered]
        pairs = [pair for _, pair in numbered]
        cached = [self._cache(pair, seed) for pair, seed in zip(pairs, seeds, strict=True)]
        # Asked for from seeds of its own: with the cached one's noise it would share its layout.
        asked = [self._engine.encode(pair.asked).result() for pair in pairs]
        noise = [
            [self._submit(encoding, seed + other) for other in (1, 2)]
            for encoding, seed in zip(asked, seeds, strict=True)
        ]
        reused = [
            self._reuse(encoding, state.result(), seed + 1)
            for encoding, state, seed in zip(asked, cached, seeds, strict=True)
        ]
        return [
            Drawn(
                from_noise=(first.result().image, second.result().image),
                from_state={
                    kind: {k: future.result().image for k, future in by_k.items()}
                    for kind, by_k in by_kind.items()
                },
            )
            for (first, second), by_kind in zip(noise, reused, strict=True)
        ]

    def _cache(self, pair: Pair, seed: int) -> Future[Denoised]:
        encoding = self._engine.encode(pair.cached).result()
        keeps = frozenset(self._ks.get(StateKind.INTERMEDIATE, ()))
        return self._submit(encoding, seed, captures=keeps, is_kept=True)

    def _reuse(
        self, encoding: Encoding, cached: Denoised, seed: int
    ) -> dict[StateKind, dict[int, Future[Denoised]]]:
        return {
            kind: {
                k: self._submit(encoding, seed, start=_start(kind, k, cached))
                for k in self._ks[kind]
            }
            for kind in self._plan.kinds
        }

    def _submit(
        self,
        encoding: Encoding,
        seed: int,
        *,
        start: StartState | None = None,
        captures: frozenset[int] = frozenset(),
        is_kept: bool = False,
    ) -> Future[Denoised]:
        request = DenoiseRequest(
            job_id=f"calibration-{seed}",
            encoding=encoding,
            height=self._family.spec.height,
            width=self._family.spec.width,
            num_inference_steps=self._plan.num_inference_steps,
            guidance_scale=self._plan.guidance_scale,
            seed=seed,
            start=start,
            capture_steps=captures,
            capture_final=is_kept,
        )
        return self._engine.denoise(request)

    def _resumes(self, k: int) -> bool:
        return resumes(self._family.scheduler, self._plan.num_inference_steps, k=k)


def _start(kind: StateKind, k: int, cached: Denoised) -> StartState:
    if kind is StateKind.INTERMEDIATE:
        return StartState(latents=cached.captured[k], kind="intermediate", k=k)
    assert cached.final_latents is not None
    return StartState(latents=cached.final_latents, kind="final", k=k)
