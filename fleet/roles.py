"""What each process of a fleet runs, behind `nirvana worker`, `beat`, `flower` and `migrate`.

Imports are late on purpose: an io worker, beat and Flower must not load torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fleet.settings import FleetSettings


def run_gpu_worker() -> int:
    """Serve jobs on this process's device until told to stop; returns the exit status.

    Raises DatabaseTooOld.
    """
    from cache.database import refuse_old
    from workers import logs
    from workers.gpu_tasks import serve
    from workers.process_settings import ProcessSettings

    settings = ProcessSettings.load()
    logs.configure(process="gpu", log_format=settings.worker.log_format)
    refuse_old(settings.cache.database_url.get_secret_value())
    return serve(settings)


def run_io_worker() -> int:
    """Serve webhooks, admissions, cancellations and maintenance; returns the exit status.

    Raises DatabaseTooOld.
    """
    from cache.database import refuse_old
    from workers import logs
    from workers.beat_tasks import serve
    from workers.process_settings import ProcessSettings

    settings = ProcessSettings.load()
    logs.configure(process="io", log_format=settings.worker.log_format)
    refuse_old(settings.cache.database_url.get_secret_value())
    return serve(settings)


def run_beat() -> None:
    """Send the periodic tasks until told to stop."""
    from producer.settings import ProducerSettings, load_settings
    from workers import beat_tasks, logs
    from workers.settings import WorkerSettings

    worker = load_settings(WorkerSettings)
    logs.configure(process="beat", log_format=worker.log_format)
    # What ran when is not worth keeping: every task does all that is due.
    with tempfile.TemporaryDirectory(prefix="nirvana-beat-") as folder:
        beat_tasks.run_beat(
            load_settings(ProducerSettings),
            worker,
            schedule_path=Path(folder) / "schedule",
        )


def run_flower(*, address: str, port: int, settings: FleetSettings) -> None:
    """Show Celery's events on a page behind a password, until told to stop."""
    from fleet import flower
    from producer.settings import ProducerSettings, load_settings
    from workers import logs
    from workers.app import build_app
    from workers.settings import WorkerSettings

    assert settings.flower_password is not None
    logs.configure("WARNING")
    flower.serve(
        build_app(load_settings(ProducerSettings), load_settings(WorkerSettings)),
        address=address,
        port=port,
        user=settings.flower_user,
        password=settings.flower_password,
        state_path=settings.flower_state,
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
