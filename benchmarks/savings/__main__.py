"""What approximate caching saves on the shipped model, and at which quality.

    python -m benchmarks.savings --out DIR --json

A generated log is served in seven ways, five of them through a fleet of their own: without a cache,
as NIRVANA and MoDM were published, and by this project's cache with states of both kinds. Run again
with the same folder to go on where a run was stopped. docs/savings.md tells what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.savings import arms, report
from benchmarks.savings.oracle import ORACLE, Oracle
from benchmarks.savings.replayed import EXACT, RETRIEVAL
from benchmarks.savings.run import ALL_ARMS, Parameters, Run
from benchmarks.savings.simulated import simulate_arm
from benchmarks.savings.workload import SEED, generate
from cache.entry import Sharing
from evaluation.errors import EvaluationError
from fleet.errors import FleetError
from models import sampling
from producer.errors import ProducerError
from workers.denoising.errors import DenoisingError

CHOICES: Final = (*ALL_ARMS, ORACLE)


def main(given: Sequence[str] | None = None) -> int:
    """Run the arms asked for and report on all that are whole."""
    options = _options(given)
    try:
        answer = _measure(options)
    except (DenoisingError, EvaluationError, FleetError, ProducerError) as error:
        print(f"benchmarks.savings: {error}", file=sys.stderr)
        return 1
    if options.json and answer is not None:
        print(json.dumps(answer))
    return 0


def _measure(options: argparse.Namespace) -> dict[str, object] | None:
    family, served = arms.load(options.model)
    parameters = Parameters(
        jobs=options.jobs,
        log_seed=SEED,
        revision=served.revision,
        sharing=options.sharing,
        num_threads=options.threads,
        num_reseeded=min(options.sample, options.jobs),
    )
    parameters.claim(options.out)
    requests = generate(options.jobs)
    first = min(options.first or options.jobs, options.jobs)
    run = Run(
        folder=options.out, parameters=parameters, served=served, requests=requests, first=first
    )
    for arm in arms.FLEET_ARMS:
        if arm.name in options.arms:
            run.through_fleet(arm)
    vectors = family.embedding([request.prompt for request in requests])
    for name in (EXACT, RETRIEVAL):
        if name in options.arms:
            run.replayed(name, vectors)
    oracle = Oracle(folder=options.out, requests=requests, vectors=vectors)
    if ORACLE in options.arms:
        oracle.draw(family, model=options.model, num_threads=options.threads)
    bounds = report.Bounds(
        oracle=oracle.savings(family),
        simulated={
            arm.name: simulate_arm(
                arm, served, requests, vectors, sharing=options.sharing
            ).savings_of_first(first)
            for arm in arms.FLEET_ARMS
            if arm.kind is not None
        },
    )
    return report.write(run, bounds)


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.savings", description="Measure what the cache saves."
    )
    parser.add_argument("--jobs", type=_positive, default=150, help="rows of the log (150)")
    parser.add_argument(
        "--first", type=_positive, help="report on so many jobs only (all): of arms not yet whole"
    )
    parser.add_argument("--arms", type=_arms, default=CHOICES, help=f"of {','.join(CHOICES)}")
    parser.add_argument("--model", type=Path, default=sampling.SMALL, help="folder to serve")
    parser.add_argument("--sharing", type=Sharing, default=Sharing.USER, help="user or namespace")
    parser.add_argument("--threads", type=_positive, default=1, help="of torch in the worker (1)")
    parser.add_argument(
        "--sample", type=_positive, default=60, help="jobs that are drawn from another seed too"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder; run again to continue")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(given)


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _arms(value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    if unknown := set(names) - set(CHOICES):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))} unknown: choose of {', '.join(CHOICES)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
