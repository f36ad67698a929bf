"""`nirvana forget`: remove all that belongs to a job, a user or a namespace."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.table import Table

from cache.database import connect
from cache.forgotten import JobSubject, NamespaceSubject, Subject, UserSubject
from cache.objects import S3Objects
from cache.settings import CacheSettings
from fleet.commands.cache import service_urls
from fleet.commands.connection import client_settings
from fleet.commands.console import CommandFailed, JsonOption, Output, UsageProblem, confirm
from producer.broker import naming_broker, open_app, open_connection
from producer.contract import GenerationJob
from producer.errors import InvalidJob
from producer.trace import Traces
from workers.forgetting import ForgetReport, Forgetter
from workers.job_records import JobRecords

app = typer.Typer()

_COUNTED: Final = {
    "jobs": "jobs (rows, with prompts and results)",
    "running_jobs": "of them running, and stopped",
    "images": "images",
    "deliveries": "webhook deliveries",
    "traces": "traces",
    "endpoints": "webhook endpoints",
    "cached_prompts": "cached prompts",
    "cached_states": "cached states",
    "cached_bytes": "bytes of cached states",
}

JobOption = Annotated[str | None, typer.Option("--job", metavar="ID", help="One job.")]
UserOption = Annotated[
    str | None, typer.Option("--user", metavar="NAMESPACE/USER", help="All of one user.")
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", metavar="NAMESPACE", help="All of one namespace.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only count what is there.")]


@app.command(rich_help_panel="The cache")
def forget(
    job: JobOption = None,
    user: UserOption = None,
    namespace: NamespaceOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove every row, image, cached state, trace and webhook of a job, a user or a namespace."""
    subject = _subject(job, user, namespace)
    output = Output(as_json=as_json)
    with _forgetter() as forgetter:
        if dry_run or not yes:
            preview = forgetter.preview(subject)
            output.rich.print(_table(preview, "would be removed"))
        if dry_run:
            output.finish(asdict(preview))
            return
        if not yes:
            confirm(
                f"Remove all of {subject}, for good?",
                instead="--yes, or --dry-run to look first",
            )
        report = forgetter.forget(subject, now=datetime.now(UTC))
    output.rich.print(_table(report, "removed"))
    output.finish(asdict(report))
    if report.objects_left:
        raise CommandFailed(
            f"{report.objects_left:,} objects are left: the object store does not delete them now; "
            "their rows are gone, and beat deletes them when it does"
        )


def _subject(job: str | None, user: str | None, namespace: str | None) -> Subject:
    if sum(option is not None for option in (job, user, namespace)) != 1:
        raise UsageProblem("give one of --job, --user and --namespace")
    if job is not None:
        try:
            return JobSubject(job_id=uuid.UUID(job))
        except ValueError:
            raise UsageProblem(f"--job: must be a UUID, not {job!r}") from None
    if namespace is not None:
        return NamespaceSubject(namespace=_checked("--namespace", namespace, None).namespace)
    named, slash, name = (user or "").partition("/")
    if not slash:
        raise UsageProblem(f"--user: must be NAMESPACE/USER, not {user!r}")
    return UserSubject(namespace=_checked("--user", named, name).namespace, user=name)


def _checked(option: str, namespace: str, user: str | None) -> GenerationJob:
    """Hold namespace and user to what a job may name; raises UsageProblem."""
    try:
        return GenerationJob.from_wire({"prompt": "-", "namespace": namespace, "user": user})
    except InvalidJob as error:
        raise UsageProblem(f"{option}: {error}") from None


@contextmanager
def _forgetter() -> Iterator[Forgetter]:
    """Open the services that the settings name, or those of the fleet on this machine."""
    producer = client_settings()
    settings = CacheSettings.load(**service_urls())
    database = connect(
        settings.database_url.get_secret_value(),
        pool_size=10,
        statement_timeout_s=600,
        application_name="nirvana-forget",
    )
    celery = open_app(producer.broker_url)
    try:
        with (
            naming_broker(producer.broker_url),
            closing(open_connection(producer.broker_url)) as connection,
            closing(S3Objects.from_url(settings.s3_url.get_secret_value())) as objects,
        ):
            traces = Traces(connection, retention_s=producer.trace_retention_s)
            records = JobRecords(connection, traces, celery)
            yield Forgetter(database=database, objects=objects, records=records)
    finally:
        celery.close()
        database.dispose()


def _table(report: ForgetReport, heading: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(report.subject)
    table.add_column(heading, justify="right")
    for field, counted in asdict(report).items():
        if field in _COUNTED:
            table.add_row(_COUNTED[field], f"{counted:,}")
    return table
