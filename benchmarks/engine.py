"""Many jobs in flight against diffusers' pipeline: `python -m benchmarks.engine --json`.

The unit is one job's step with guidance: two rows through the denoiser. A batch gains what the
denoiser gains by it, and no engine can do better: that is the ceiling. All is measured interleaved,
in rounds, each side in a thread that ends with it, and told as ratios, medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.ceiling import Ceiling
from benchmarks.denoising_jobs import Job, Pipeline, Run, give_states, make_jobs, run_engine
from benchmarks.engine_report import CAVEATS, Pair, Rounds, figures, tables
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.threads import ThreadTable, run_apart
from workers.denoising.warm_up import choose_threads, pass_timer, thread_counts

MODEL: Final = Path(__file__).resolve().parent.parent / "models" / "small"
NUM_CEILING_PASSES: Final = 3  # of each kind and round
NUM_ALONE: Final = 3  # single jobs a round

Side = Callable[[Sequence[Job]], Run]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(arguments)
    family = run_apart(lambda: loading.load(options.model))
    threads = run_apart(
        lambda: choose_threads(pass_timer(family), {1, options.in_flight}, gain_min=0.0)
    )
    num_cores = len(os.sched_getaffinity(0))
    print(
        f"{options.jobs} jobs of {options.model.name}, {options.steps} steps, at most"
        f" {options.in_flight} in flight, {options.rounds} rounds, {num_cores} core(s)\n"
        f"torch threads: engine {threads}, pipeline {threads.for_batch(1)}",
        flush=True,
    )
    ceiling = run_apart(
        lambda: Ceiling(
            family,
            batch_sizes=[2**n for n in range(9) if 2**n <= 2 * options.in_flight],
            thread_counts=thread_counts(num_cores),
        )
    )
    engine_side, pipeline_side = _sides(options, family, threads)
    plain = make_jobs(options.jobs)
    mixed = give_states(plain, family, options.steps)
    rounds = measure(engine_side, pipeline_side, plain, mixed, ceiling, options.rounds)
    rounds.check_images()
    print(tables(rounds, ceiling, options.steps))
    ratios = figures(rounds, ceiling, options.in_flight)
    print("\n".join(["", *(f"{name:34}{value:9.3f}" for name, value in ratios.items())]))
    print(f"\n{CAVEATS}")
    if options.json:
        print(json.dumps(ratios))


def _sides(options: argparse.Namespace, family: Family, threads: ThreadTable) -> tuple[Side, Side]:
    """The engine's and the pipeline's way of doing jobs, each at its best number of threads."""
    pipeline = run_apart(lambda: Pipeline(options.model, family))
    num_threads = threads.for_batch(1)

    def pipeline_side(jobs: Sequence[Job]) -> Run:
        return run_apart(
            lambda: pipeline.run(jobs, num_steps=options.steps, num_threads=num_threads)
        )

    engine_side = partial(
        run_engine, family, num_steps=options.steps, in_flight=options.in_flight, threads=threads
    )
    return engine_side, pipeline_side


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="a StableDiffusionPipeline")
    parser.add_argument("--jobs", type=int, default=64, help="jobs of a run")
    parser.add_argument("--steps", type=int, default=20, help="num_inference_steps")
    parser.add_argument("--in-flight", type=int, default=16, help="jobs in the engine at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one line of JSON, the last printed")
    return parser.parse_args(arguments)


def measure(
    engine: Side,
    pipeline: Side,
    plain: Sequence[Job],
    mixed: Sequence[Job],
    ceiling: Ceiling,
    num_rounds: int,
) -> Rounds:
    """Take all measurements, in turn, so that what disturbs one disturbs its counterpart."""
    rounds = Rounds()
    pipeline(plain[:1])  # prepares its kernels
    for n in range(num_rounds):
        run_apart(lambda: ceiling.measure(NUM_CEILING_PASSES))
        pair = partial(_pair, engine, pipeline, engine_first=n % 2 == 0)
        rounds.alone += [pair([job]) for job in plain[:NUM_ALONE]]
        rounds.without_cache.append(pair(plain))
        rounds.with_states.append(pair(mixed))
        print(f"round {n + 1} of {num_rounds} is over", flush=True)
    return rounds


def _pair(engine: Side, pipeline: Side, jobs: Sequence[Job], *, engine_first: bool) -> Pair:
    """Both sides on the same jobs, in an order that changes: a drift evens out."""
    if engine_first:
        return engine(jobs), pipeline(jobs)
    by_pipeline = pipeline(jobs)
    return engine(jobs), by_pipeline


if __name__ == "__main__":
    main()
