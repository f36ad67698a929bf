"""`nirvana characterize` and `nirvana simulate`: what a prompt log says, without any service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypeVar

import typer

from cache.selector import ChoiceRules
from cache.settings import Policy
from evaluation.admission import Admission
from evaluation.characterize import Characterization
from evaluation.characterize import characterize as characterize_log
from evaluation.embedders import load_embedder
from evaluation.figures import Plot
from evaluation.pages import write_page
from evaluation.plots import characterization_plots, simulation_plots
from evaluation.predictor import PredictorOptions
from evaluation.prepared import Prepared, Stages, default_cache_dir, prepare
from evaluation.replay import CacheOptions
from evaluation.results import Simulation
from evaluation.simulate import simulate as simulate_log
from evaluation.trace import Fields, read_trace
from fleet.commands import evaluation_options as options
from fleet.commands import evaluation_setup as setup
from fleet.commands.console import JsonOption, Output
from fleet.commands.evaluation_tables import print_characterization, print_simulation

app = typer.Typer(help="What a prompt log says about approximate caching.")

_PANEL: Final = "Prompt logs"
_Found = TypeVar("_Found", Characterization, Simulation)


@app.command(rich_help_panel=_PANEL)
def characterize(
    trace: options.TraceArgument,
    embedder: options.EmbedderOption = "minilm",
    rows: options.RowsOption = None,
    cache_dir: options.CacheDirOption = None,
    prompt_field: options.PromptFieldOption = "prompt",
    user_field: options.UserFieldOption = "user",
    time_field: options.TimeFieldOption = "submitted_at",
    out: options.OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the reuse that a prompt log holds: similarity, popularity, locality, sessions."""
    output = Output(as_json=as_json)
    fields = Fields(prompt=prompt_field, user=user_field, time=time_field)
    with setup.progress_bars(output) as stages:
        prepared = _prepared(trace, fields, rows, embedder, cache_dir, stages)
        found = characterize_log(prepared)
    print_characterization(output.rich, found)
    _draw(output, out, f"The reuse in {found.trace}", characterization_plots, found)
    output.finish(asdict(found))


@app.command(rich_help_panel=_PANEL)
def simulate(
    trace: options.TraceArgument,
    embedder: options.EmbedderOption = "minilm",
    rows: options.RowsOption = None,
    cache_dir: options.CacheDirOption = None,
    prompt_field: options.PromptFieldOption = "prompt",
    user_field: options.UserFieldOption = "user",
    time_field: options.TimeFieldOption = "submitted_at",
    sharing: options.SharingOption = None,
    policy: options.PolicyOption = None,
    capacity: options.CapacityOption = None,
    state_kind: options.StateKindOption = None,
    steps: options.StepsOption = 50,
    thresholds: options.ThresholdsOption = None,
    reroll_fraction: options.RerollOption = 1.0,
    state_bytes: options.StateBytesOption = 32_768,
    neighbours: options.NeighboursOption = 10,
    store_all: options.StoreAllOption = False,
    novel_below: options.NovelBelowOption = None,
    chain_max: options.ChainMaxOption = None,
    grace_s: options.GraceOption = 0.0,
    predictor: options.PredictorOption = False,
    seconds_per_step: options.SecondsPerStepOption = None,
    gpu_price: options.GpuPriceOption = None,
    arrivals: options.ArrivalsOption = None,
    rate: options.RateOption = None,
    gpus: options.GpusOption = None,
    seed: options.SeedOption = 0,
    out: options.OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a prompt log through caches of several policies and sizes."""
    output = Output(as_json=as_json)
    prices = setup.parse_prices(seconds_per_step, gpu_price)
    coming = setup.LoadOptions(
        seconds_per_step=seconds_per_step, arrivals=arrivals, rate=rate, gpus=gpus, seed=seed
    )
    base = CacheOptions(
        policy=Policy.LCBFU_AGED,
        capacity_share=1.0,
        selector=setup.parse_selector(thresholds),
        num_inference_steps=steps,
        state_bytes=state_bytes,
        neighbours=neighbours,
        admission=Admission(only_above=not store_all, novel_below=novel_below, chain_max=chain_max),
        grace_s=grace_s,
        k_again=ChoiceRules(again_fraction=reroll_fraction).k_again(steps),
    )
    grid = setup.parse_grid(base, policy, capacity, state_kind)
    fields = Fields(prompt=prompt_field, user=user_field, time=time_field)
    with setup.progress_bars(output) as stages:
        prepared = _prepared(trace, fields, rows, embedder, cache_dir, stages)
        found = simulate_log(
            prepared,
            grid,
            shared_by=sharing or prepared.sharings[0],
            prices=prices,
            load=coming.load(prepared.trace, steps=steps),
            predictor=PredictorOptions() if predictor else None,
        )
    print_simulation(output.rich, found)
    _draw(output, out, f"Caches replayed on {found.trace}", simulation_plots, found)
    output.finish(asdict(found))


def _draw(
    output: Output,
    out: Path | None,
    title: str,
    plots: Callable[[_Found], list[Plot]],
    found: _Found,
) -> None:
    """Draw the plots, if a folder for them is given."""
    if out is not None:
        page = write_page(out, title, plots(found), caveats=found.caveats)
        output.rich.print(f"\nplots: {page}")


def _prepared(
    path: Path,
    fields: Fields,
    rows: int | None,
    embedder: str,
    cache_dir: Path | None,
    stages: Stages,
) -> Prepared:
    return prepare(
        read_trace(path, fields, rows_max=rows),
        load_embedder(embedder),
        cache_dir=cache_dir or default_cache_dir(),
        stages=stages,
    )
