"""What each process of a fleet runs, behind `nirvana worker`, `beat`, `flower` and `migrate`.

Imports are late on purpose: an io worker, beat and Flower must not load torch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from fleet.settings import FleetSettings

_TASKS_SHOWN_MAX: Final = 100_000


def run_gpu_worker() -> int:
    """Serve jobs on this process's device until told to stop; returns the exit status."""
    from workers import logs
    from workers.gpu_tasks import serve
    from workers.process_settings import ProcessSettings

    logs.configure()
    return serve(ProcessSettings.load())


def run_io_worker() -> int:
    """Serve webhooks, admissions, cancellations and maintenance; returns the exit status."""
    from workers import logs
    from workers.beat_tasks import serve
    from workers.process_settings import ProcessSettings

    logs.configure()
    return serve(ProcessSettings.load())


def run_beat() -> None:
    """Send the periodic tasks until told to stop."""
    from producer.settings import ProducerSettings, load_settings
    from workers import beat_tasks, logs
    from workers.settings import WorkerSettings

    logs.configure()
    # What ran when is not worth keeping: every task does all that is due.
    with tempfile.TemporaryDirectory(prefix="nirvana-beat-") as folder:
        beat_tasks.run_beat(
            load_settings(ProducerSettings),
            load_settings(WorkerSettings),
            schedule_path=Path(folder) / "schedule",
        )


def run_flower(*, address: str, port: int, settings: FleetSettings) -> None:
    """Show Celery's events on a page behind a password, until told to stop."""
    from producer.settings import ProducerSettings, load_settings
    from workers import logs
    from workers.app import build_app
    from workers.settings import WorkerSettings

    logs.configure("WARNING")
    app = build_app(load_settings(ProducerSettings), load_settings(WorkerSettings))
    # Flower reads FLOWER_* variables; a password on the command line is seen by everybody.
    os.environ["FLOWER_BASIC_AUTH"] = f"{settings.flower_user}:{settings.flower_password}"
    app.start(
        argv=[
            "flower",
            f"--address={address}",
            f"--port={port}",
            "--inspect-timeout=3000",
            f"--max-tasks={_TASKS_SHOWN_MAX}",
            "--logging=warning",
        ]
    )


def run_migrate() -> str:
    """Bring database and bucket to what this version needs; returns the schema's revision."""
    from cache.objects import S3Objects
    from cache.settings import CacheSettings
    from migrations.migrate import current, upgrade

    settings = CacheSettings.load()
    database_url = settings.database_url.get_secret_value()
    upgrade(database_url)
    objects = S3Objects.from_url(settings.s3_url.get_secret_value())
    try:
        objects.ensure_bucket()
    finally:
        objects.close()
    return str(current(database_url))
