"""`nirvana cache stats, evict, sweep, clear, thresholds, namespace`: see it; keep it bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from sqlalchemy import Engine

from cache import live_bytes
from cache.calibration import install, list_installed, read_calibration
from cache.database import connect, transaction
from cache.eviction import clear as clear_cache
from cache.eviction import evict as run_eviction
from cache.objects import S3Objects
from cache.settings import CacheSettings
from cache.stats import CacheStats, cache_stats
from cache.sweep import sweep as run_sweep
from fleet.commands import cache_namespace
from fleet.commands.console import CommandFailed, JsonOption, Output, UsageProblem, confirm
from fleet.errors import NotRunningError
from fleet.home import connection_environment
from fleet.settings import load_settings

app = typer.Typer(
    name="cache", help="Look into the cache; evict; sweep; clear; install thresholds."
)
app.add_typer(cache_namespace.app)

NAMES_MAX = 20  # told in an error

RepairOption = Annotated[bool, typer.Option(help="Remove what is found, too.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    settings: CacheSettings
    database: Engine
    objects: S3Objects


@app.command()
def stats(as_json: JsonOption = False) -> None:
    """Show what the cache holds, and the steps it has saved."""
    output = Output(as_json=as_json)
    with opened() as cache:
        found = cache_stats(cache.database, capacity_bytes=cache.settings.cache_capacity_bytes)
    output.rich.print(_scope_table(found))
    output.rich.print(_step_table(found))
    output.rich.print(
        f"\n{found.num_prompts:,} prompts, {found.num_states:,} states, "
        f"{found.num_bytes:,} bytes; used {found.uses:,} times, "
        f"{found.steps_saved:,} denoising steps saved"
    )
    output.finish(asdict(found))


@app.command()
def evict(as_json: JsonOption = False) -> None:
    """Evict now what beat would evict at its next run."""
    output = Output(as_json=as_json)
    with opened() as cache:
        report = run_eviction(cache.database, cache.objects, cache.settings, now=datetime.now(UTC))
    output.rich.print(
        f"evicted {report.evicted_states:,} states, expired {report.expired_states:,} "
        f"({report.evicted_bytes:,} bytes); {report.live_bytes:,} bytes stay"
    )
    output.finish(asdict(report))


@app.command()
def sweep(repair: RepairOption = False, as_json: JsonOption = False) -> None:
    """Look for objects without rows and rows without objects."""
    output = Output(as_json=as_json)
    with opened() as cache:
        report = run_sweep(
            cache.database,
            cache.objects,
            now=datetime.now(UTC),
            repair=repair,
            grace_s=cache.settings.cache_sweep_grace_s,
        )
    output.rich.print(
        f"{report.objects_without_rows:,} objects without rows, "
        f"{report.rows_without_objects:,} rows without objects, "
        f"{report.truncated_objects:,} truncated; "
        f"{report.prompts_without_states:,} prompts without states, "
        f"{report.doomed_objects:,} doomed objects"
        + (f"; {report.objects_removed:,} objects removed" if repair else "")
    )
    if report.scopes_miscounted:
        output.rich.print(
            f"{report.scopes_miscounted:,} scopes had their bytes miscounted"
            + (", and are set right" if repair else "")
        )
    if not report.is_complete:
        output.rich.print("stopped at the limit: run it again for the rest")
    output.finish(asdict(report))


@app.command()
def clear(
    namespace: Annotated[
        str | None,
        typer.Option(metavar="NAMESPACE", help="Of this one.", show_default="all of them"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove all cached states, of a namespace or of all, with their objects."""
    output = Output(as_json=as_json)
    with opened() as cache:
        held = live_bytes.by_namespace(cache.database)
        if namespace is not None and namespace not in held:
            raise UsageProblem(f"--namespace: none is named {namespace!r}; known: {_names(held)}")
        if not yes:
            num_bytes = sum(held.values()) if namespace is None else held[namespace]
            whose = "all namespaces" if namespace is None else f"namespace {namespace}"
            confirm(f"Remove all cached states of {whose} ({num_bytes:,} bytes), for good?")
        removed = clear_cache(
            cache.database,
            cache.objects,
            cache.settings,
            now=datetime.now(UTC),
            namespace=namespace,
        )
    output.rich.print(f"removed {removed.num_states:,} states ({removed.num_bytes:,} bytes)")
    output.finish(asdict(removed))


