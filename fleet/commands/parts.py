"""`nirvana worker, beat, flower, migrate`: the parts of a fleet, one process each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fleet import roles
from fleet.commands.console import JsonOption, Output, UsageProblem
from fleet.settings import load_settings

app = typer.Typer()


class WorkerKind(StrEnum):
    """Which worker."""

    GPU = "gpu"
    IO = "io"


@app.command(rich_help_panel="Parts, one process each")
def worker(
    kind: Annotated[WorkerKind, typer.Argument(help="gpu: draws images; io: everything else.")],
) -> None:
    """Run one worker process in the foreground, as compose does."""
    run = roles.run_gpu_worker if kind is WorkerKind.GPU else roles.run_io_worker
    raise typer.Exit(run())


@app.command(rich_help_panel="Parts, one process each")
def beat() -> None:
    """Send the periodic tasks; exactly one process of a fleet does."""
    roles.run_beat()


@app.command(rich_help_panel="Parts, one process each")
def flower(
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Instead of NIRVANA_FLOWER_PORT.")] = None,
) -> None:
    """Show the jobs on Flower's page, behind NIRVANA_FLOWER_PASSWORD."""
    settings = load_settings()
    if settings.flower_password is None:
        raise UsageProblem("NIRVANA_FLOWER_PASSWORD: is required, Flower shows every job")
    roles.run_flower(address=address, port=port or settings.flower_port, settings=settings)


@app.command(rich_help_panel="Parts, one process each")
def migrate(as_json: JsonOption = False) -> None:
    """Bring database and bucket to what this version needs."""
    output = Output(as_json=as_json)
    revision = roles.run_migrate()
    output.rich.print(f"database is at revision {revision}; the bucket exists")
    output.finish({"revision": revision})
