"""`nirvana calibrate`: at which similarity a model's reused states keep its quality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from rich.table import Table

from cache.calibration import FILE_NAME
from cache.entry import StateKind
from evaluation.calibration.calibrate import Calibrated, Study, calibrate, k_set
from evaluation.calibration.drawing import DrawingPlan
from evaluation.calibration.floors import Rule
from evaluation.calibration.plots import calibration_plots
from evaluation.calibration.quality import ClipScore
from evaluation.pages import write_page
from evaluation.trace import Fields, read_trace
from fleet.commands.console import JsonOption, Output, UsageProblem
from fleet.commands.evaluation_options import PromptFieldOption, RowsOption, UserFieldOption
from fleet.commands.evaluation_setup import progress_bars
from workers.denoising.families.family import Family
from workers.loading import load_family
from workers.settings import WorkerSettings

app = typer.Typer()

CLIP_FOLDER: Final = "clip"  # beside a model that ships one
PAIRS_MIN: Final = 16


@app.command("calibrate", rich_help_panel="Prompt logs")
def calibrate_model(
    model: Annotated[
        str | None, typer.Argument(help="A model that is served.", show_default="NIRVANA_MODEL")
    ] = None,
    prompts: Annotated[
        Path, typer.Option(metavar="LOG", help="Prompts as .jsonl, .jsonl.gz or .parquet.")
    ] = ...,  # type: ignore[assignment]  # required
    out: Annotated[
        Path, typer.Option(help="A folder for the result; the same one again continues.")
    ] = ...,  # type: ignore[assignment]  # required
    pairs: Annotated[int, typer.Option(min=PAIRS_MIN, help="Pairs of prompts to draw.")] = 200,
    alpha: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Share of CLIPScore to keep.")
    ] = 0.9,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="That it is kept.")] = 0.95,
    clip: Annotated[
        Path | None,
        typer.Option(help="The CLIP that scores.", show_default="clip in the model folder"),
    ] = None,
    kind: Annotated[
        list[StateKind] | None, typer.Option(help="Of states.", show_default="both")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=4, show_default="the model's")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, show_default="the model's")] = None,
    prompt_field: PromptFieldOption = "prompt",
    user_field: UserFieldOption = "user",
    rows: RowsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of pairs and pictures.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's thresholds: draw pairs of similar prompts, score them, find the floors.

    Use prompts that no evaluation uses. Put thresholds.json into the model's folder, or install
    it with `nirvana cache thresholds FILE`.
    """
    output = Output(as_json=as_json)
    settings = WorkerSettings()
    slug = _served(settings, model)
    clip_folder = clip or Path(settings.model_paths[slug]) / CLIP_FOLDER
    quality = ClipScore.load(clip_folder)
    family = load_family(settings, slug)
    study = Study(
        family=family,
        log=read_trace(prompts, Fields(prompt=prompt_field, user=user_field), rows_max=rows),
        qualities=[quality],
        plan=_plan(family, steps=steps, guidance=guidance, kinds=kind, seed=seed),
        rule=Rule(alphas={quality.name: alpha}, confidence=confidence, seed=seed),
        num_pairs=pairs,
    )
    num_threads = settings.num_threads or torch.get_num_threads()
    with progress_bars(output) as stages:
        found = calibrate(study, out, num_threads=num_threads, stages=stages)
    write_page(out, f"{slug}, calibrated", calibration_plots(found))
    _print(output, found, study.plan, out)
    output.finish({**found.calibration.to_json(), "version": found.calibration.version})


def _served(settings: WorkerSettings, model: str | None) -> str:
    slug = model or settings.model
    if slug not in settings.model_paths:
        known = ", ".join(sorted(settings.model_paths))
        raise UsageProblem(f"model {slug!r} is not served; NIRVANA_MODEL(S) name: {known}")
    return slug


def _plan(
    family: Family,
    *,
    steps: int | None,
    guidance: float | None,
    kinds: list[StateKind] | None,
    seed: int,
) -> DrawingPlan:
    num_steps = steps or family.spec.num_inference_steps
    return DrawingPlan(
        num_inference_steps=num_steps,
        guidance_scale=family.spec.guidance_scale if guidance is None else guidance,
        ks=k_set(num_steps),
        kinds=tuple(kinds or StateKind),
        seed=seed,
    )


def _print(output: Output, found: Calibrated, plan: DrawingPlan, out: Path) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("skip of", justify="right")
    for kind in plan.kinds:
        table.add_column(f"{kind} states, cosine above", justify="right")
    floors = {
        kind: {round(fraction * plan.num_inference_steps): floor for fraction, floor in rows}
        for kind, rows in found.calibration.tables.items()
    }
    for k in plan.ks:
        cells = [floors.get(kind, {}).get(k) for kind in plan.kinds]
        shown = ["never" if floor is None else f"{floor:.2f}" for floor in cells]
        table.add_row(f"{k} of {plan.num_inference_steps}", *shown)
    output.rich.print(table)
    output.rich.print(
        f"\n{found.num_pairs} pairs; thresholds: {out / FILE_NAME}, plots: {out / 'index.html'}"
    )
