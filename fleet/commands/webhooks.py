"""`nirvana webhooks list, replay`, and its `endpoints`: see webhooks, and send one again."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from fleet.commands import webhook_endpoints
from fleet.commands.console import CommandFailed, JsonOption, Output
from fleet.commands.database import database_transaction
from workers.delivery.history import DeliveryRecord, Filter, PastAttempt, read_deliveries
from workers.delivery.outbox import DeliveryStatus, replay

app = typer.Typer(name="webhooks", help="See webhooks and every attempt; send one again.")
app.add_typer(webhook_endpoints.app)

_WIRE: Final = TypeAdapter(tuple[DeliveryRecord, ...])

NamespaceOption = Annotated[str | None, typer.Option(help="Of this namespace only.")]
JobOption = Annotated[uuid.UUID | None, typer.Option(help="Of this job only.")]
EndpointOption = Annotated[str | None, typer.Option(help="To the endpoint of this name only.")]
FailedOption = Annotated[bool, typer.Option("--failed", help="Only what failed for good.")]
AttemptsOption = Annotated[bool, typer.Option("--attempts", help="Show every attempt, too.")]
LimitOption = Annotated[int, typer.Option(min=1, max=1_000, help="Deliveries, the newest first.")]


@app.command("list")
def list_deliveries(
    job: JobOption = None,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    failed: FailedOption = False,
    attempts: AttemptsOption = False,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """Show deliveries, and with --attempts or --json every attempt."""
    output = Output(as_json=as_json)
    status = DeliveryStatus.FAILED if failed else None
    wanted = Filter(namespace=namespace, job_id=job, endpoint=endpoint, status=status)
    with database_transaction() as connection:
        found = read_deliveries(connection, wanted, limit=limit)
    if attempts:
        for delivery in found:
            _print_attempts(output.rich, delivery)
    else:
        output.rich.print(_delivery_table(found))
    output.finish({"deliveries": _WIRE.dump_python(found, mode="json")})


@app.command("replay")
def replay_deliveries(
    webhook_ids: Annotated[list[uuid.UUID], typer.Argument(help="As `webhooks list` shows them.")],
    as_json: JsonOption = False,
) -> None:
    """Send webhooks again, under the same webhook-id, with the whole retry table before them.

    They leave at the next sweep (NIRVANA_DELIVER_EVERY_S).
    """
    output = Output(as_json=as_json)
    with database_transaction() as connection:
        due = replay(connection, webhook_ids, now=datetime.now(UTC))
        if missing := [str(asked) for asked in webhook_ids if asked not in due]:
            raise CommandFailed(f"no webhook has the id {', '.join(missing)}; none is sent again")
    output.rich.print(f"{len(due):,} due now; see `nirvana webhooks list`")
    output.finish({"replayed": [str(webhook_id) for webhook_id in due]})


def _delivery_table(found: tuple[DeliveryRecord, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("webhook-id", "job", "event", "to", "status", "attempts", "last", "next"):
        table.add_column(heading, justify="right" if heading == "attempts" else "left")
    for delivery in found:
        last = delivery.attempts[-1] if delivery.attempts else None
        table.add_row(
            str(delivery.webhook_id),
            str(delivery.job_id),
            delivery.event,
            _receiver(delivery),
            delivery.status.value,
            str(len(delivery.attempts)),
            _outcome(last) if last else "",
            _instant(delivery.next_attempt_at),
        )
    return table


def _print_attempts(console: Console, delivery: DeliveryRecord) -> None:
    console.print(
        f"[bold]{delivery.webhook_id}[/bold]  {delivery.event} of job {delivery.job_id} to",
        _receiver(delivery),
        f"{delivery.status.value}",
    )
    table = Table(box=None, show_header=False, pad_edge=True)
    for past in delivery.attempts:
        beginning = " ".join(past.response.split())[:80]
        latency = f"{past.latency_s * 1_000:.0f} ms"
        told = [str(past.attempt), _instant(past.attempted_at), _outcome(past), latency, beginning]
        table.add_row(*told)
    console.print(table)


def _receiver(delivery: DeliveryRecord) -> str:
    """Name the endpoint, or the url without what may be a secret in it."""
    place = (delivery.url or "").partition("?")[0]
    return f"{delivery.endpoint} {place}".strip() if delivery.endpoint else place


def _outcome(past: PastAttempt) -> str:
    if past.error is None:
        return str(past.status_code)
    return f"{past.error_kind}: {past.error.removeprefix('refused: ')}"


def _instant(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
