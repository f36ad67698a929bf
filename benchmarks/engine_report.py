"""What the engine's benchmark tells: its figures, its tables, its caveats."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.ceiling import Ceiling
from benchmarks.denoising_jobs import Run

LEVELS_MAX: Final = 2  # of 255, by which the two sides' images may differ
PHASES: Final = ("denoiser", "scheduler", "gather", "encode", "decode", "begin")

CAVEATS: Final = """\
Caveats
  One machine and one small model: another model or device has other ratios.
  Other processes on the same cores disturb both sides, and not equally.
  "with states" gives both sides the same states: it shows batching alone, and the steps that the
  states save come on top of it.
  Latencies count from the submission of all jobs at once.
  On a GPU the split is the host's time, the denoiser's part only its launch."""

Pair = tuple[Run, Run]  # the engine's and the pipeline's of one round


@dataclass(slots=True)
class Rounds:
    """What was measured."""

    without_cache: list[Pair] = field(default_factory=list)
    with_states: list[Pair] = field(default_factory=list)
    alone: list[Pair] = field(default_factory=list)

    def check_images(self) -> None:
        """Raise RuntimeError where the two sides made different images."""
        for engine, pipeline in (*self.without_cache, *self.with_states, *self.alone):
            for ours, theirs in zip(engine.images, pipeline.images, strict=True):
                levels = np.abs(ours.astype(int) - theirs.astype(int)).max()
                if levels > LEVELS_MAX:
                    raise RuntimeError(f"an image differs from diffusers' by {levels} of 255")


def figures(rounds: Rounds, ceiling: Ceiling, in_flight: int) -> dict[str, float]:
    """The one line: ratios above 1 are in the engine's favour, but for latency."""
    without = _ratio(rounds.without_cache, lambda run: run.seconds)
    return {
        "throughput_ratio": _ratio(rounds.with_states, lambda run: run.seconds),
        "throughput_ratio_without_cache": without,
        "ceiling": ceiling.ratio(),
        "share_of_ceiling": without / ceiling.ratio(),
        "single_job_ratio": _ratio(rounds.alone, lambda run: run.seconds),
        "p50_latency_ratio": 1 / _ratio(rounds.without_cache, _p50_s),
        "batch_occupancy": statistics.median(
            engine.jobs_per_batch / in_flight for engine, _ in rounds.without_cache
        ),
    }


def _ratio(pairs: Iterable[Pair], measure: Callable[[Run], float]) -> float:
    """The pipeline's over the engine's, median over the rounds."""
    return statistics.median(measure(pipeline) / measure(engine) for engine, pipeline in pairs)


def _p50_s(run: Run) -> float:
    return statistics.median(run.latencies_s)


def overhead(runs: Sequence[Run]) -> float:
    """Share of the engine's busy time that no part of the model had: median over the runs."""
    return statistics.median(1 - _model_s(run) / run.busy_s["total"] for run in runs)


def _model_s(run: Run) -> float:
    return sum(run.busy_s[name] for name in ("denoiser", "encode", "decode"))


def tables(rounds: Rounds, ceiling: Ceiling, num_steps: int) -> str:
    """Seconds of both sides, the split of the engine's time, and the bare denoiser."""
    lines = ["", f"{'seconds, median of a round':34}{'engine':>9}{'pipeline':>10}{'ratio':>8}"]
    for name, pairs in (
        ("all jobs, without cache", rounds.without_cache),
        ("all jobs, with states, mixed k", rounds.with_states),
        ("one job alone", rounds.alone),
    ):
        ours, theirs = (statistics.median(pair[side].seconds for pair in pairs) for side in (0, 1))
        ratio = _ratio(pairs, lambda run: run.seconds)
        lines.append(f"  {name:32}{ours:9.2f}{theirs:10.2f}{ratio:8.3f}")
    lines += ["", f"{'share of the busy time':34}{'many jobs':>9}{'one job':>10}"]
    many = [engine for engine, _ in rounds.without_cache]
    alone = [engine for engine, _ in rounds.alone]
    for name in PHASES:
        shares = [_share(runs, name) for runs in (many, alone)]
        lines.append(f"  {name:32}{shares[0]:9.2%}{shares[1]:10.2%}")
    others = [overhead(runs) for runs in (many, alone)]
    lines.append(f"  {'all but denoiser, encode, decode':32}{others[0]:9.2%}{others[1]:10.2%}")
    return "\n".join([*lines, "", *_ceiling_lines(ceiling), *_step_lines(many, num_steps)])


def _share(runs: Sequence[Run], phase: str) -> float:
    return statistics.median(run.busy_s.get(phase, 0.0) / run.busy_s["total"] for run in runs)


def _ceiling_lines(ceiling: Ceiling) -> list[str]:
    seconds = ceiling.seconds_per_job()
    counts = sorted({num_threads for _, num_threads in seconds})
    head = "".join(f"{f'{count} threads':>12}" for count in counts)
    lines = [f"{'bare denoiser, ms a job and step':34}{head}"]
    for size in sorted({batch_size for batch_size, _ in seconds}):
        row = "".join(f"{seconds[size, count] * 1e3:12.2f}" for count in counts)
        lines.append(f"  {f'{size} jobs':32}{row}")
    return lines


def _step_lines(runs: Sequence[Run], num_steps: int) -> list[str]:
    step_s = statistics.median(
        run.busy_s["denoiser"] / (len(run.images) * num_steps) for run in runs
    )
    return [f"  {'in the engine':32}{step_s * 1e3:12.2f}"]
