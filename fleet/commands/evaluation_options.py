"""The options of `nirvana characterize` and `nirvana simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from cache.entry import StateKind
from cache.settings import Policy
from evaluation.sharing import SharedBy

_LOG: Final = "The log"
_CACHES: Final = "The caches to try"
_COSTS: Final = "Costs and latency"

TraceArgument = Annotated[
    Path, typer.Argument(metavar="TRACE", help="Prompts as .jsonl, .jsonl.gz or .parquet.")
]
EmbedderOption = Annotated[
    str, typer.Option(help="minilm, ngrams or clip:FOLDER.", rich_help_panel=_LOG)
]
RowsOption = Annotated[
    int | None, typer.Option(min=2, help="Only so many, from the start.", rich_help_panel=_LOG)
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where embeddings and neighbours are kept.",
        show_default="~/.cache/nirvana/evaluation",
        rich_help_panel=_LOG,
    ),
]
PromptFieldOption = Annotated[str, typer.Option(help="Column of prompts.", rich_help_panel=_LOG)]
UserFieldOption = Annotated[str, typer.Option(help="Column of users.", rich_help_panel=_LOG)]
TimeFieldOption = Annotated[str, typer.Option(help="Column of times.", rich_help_panel=_LOG)]
OutOption = Annotated[
    Path | None, typer.Option(help="A folder for plots: PNG, and one HTML page with all of them.")
]
SharingOption = Annotated[
    SharedBy | None,
    typer.Option(
        help="Whose states a job may start from.",
        show_default="user, or namespace without users",
        rich_help_panel=_CACHES,
    ),
]
PolicyOption = Annotated[
    list[Policy] | None,
    typer.Option(help="Of eviction.", show_default="all", rich_help_panel=_CACHES),
]
CapacityOption = Annotated[
    list[float] | None,
    typer.Option(
        help="Percent of what the log would fill.",
        show_default="1, 5, 10, 25, 50, 100",
        rich_help_panel=_CACHES,
    ),
]
StateKindOption = Annotated[
    list[StateKind] | None,
    typer.Option(help="Of states.", show_default="both", rich_help_panel=_CACHES),
]
StepsOption = Annotated[
    int, typer.Option(min=4, help="Denoising steps of a job.", rich_help_panel=_CACHES)
]
ThresholdsOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE:COSINE,...",
        help="Skip a share of the steps above a cosine: 0.1:0.65,0.5:0.95.",
        show_default="the paper's",
        rich_help_panel=_CACHES,
    ),
]
RerollOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="As NIRVANA_CACHE_REROLL_FRACTION: of the steps, for a user's same words again.",
        rich_help_panel=_CACHES,
    ),
]
StateBytesOption = Annotated[
    int, typer.Option(min=1, help="Bytes of a state.", rich_help_panel=_CACHES)
]
NeighboursOption = Annotated[
    int,
    typer.Option(min=1, max=64, help="As NIRVANA_CACHE_NEIGHBOURS.", rich_help_panel=_CACHES),
]
StoreAllOption = Annotated[
    bool,
    typer.Option(
        "--store-all",
        help="Store every k of a job, also those that it skipped.",
        rich_help_panel=_CACHES,
    ),
]
NovelBelowOption = Annotated[
    float | None,
    typer.Option(
        min=-1,
        max=1,
        help="Store nothing where a cached prompt is more similar.",
        rich_help_panel=_CACHES,
    ),
]
ChainMaxOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Store nothing with more reuses of reuses behind it.",
        rich_help_panel=_CACHES,
    ),
]
GraceOption = Annotated[
    float,
    typer.Option(
        min=0,
        help="Seconds for which lcbfu spares unused states; 0 is as published.",
        rich_help_panel=_CACHES,
    ),
]
PredictorOption = Annotated[
    bool,
    typer.Option(
        "--predictor",
        help="Look up only what a one-class SVM takes for a match.",
        rich_help_panel=_CACHES,
    ),
]
SecondsPerStepOption = Annotated[
    float | None, typer.Option(min=1e-6, help="Of your GPU and model.", rich_help_panel=_COSTS)
]
GpuPriceOption = Annotated[
    float | None, typer.Option(min=0, help="Of a GPU's hour.", rich_help_panel=_COSTS)
]
ArrivalsOption = Annotated[
    Path | None,
    typer.Option(
        help="Arrival times: a text file whose lines begin with milliseconds.",
        rich_help_panel=_COSTS,
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(min=1e-6, help="Or so many jobs a second, at random.", rich_help_panel=_COSTS),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="as many as are busy for 90 % of the time without a cache",
        rich_help_panel=_COSTS,
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of random arrivals.", rich_help_panel=_COSTS)]
