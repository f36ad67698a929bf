"""Step times on a device that works through a queue, played by events that the test controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from workers.denoising.pacing import CudaPace
from workers.denoising.trajectory import Trajectory


@dataclass
class Job:
    step_index: int = 0


class Events:
    """One event each 10 ms; remembers who was waited for."""

    def __init__(self) -> None:
        self.waited_for: list[int] = []
        self._num_recorded = 0

    def record(self) -> Any:
        events, number = self, self._num_recorded
        self._num_recorded += 1

        class Event:
            def synchronize(self) -> None:
                events.waited_for.append(number)

            def elapsed_time(self, end: Any) -> float:
                return 10.0 * float(end.number - number)

        event = Event()
        event.number = number  # type: ignore[attr-defined]
        return event


def launch(pace: CudaPace, job: Job) -> list[tuple[int, float]]:
    pace.start()
    job.step_index += 1
    return [
        (step.jobs[0][1], step.device_s)
        for step in pace.stop([cast("Trajectory", cast("Any", job))])
    ]


def test_one_step_stays_queued_behind_the_one_that_runs() -> None:
    events, job = Events(), Job()
    pace = CudaPace(events.record)
    assert launch(pace, job) == []
    assert events.waited_for == []
    assert launch(pace, job) == [(1, 0.01)]
    assert launch(pace, job) == [(2, 0.01)]
    assert events.waited_for == [1, 3]


def test_settling_waits_for_all_that_was_launched() -> None:
    events, job = Events(), Job()
    pace = CudaPace(events.record)
    launch(pace, job)
    (step,) = pace.settle()
    assert (step.jobs[0][1], step.device_s) == (1, 0.01)
    assert step.started_at <= step.ended_at
    assert pace.settle() == []
