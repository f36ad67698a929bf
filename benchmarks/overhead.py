"""What the fleet adds to a job: `python -m benchmarks.overhead --json`.

Jobs go one after the other through a real fleet (`submit` to the commit of the result, cache on),
and each is done once more by an engine called directly, from the same step, the two in turn. Then
a fleet whose denoiser does nothing is given all jobs at once: the queue's ceiling.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import psycopg
import torch

from benchmarks import no_op_worker
from benchmarks.denoising_jobs import PLACES, SUBJECTS
from benchmarks.engine import MODEL
from fleet.addresses import Addresses
from fleet.home import Secrets
from fleet.program import Program
from fleet.record import FlowerAddress
from fleet.settings import load_settings
from fleet.up import Fleet, WorkerPrograms, running_fleet
from fleet.workers import worker_programs
from producer.client import Client
from producer.result import JobResult
from producer.settings import ProducerSettings
from workers.denoising.engine import Engine
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.request import DenoiseRequest, StartState
from workers.denoising.threads import run_apart
from workers.denoising.warm_up import warm_up

TIMEOUT_S: Final = 600.0
NUM_WARM_UP: Final = 5
CAVEATS: Final = """Caveats: it ends with the start of the transaction that commits its result,
on the database's clock. Both processes have the whole machine in turn; beat, io worker and Flower
run beside the fleet's job. A direct run encodes, denoises and decodes, and keeps no states."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(arguments)
    fleet_s, direct_s, num_hits = measure_pairs(options.jobs, options.steps)
    added_ms = [1e3 * (f - d) for f, d in zip(fleet_s, direct_s, strict=True)]
    figures = {
        "overhead_ms_p50": median(added_ms),
        "overhead_ms_p99": float(np.percentile(added_ms, 99)),
        "overhead_ratio": median(fleet_s) / median(direct_s),
        "jobs_per_s": measure_ceiling(options.jobs),
    }
    print(f"{options.jobs} jobs of {options.steps} steps, {num_hits} of them hits")
    print(f"median of a job: fleet {median(fleet_s):.4f} s, engine {median(direct_s):.4f} s")
    print("\n".join(f"{name:20}{value:10.3f}" for name, value in figures.items()))
    print(CAVEATS)
    if options.json:
        print(json.dumps(figures))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="jobs of each kind")
    parser.add_argument("--steps", type=int, default=20, help="num_inference_steps")
    parser.add_argument("--json", action="store_true", help="one line of JSON, the last printed")
    return parser.parse_args(arguments)


def measure_pairs(num_jobs: int, num_steps: int) -> tuple[list[float], list[float], int]:
    """Seconds of each job in the fleet and in the engine, and how many were hits."""
    fleet_s, direct_s, num_hits = [], [], 0
    family = run_apart(lambda: loading.load(MODEL))
    tuning = run_apart(lambda: warm_up(family, batch_size_max=1, num_threads=0, jobs_in_flight=1))
    with (
        _fleet(worker_programs) as fleet,
        Client(ProducerSettings(broker_url=fleet.addresses.broker_url)) as client,
        Engine(family, batch_size_max=1, threads=tuning.threads) as engine,
        psycopg.connect(fleet.addresses.database_url, autocommit=True) as database,
    ):
        for n in range(-NUM_WARM_UP, num_jobs):
            prompt = f"{SUBJECTS[n % len(SUBJECTS)]} {PLACES[n % len(PLACES)]}, number {n}"
            seconds, result = _through_fleet(client, database, prompt, n, num_steps)
            assert result.cache is not None
            direct = _directly(engine, family, prompt, n, num_steps, result.cache.k)
            if n >= 0:
                fleet_s.append(seconds)
                direct_s.append(direct)
                num_hits += result.cache.k > 0
    return fleet_s, direct_s, num_hits


def _through_fleet(
    client: Client, database: psycopg.Connection, prompt: str, n: int, num_steps: int
) -> tuple[float, JobResult]:
    started_at = time.time()
    handle = client.submit(prompt, seed=abs(n), num_inference_steps=num_steps)
    result = handle.wait(timeout_s=TIMEOUT_S)
    row = database.execute(
        "SELECT extract(epoch FROM finished_at)::float8 FROM jobs WHERE id = %s",
        [uuid.UUID(handle.job_id)],
    ).fetchone()
    assert row is not None
    return row[0] - started_at, result


def _directly(engine: Engine, family: Family, prompt: str, n: int, num_steps: int, k: int) -> float:
    """Seconds of the same job, from any latents after step k: their values cost nothing."""
    spec = family.spec
    shape = family.latent_shape(spec.height, spec.width)
    state = StartState(latents=torch.randn(shape), kind="intermediate", k=k) if k else None
    started_at = time.perf_counter()
    request = DenoiseRequest(
        job_id=str(n),
        encoding=engine.encode(prompt).result(),
        height=spec.height,
        width=spec.width,
        num_inference_steps=num_steps,
        guidance_scale=spec.guidance_scale,
        seed=abs(n),
        start=state,
    )
    engine.denoise(request).result()
    return time.perf_counter() - started_at


def measure_ceiling(num_jobs: int) -> float:
    """Jobs a second, from the first claim to the last commit, all sent beforehand or meanwhile."""
    with (
        _fleet(_no_op_programs) as fleet,
        Client(ProducerSettings(broker_url=fleet.addresses.broker_url)) as client,
        psycopg.connect(fleet.addresses.database_url, autocommit=True) as database,
    ):
        job = {"prompt": SUBJECTS[0], "num_inference_steps": 1}
        for handle in client.submit_many([job] * num_jobs):
            handle.wait(timeout_s=TIMEOUT_S)
        row = database.execute(
            "SELECT extract(epoch FROM max(finished_at) - min(claimed_at))::float8 FROM jobs"
        ).fetchone()
    assert row is not None
    return num_jobs / float(row[0])


def _no_op_programs(
    addresses: Addresses, flower: FlowerAddress, secrets: Secrets
) -> tuple[Program, ...]:
    # By its path: the benchmarks are not installed, and the fleet's processes start elsewhere.
    no_op = (sys.executable, str(Path(no_op_worker.__file__)))
    return tuple(
        replace(program, argv=no_op) if program.name == "gpu" else program
        for program in worker_programs(addresses, flower, secrets)
    )


@contextmanager
def _fleet(workers: WorkerPrograms) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="nirvana-overhead-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL under root runs as another user, who must pass
        settings = load_settings(
            home=Path(folder) / "home",
            flower_port=0,
            database_url=None,
            broker_url=None,
            s3_url=None,
        )
        with running_fleet(settings, workers=workers) as fleet:
            yield fleet


if __name__ == "__main__":
    main()
