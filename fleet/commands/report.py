"""`nirvana report`: what the cache of a running fleet did save."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from cache.database import transaction
from cache.stats import cache_stats
from evaluation.calibration.quality import ClipScore
from evaluation.pages import write_page
from evaluation.report.plots import pair_pictures, report_plots, shadow_pictures
from evaluation.report.savings import Savings, read_savings
from evaluation.report.shadow import (
    ReadImage,
    ShadowPair,
    ShadowSummary,
    read_pairs,
    save_scores,
    score_pairs,
    summarize,
)
from fleet.commands.cache import opened
from fleet.commands.console import JsonOption, Output
from fleet.commands.evaluation_options import GpuPriceOption, SecondsPerStepOption
from fleet.commands.evaluation_setup import parse_prices
from producer.settings import load_settings
from workers.settings import WorkerSettings

app = typer.Typer()

CAVEATS: Final = (
    "Failed and cancelled jobs are left out: they saved nothing that anybody got.",
    "GPU hours are of denoising steps only; encoding, lookup and decoding run on every job.",
    "Seconds are from a job's claim to its end, among whatever else the worker was drawing.",
    "Whether a reused image is good enough, the pairs show; numbers come from shadow runs, which "
    "`nirvana cache namespace NAME --shadow` asks for, or from `nirvana calibrate`.",
)


@app.command("report", rich_help_panel="The cache")
def report_savings(
    days: Annotated[float, typer.Option(min=1e-3, help="How far to look back.")] = 7.0,
    namespace: Annotated[
        str | None, typer.Option(help="Only its jobs.", show_default="all")
    ] = None,
    seconds_per_step: SecondsPerStepOption = None,
    gpu_price: GpuPriceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for plots and image pairs: PNG, and one HTML page."),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(help="Folder of the CLIP that scores shadow runs; default: the model's own."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the cache has saved: steps, hits by k, seconds, storage, money; as a page, too."""
    output = Output(as_json=as_json)
    prices = parse_prices(seconds_per_step, gpu_price)
    until = datetime.now(UTC)
    since = until - timedelta(days=days)
    with opened() as cache:
        with transaction(cache.database) as connection:
            found = read_savings(
                connection, since=since, until=until, namespace=namespace, prices=prices
            )
            pairs = read_pairs(connection, since=since, until=until, namespace=namespace)
        pairs = _scored(pairs, clip, cache.objects.get)
        with transaction(cache.database) as connection:
            save_scores(connection, pairs)
        stored = cache_stats(cache.database, capacity_bytes=cache.settings.cache_capacity_bytes)
        if out is not None:
            read = cache.objects.get
            pictures = [*pair_pictures(found, read), *shadow_pictures(pairs, read)]
            plots = [*report_plots(found), *pictures]
            page = write_page(out, "What the cache saved", plots, caveats=CAVEATS)
            output.rich.print(f"page: {page}\n")
    shadow = summarize(pairs)
    _print(output, found)
    _print_shadow(output, shadow)
    num_evicted = sum(each.num_states for each in found.evicted)
    output.rich.print(
        f"kept now: {stored.num_states:,} states, {stored.num_bytes:,} bytes; "
        f"evicted in that time: {num_evicted:,} states"
    )
    sizes = {"num_states": stored.num_states, "num_bytes": stored.num_bytes}
    output.finish({**asdict(found), **sizes, "shadow": asdict(shadow)})


def _scored(pairs: list[ShadowPair], clip: Path | None, read: ReadImage) -> list[ShadowPair]:
    """Score each model's pairs by the CLIP given, or by that in its own folder if it has one."""
    paths = load_settings(WorkerSettings).model_paths
    done: list[ShadowPair] = []
    for model in sorted({pair.model for pair in pairs}):
        own = [pair for pair in pairs if pair.model == model]
        folder = clip or Path(paths.get(model, "")) / "clip"
        if clip is not None or (model in paths and folder.is_dir()):
            own = score_pairs(own, ClipScore.load(folder), read)
        done += own
    return sorted(done, key=lambda pair: pair.drawn_at, reverse=True)


def _print_shadow(output: Output, shadow: ShadowSummary) -> None:
    if not shadow.num_pairs:
        return
    output.rich.print(f"\n{shadow.num_pairs:,} hits were drawn once more without the cache")
    if shadow.kept is None:
        output.rich.print("none of them is scored: name a CLIP's folder with --clip")
        return
    table = Table("hits", "pairs", "CLIPScore kept", "under 0.9", box=None, header_style="bold")
    named = {"all": shadow.kept}
    named |= {f"{k} steps skipped": kept for k, kept in shadow.by_k.items()} | shadow.by_day
    for name, kept in named.items():
        share = f"{kept.share_below_alpha:.1%}"
        table.add_row(name, f"{kept.num_pairs:,}", f"{kept.ratio:.3f}", share)
    output.rich.print(table)


def _print(output: Output, found: Savings) -> None:
    if found.share_saved is None:
        output.rich.print("no job that asked for steps has succeeded in that time")
        return
    output.rich.print(
        f"{found.num_hits:,} of {found.num_jobs:,} jobs were hits; "
        f"{found.steps_asked - found.steps_run:,} of {found.steps_asked:,} denoising steps "
        f"skipped ({found.share_saved:.1%})"
    )
    if found.gpu_hours_saved is not None:
        money = "" if found.money_saved is None else f", {found.money_saved:,.2f} of money"
        output.rich.print(f"{found.gpu_hours_saved:,.2f} GPU hours saved{money}")
    output.rich.print(_outcome_table(found))
    output.rich.print(_seconds_table(found))


def _outcome_table(found: Savings) -> Table:
    table = Table("the cache", "why", "jobs", box=None, header_style="bold", pad_edge=False)
    for k, num_jobs in found.hits_by_k.items():
        table.add_row("hit", f"{k} steps skipped", f"{num_jobs:,}")
    for row in found.by_outcome:
        if row.outcome != "hit":
            table.add_row(row.outcome, row.reason or "", f"{row.num_jobs:,}")
    return table


def _seconds_table(found: Savings) -> Table:
    table = Table("seconds of a", "median", "p95", box=None, header_style="bold", pad_edge=False)
    for row in found.seconds:
        table.add_row(row.outcome, f"{row.p50:.2f}", f"{row.p95:.2f}")
    return table
