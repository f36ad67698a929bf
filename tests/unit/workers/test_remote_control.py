"""Who hears of a cancellation, by kombu's own mailbox over a broker in memory."""

from __future__ import annotations

from typing import Any

from celery import Celery

from workers.app import CANCEL_COMMAND, Publisher


def test_only_gpu_workers_are_told_of_a_cancellation() -> None:
    """Celery logs a command that a worker does not know as an error of that worker."""
    app = Celery(broker="memory://", set_as_current=False)
    heard: list[tuple[str, str]] = []
    with app.connection_for_read() as connection:
        for name in ("gpu-small@here", "io@here"):

            def cancel(state: Any, job_id: str) -> None:
                heard.append((state, job_id))

            node = app.control.mailbox.Node(
                name, state=name, channel=connection.channel(), handlers={CANCEL_COMMAND: cancel}
            )
            node.listen(callback=node.handle_message)
        Publisher(app).tell_cancelled("job")
        for _ in range(2):
            connection.drain_events(timeout=5)
    app.close()
    assert heard == [("gpu-small@here", "job")]
