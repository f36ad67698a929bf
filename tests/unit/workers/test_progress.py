"""What the reporter says of a job, and when it is silent."""

from __future__ import annotations

import threading
from contextlib import closing

from producer.trace import Progress
from workers.progress import ProgressReporter


def test_nothing_is_told_of_a_job_once_it_is_forgotten() -> None:
    """Its end is shown then, and a word told late would stand over it for ever."""
    told: list[str] = []
    telling, may_go_on, forgotten = threading.Event(), threading.Event(), threading.Event()

    def tell(job_id: str, _: Progress) -> None:
        telling.set()
        assert may_go_on.wait(10)
        told.append(f"{job_id} before" if not forgotten.is_set() else f"{job_id} after")

    with closing(ProgressReporter(tell)) as reporter:
        reporter.note("one", steps_done=1, steps_asked=2)
        assert telling.wait(10)

        def forget() -> None:
            reporter.forget("one")
            forgotten.set()

        ending = threading.Thread(target=forget)
        ending.start()
        assert not forgotten.wait(0.1)
        may_go_on.set()
        ending.join(10)
    assert told == ["one before"]