@app.command()
def thresholds(
    file: Annotated[
        Path | None, typer.Argument(help="thresholds.json to install.", show_default="only list")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Install a calibration, and list those installed; the newest of a model counts.

    A worker takes it up when it starts.
    """
    output = Output(as_json=as_json)
    calibration = None if file is None else read_calibration(file)
    with opened() as cache, transaction(cache.database) as connection:
        is_new = calibration is not None and install(connection, calibration)
        installed = list_installed(connection)
    table = _table("version", "kind", "model's revision", "embedder", "installed", "k/N: cosine")
    for one in installed:
        table.add_row(
            one.version,
            one.state_kind,
            one.revision[:16],
            one.embedder[-24:],
            f"{one.installed_at:%Y-%m-%d %H:%M}",
            ", ".join(f"{fraction:g}: {floor:g}" for fraction, floor in one.thresholds),
        )
    output.rich.print(table)
    if calibration is not None:
        said = "installed" if is_new else "was installed already"
        output.rich.print(f"\n{calibration.version} {said}; workers take it up when they start")
    output.finish({"is_new": is_new, "installed": [asdict(one) for one in installed]})


@contextmanager
def opened() -> Iterator[_Opened]:
    """Open the services that the settings name, or those of the fleet on this machine."""
    settings = CacheSettings.load(**service_urls())
    database = connect(settings.database_url.get_secret_value(), pool_size=2)
    try:
        with closing(S3Objects.from_url(settings.s3_url.get_secret_value())) as objects:
            yield _Opened(settings=settings, database=database, objects=objects)
    finally:
        database.dispose()


def service_urls() -> dict[str, object]:
    """Settings that the fleet of this machine gives, where the environment has none."""
    if os.environ.get("NIRVANA_DATABASE_URL") and os.environ.get("NIRVANA_S3_URL"):
        return {}
    home = load_settings().home
    try:
        found = connection_environment(home)
    except NotRunningError:
        raise CommandFailed(
            f"no fleet is running in {home}; start one with `nirvana up`, or set "
            "NIRVANA_DATABASE_URL and NIRVANA_S3_URL"
        ) from None
    return {
        "database_url": found["NIRVANA_DATABASE_URL"],
        "s3_url": found["NIRVANA_S3_URL"],
    }


def _names(held: Mapping[str, int]) -> str:
    return ", ".join(sorted(held)[:NAMES_MAX]) or "none yet"


def _scope_table(found: CacheStats) -> Table:
    table = _table(
        "scope", "namespace", "model", "size", "N", "thresholds", "prompts", "states", "bytes"
    )
    for scope in found.by_scope:
        table.add_row(
            str(scope.scope_id),
            scope.namespace,
            scope.model,
            f"{scope.width}x{scope.height}",
            str(scope.num_inference_steps),
            scope.thresholds_version,
            f"{scope.num_prompts:,}",
            f"{scope.num_states:,}",
            f"{scope.num_bytes:,}",
        )
    return table


def _step_table(found: CacheStats) -> Table:
    table = _table("kind", "k", "states", "bytes", "uses", "steps saved")
    for step in found.by_k:
        table.add_row(
            step.kind,
            str(step.k),
            f"{step.num_states:,}",
            f"{step.num_bytes:,}",
            f"{step.uses:,}",
            f"{step.steps_saved:,}",
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        is_word = heading in ("namespace", "model", "kind")
        table.add_column(heading, justify="left" if is_word else "right")
    return table
