"""Step times, measured without stopping the device after each step.

    host      launch 1   launch 2   wait for 1   launch 3   wait for 2 ...
    device               [-- step 1 --][-- step 2 --][-- step 3 --]

On CUDA a launch returns before its kernels have run. One step stays queued behind the one that
runs, so that the device never waits for the host, and a cancellation still takes effect within
one step more. The CUDA half is not measured on a GPU.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from workers.denoising.trajectory import Trajectory

NUM_QUEUED_MAX: Final = 1  # steps behind the one that runs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedStep:
    """A step that is over on the device: monotonic instants, and who took it."""

    jobs: tuple[tuple[Trajectory, int], ...]  # with the steps that each had behind it then
    started_at: float
    ended_at: float
    device_s: float


class Pace(Protocol):
    """Marks the start and the end of each step; hands back those that are over."""

    def start(self) -> None: ...

    def stop(self, stepped: Sequence[Trajectory]) -> list[TimedStep]:
        """Mark the end of the step; return the steps that are over by now, oldest first."""

    def settle(self) -> list[TimedStep]:
        """Wait for all that was launched, and return it."""


class HostPace:
    """Of a device that has done its work when the call returns: the CPU."""

    def __init__(self) -> None:
        self._started_at = 0.0

    def start(self) -> None:
        self._started_at = time.monotonic()

    def stop(self, stepped: Sequence[Trajectory]) -> list[TimedStep]:
        ended_at = time.monotonic()
        step = TimedStep(
            jobs=_with_steps(stepped),
            started_at=self._started_at,
            ended_at=ended_at,
            device_s=ended_at - self._started_at,
        )
        return [step]

    def settle(self) -> list[TimedStep]:
        return []


class CudaPace:
    """Of a device that works through a queue: events mark the steps in it, read when they passed.

    `record` puts an event into the queue: an object with `synchronize()` and `elapsed_time(end)`
    in milliseconds, as torch.cuda.Event has them.
    """

    def __init__(self, record: Callable[[], Any]) -> None:
        self._record = record
        self._started_at = 0.0
        self._start_event: Any = None
        # Steps in the device's queue: start and end event, who stepped, launched at.
        self._queued: deque[tuple[Any, Any, tuple[tuple[Trajectory, int], ...], float]] = deque()

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._start_event = self._record()

    def stop(self, stepped: Sequence[Trajectory]) -> list[TimedStep]:
        end_event = self._record()
        self._queued.append((self._start_event, end_event, _with_steps(stepped), self._started_at))
        return self._wait_until(NUM_QUEUED_MAX)

    def settle(self) -> list[TimedStep]:
        return self._wait_until(0)

    def _wait_until(self, num_queued: int) -> list[TimedStep]:
        over: list[TimedStep] = []
        while len(self._queued) > num_queued:
            start_event, end_event, jobs, started_at = self._queued.popleft()
            end_event.synchronize()
            over.append(
                TimedStep(
                    jobs=jobs,
                    started_at=started_at,
                    ended_at=time.monotonic(),
                    device_s=start_event.elapsed_time(end_event) / 1e3,
                )
            )
        return over


def pace_of(device: torch.device) -> Pace:
    """The pace of a device's steps."""
    if device.type != "cuda":
        return HostPace()

    def record() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    return CudaPace(record)


def _with_steps(stepped: Sequence[Trajectory]) -> tuple[tuple[Trajectory, int], ...]:
    return tuple((trajectory, trajectory.step_index) for trajectory in stepped)
