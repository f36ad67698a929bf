"""The `nirvana` command.

Each command's module is imported only when that command is called, so that a base install can
submit jobs, and `nirvana --help` is quick. The others are listed from the table below.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Annotated, Final

import typer

from fleet.commands.console import INTERRUPTED, OUR_PACKAGES, CommandFailed, UsageProblem, report

_PROGRAM: Final = "nirvana"
_HELP: Final = "Text-to-image serving from a queue, with approximate caching of diffusion states."


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A top-level command, or a group of them."""

    summary: str
    module: str  #: its `app`, a typer.Typer, has the command; or is it, where it has a name
    panel: str
    extra: str | None = None  #: of the distribution; None for the base install


def _jobs(summary: str) -> Command:
    return Command(summary=summary, module="fleet.commands.jobs", panel="Jobs")


def _fleet(summary: str) -> Command:
    return Command(
        summary=summary, module="fleet.commands.run", panel="This machine", extra="fleet"
    )


def _log(summary: str) -> Command:
    return Command(
        summary=summary, module="fleet.commands.evaluation", panel="Prompt logs", extra="evaluation"
    )


def _part(summary: str, extra: str) -> Command:
    return Command(
        summary=summary, module="fleet.commands.parts", panel="Parts, one process each", extra=extra
    )


COMMANDS: Final = {
    "demo": _fleet("Start everything, run a prompt list, show what was saved, and stop."),
    "up": _fleet("Run the whole fleet in the foreground, until Ctrl-C."),
    "down": _fleet("Stop the fleet of this machine."),
    "ps": _fleet("Show what runs where."),
    "submit": _jobs("Send a prompt, or a file of jobs."),
    "status": _jobs("Show where a job is."),
    "wait": _jobs("Wait for a job's image."),
    "cancel": _jobs("End a job, waiting or running."),
    "cache": Command(
        summary="Look into the cache: stats, evict, sweep, clear.",
        module="fleet.commands.cache",
        panel="The cache",
        extra="io",
    ),
    "report": Command(
        summary="Show what the cache has saved, as a page too.",
        module="fleet.commands.report",
        panel="The cache",
        extra="io,evaluation",
    ),
    "webhooks": Command(
        summary="See webhooks and every attempt; send one again; register endpoints.",
        module="fleet.commands.webhooks",
        panel="The queue's edges",
        extra="io",
    ),
    "dead": Command(
        summary="See messages that no worker could read; retry or drop them.",
        module="fleet.commands.dead",
        panel="The queue's edges",
    ),
    "forget": Command(
        summary="Remove all of a job, a user or a namespace.",
        module="fleet.commands.forget",
        panel="The cache",
        extra="io",
    ),
    "characterize": _log("Show the reuse that a prompt log holds."),
    "simulate": _log("Replay a prompt log through caches of several policies and sizes."),
    "calibrate": Command(
        summary="Measure a model's thresholds on a prompt log.",
        module="fleet.commands.calibrate",
        panel="Prompt logs",
        extra="gpu,evaluation",
    ),
    "worker": _part("Run a worker: gpu or io.", "gpu"),
    "beat": _part("Run the periodic tasks' clock.", "io"),
    "flower": _part("Run the monitoring page.", "fleet"),
    "migrate": _part("Bring the database to this version's tables.", "io"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 failed, 2 called wrongly, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = _command_name(given)
    options = given[: given.index(name)] if name else given
    is_debug = "--debug" in options or bool(os.environ.get("NIRVANA_DEBUG"))
    try:
        result = _run(given, name)
        if result == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the boundary to the user
        shown = _missing_extra(error, name) or error
        command = f"{_PROGRAM} {name}" if name in COMMANDS else _PROGRAM
        as_json = "--json" in given
        return report(shown, command=command, as_json=as_json, is_debug=is_debug)
    if not given:
        return 2
    return result if isinstance(result, int) else 0


def build(name: str | None) -> typer.Typer:
    """Make the command line with the module of command `name` loaded, and the others listed."""
    app = typer.Typer(name=_PROGRAM, help=_HELP, add_completion=False)
    app.callback()(_global_options)
    loaded = COMMANDS[name].module if name in COMMANDS else None
    for listed, command in COMMANDS.items():
        if command.module != loaded:
            app.command(listed, help=command.summary, rich_help_panel=command.panel)(_not_loaded)
    if loaded is not None:
        app.add_typer(import_module(loaded).app)
    return app


def _run(arguments: list[str], name: str | None) -> object:
    command = typer.main.get_command(build(name))
    return command.main(arguments or ["--help"], prog_name=_PROGRAM, standalone_mode=False)


def _command_name(arguments: list[str]) -> str | None:
    """The first argument that is no option: the global options take no values."""
    return next((given for given in arguments if not given.startswith("-")), None)


def _missing_extra(error: BaseException, name: str | None) -> CommandFailed | None:
    """What to install, if that is why the command failed."""
    if not isinstance(error, ModuleNotFoundError) or name not in COMMANDS:
        return None
    missing = (error.name or "").partition(".")[0]
    extra = COMMANDS[name].extra
    if extra is None or missing in OUR_PACKAGES:
        return None
    return UsageProblem(
        f"`{_PROGRAM} {name}` needs the package {missing}: pip install 'nirvana-serving[{extra}]'"
    )


def _show_version(is_asked: bool) -> None:
    if is_asked:
        try:
            version = metadata.version("nirvana-serving")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"{_PROGRAM} {version}")
        raise typer.Exit


def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. [NIRVANA_DEBUG=1]")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Read in `main`, before Typer parses anything; declared for `--help`."""


def _not_loaded() -> None:
    raise AssertionError("a listed command is loaded before it runs")


if __name__ == "__main__":
    sys.exit(main())
