"""What only a measurement on the device tells: how many threads, how large a batch.

Everything is timed on whole steps of real trajectories (denoiser and guidance, no scheduler), two
rows a job as with classifier-free guidance. Run before the engine starts: the device is nobody's.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from workers.denoising.failures import is_out_of_memory, release_memory
from workers.denoising.families.family import Encoding, Family
from workers.denoising.forward import Forward
from workers.denoising.request import DenoiseRequest
from workers.denoising.threads import ThreadTable
from workers.denoising.trajectory import Trajectory
from workers.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

NUM_PASSES_MAX: Final = 5  # of each number of threads
BUDGET_S: Final = 2.0  # of one batch size; each number of threads is timed once in any case
THREAD_GAIN_MIN: Final = 0.05  # threads that win by less are left to the other processes
THROUGHPUT_GAIN_MIN: Final = 0.05  # by which a doubled batch must do more jobs a second

PassTimer = Callable[[int], float]  # seconds of one pass over so many jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What the engine is told about its device."""

    batch_size_max: int
    threads: ThreadTable


def warm_up(
    family: Family, *, batch_size_max: int, num_threads: int, jobs_in_flight: int
) -> Tuning:
    """Choose what is given as 0, by measuring; a batch never holds more than `jobs_in_flight`.

    On a CPU a larger batch always does as many jobs a second, and memory is seldom short: there
    the batch is as large as it may be. On a GPU both are found by a probe.
    """
    time_pass = pass_timer(family)
    is_cpu = family.device.type == "cpu"
    if not batch_size_max:
        batch_size_max = (
            jobs_in_flight if is_cpu else probe_batch_size(time_pass, size_max=jobs_in_flight)
        )
    if num_threads or not is_cpu:
        threads = ThreadTable({1: num_threads or 1})
    else:
        threads = choose_threads(time_pass, {1, batch_size_max})
    return Tuning(batch_size_max=batch_size_max, threads=threads)


def choose_threads(
    time_pass: PassTimer,
    batch_sizes: Iterable[int],
    *,
    num_cores: int | None = None,
    gain_min: float = THREAD_GAIN_MIN,
) -> ThreadTable:
    """Time passes at 1, 2, 4, ... and all cores, in turn; the best median of each batch size.

    More threads have to win by `gain_min`, a fraction: several on a machine that others use can be
    slower than one. Leaves torch's number of threads as it was.
    """
    candidates = thread_counts(num_cores or len(os.sched_getaffinity(0)))
    before = torch.get_num_threads()
    try:
        table = {
            size: _best_threads(partial(time_pass, size), candidates, gain_min)
            for size in sorted(set(batch_sizes))
        }
    finally:
        torch.set_num_threads(before)
    logger.info("threads by batch size: %s", table)
    return ThreadTable(table)


def thread_counts(num_cores: int) -> list[int]:
    """The numbers that are tried: powers of two, and all cores."""
    powers = [2**power for power in range(num_cores.bit_length()) if 2**power < num_cores]
    return [*powers, num_cores]


def _best_threads(
    time_pass: Callable[[], float], candidates: Sequence[int], gain_min: float
) -> int:
    if len(candidates) == 1:
        return candidates[0]
    passes_s: dict[int, list[float]] = {count: [] for count in candidates}
    give_up_at = time.monotonic() + BUDGET_S
    for _ in range(NUM_PASSES_MAX):
        for count in candidates:  # in turn: a disturbance meets all alike
            torch.set_num_threads(count)
            passes_s[count].append(time_pass())
        if time.monotonic() >= give_up_at:
            break
    best = candidates[0]
    for count in candidates[1:]:
        if _typical(passes_s[count]) < (1 - gain_min) * _typical(passes_s[best]):
            best = count
    return best


def _typical(passes_s: Sequence[float]) -> float:
    """The median without the first pass, which prepares its kernels."""
    return statistics.median(passes_s[1:] or passes_s)


def probe_batch_size(time_pass: PassTimer, *, size_max: int) -> int:
    """Double the batch until it does not fit or does no more jobs a second; the last that did.

    For a GPU, where neither can be read off (not measured on a GPU). Raises what a pass of one
    job raises.
    """

    def throughput_of(batch_size: int) -> float:
        time_pass(batch_size)  # the first of a size prepares its kernels
        return batch_size / time_pass(batch_size)

    size, throughput = 1, throughput_of(1)
    while size < size_max:
        doubled = min(2 * size, size_max)
        try:
            newest = throughput_of(doubled)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if newest < (1 + THROUGHPUT_GAIN_MIN) * throughput:
            break
        size, throughput = doubled, newest
    release_memory()
    logger.info("batch size by probe: %d of at most %d", size, size_max)
    return size


def pass_timer(family: Family) -> PassTimer:
    """Time steps of guided jobs of the model's own size."""
    with torch.inference_mode():
        encoding = family.encode(["a warm-up"], [""])[0]
    forward = Forward(Stopwatch())

    def time_pass(batch_size: int) -> float:
        with torch.inference_mode():
            batch = [Trajectory(_request(family, encoding), family) for _ in range(batch_size)]
            for trajectory in batch:
                trajectory.begin()
            _synchronize(family.device)
            started_at = time.perf_counter()
            forward.predict(batch)
            _synchronize(family.device)
            seconds = time.perf_counter() - started_at
        forward.forget()
        return seconds

    return time_pass


def _request(family: Family, encoding: Encoding) -> DenoiseRequest:
    spec = family.spec
    return DenoiseRequest(
        job_id="warm-up",
        encoding=encoding,
        height=spec.height,
        width=spec.width,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=max(spec.guidance_scale, 2.0),
        seed=0,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
