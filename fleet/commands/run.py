"""`nirvana up, down, ps, demo`: a fleet on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fleet import control
from fleet.commands.console import CommandFailed, JsonOption, Output
from fleet.record import ChildRecord, FleetRecord, FlowerAddress
from fleet.settings import load_settings
from fleet.supervisor import FleetEvent
from fleet.up import running_fleet

app = typer.Typer()

_MARKS = {"ready": "[green]ready[/]", "died": "[red]died[/]", "restarting": "[yellow]restarting[/]"}


@app.command(rich_help_panel="This machine")
def up(as_json: JsonOption = False) -> None:
    """Start everything on this machine and keep it running; Ctrl-C stops it in order."""
    output = Output(as_json=as_json)
    settings = load_settings()
    started_at = time.monotonic()
    with running_fleet(settings, on_event=EventPrinter(output.rich)) as fleet:
        flower = fleet.flower
        output.rich.print(
            f"\n[bold]The fleet is up[/] after {time.monotonic() - started_at:.1f} s, "
            f"its state in {settings.home}"
        )
        _print_flower(output.rich, flower)
        output.rich.print('Try in another terminal:  nirvana submit "a red apple" --wait\n')
        fleet.wait()
        output.rich.print("stopping ...")
    output.finish({"status": "stopped", "home": str(settings.home)})


@app.command(rich_help_panel="This machine")
def down(as_json: JsonOption = False) -> None:
    """Stop the fleet that runs on this machine."""
    output = Output(as_json=as_json)
    stopped = control.stop(load_settings().home)
    output.rich.print(f"stopped {', '.join(stopped)}")
    output.finish({"stopped": stopped})


@app.command(rich_help_panel="This machine")
def ps(as_json: JsonOption = False) -> None:
    """Show what runs on this machine, and where."""
    output = Output(as_json=as_json)
    home = load_settings().home
    found = control.status(home)
    if found.record is None or not found.is_running:
        left = f"; left behind: {', '.join(found.leftovers)}" if found.leftovers else ""
        raise CommandFailed(f"no fleet is running in {home}{left}; start one with `nirvana up`")
    output.rich.print(_process_table(found.record))
    _print_flower(output.rich, found.record.flower)
    output.finish(_record_as_json(home, found.record))


@app.command(rich_help_panel="This machine")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the contact sheet; made where it is missing.")
    ] = Path("demo-out"),
    as_json: JsonOption = False,
) -> None:
    """Run a prompt list through a fleet of its own, and show what the cache saved."""
    from fleet.demo.run import DemoListener, run_demo
    from fleet.demo.summary import headline, job_table

    output = Output(as_json=as_json)
    with _demo_progress(output.notes) as (progress, task):
        listener = DemoListener(
            on_event=EventPrinter(progress.console),
            on_ready=lambda flower, total: _show_ready(progress, task, flower, total),
            on_done=lambda done: progress.update(task, advance=1, description=done.prompt[:44]),
        )
        demo = run_demo(out, listener)
    output.rich.print(job_table(demo.comparisons))
    output.rich.print(f"\n[bold]{headline(demo.summary)}[/]")
    output.rich.print(f"Each hit beside its source and its uncached twin: {demo.contact_sheet}")
    output.finish(demo.summary.to_json(contact_sheet=demo.contact_sheet, elapsed_s=demo.elapsed_s))


class EventPrinter:
    """Prints what the supervisor does, one line each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()

    def __call__(self, event: FleetEvent) -> None:
        if event.kind in ("starting", "stopped"):
            return
        with self._lock:
            mark = _MARKS.get(event.kind, event.kind)
            detail = f": {event.detail}" if event.detail else ""
            self._console.print(f"  {event.name:<10} {mark}{detail}")


@contextmanager
def _demo_progress(console: Console) -> Iterator[tuple[Progress, Any]]:
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress, progress.add_task("starting the fleet", total=None)


def _show_ready(progress: Progress, task: Any, flower: FlowerAddress, total: int) -> None:
    _print_flower(progress.console, flower)
    progress.update(task, total=total, completed=0, description="waiting for the first image")


def _print_flower(console: Console, flower: FlowerAddress) -> None:
    console.print(f"Flower: {flower.url}  (user {flower.user}, password {flower.password})")


def _process_table(record: FleetRecord) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("program", "state", "pid", "restarts", "address", "log"):
        table.add_column(heading)
    addresses = _addresses(record)
    for child in record.children:
        state = _MARKS.get(child.state, child.state)
        pid = str(child.process.pid) if child.process else ""
        table.add_row(
            child.name, state, pid, str(child.restarts), addresses.get(child.name), child.log_path
        )
    return table


def _addresses(record: FleetRecord) -> dict[str, str]:
    """Host and port of each program that has one, without passwords."""
    urls = {
        "postgres": record.addresses.database_url,
        "valkey": record.addresses.broker_url,
        "seaweedfs": record.addresses.s3_url,
        "flower": record.flower.url,
    }
    return {name: url.rpartition("@")[2].split("//")[-1] for name, url in urls.items()}


def _record_as_json(home: Path, record: FleetRecord) -> dict[str, Any]:
    addresses = _addresses(record)

    def describe(child: ChildRecord) -> dict[str, Any]:
        return {
            "name": child.name,
            "state": child.state,
            "pid": child.process.pid if child.process else None,
            "restarts": child.restarts,
            "address": addresses.get(child.name),
            "log": child.log_path,
        }

    return {
        "home": str(home),
        "supervisor_pid": record.supervisor.pid,
        "programs": [describe(child) for child in record.children],
    }
