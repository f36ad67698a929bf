"""The table of arms, the answer as JSON, the plot and the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.savings.arms import NIRVANA, NONE, OURS, RESEEDED
from benchmarks.savings.comparison import (
    SAVINGS_MIN,
    SAVINGS_OVER_NIRVANA_MIN,
    Figures,
    Measured,
    better_of,
    compare,
    null_below_alpha,
)
from benchmarks.savings.pictures import write_pictures
from benchmarks.savings.run import ALL_ARMS, Run, title_of
from benchmarks.savings.scores import Scorer
from workers.leaders import IN_FLIGHT

UNUSABLE: Final = frozenset(  # all others are faults
    {"none_similar", "predicted", "too_few_steps", "disabled"}
)

CAVEATS: Final = (
    "Arms ran one after the other: their latencies compare where nothing else ran meanwhile.",
    "Exact match and retrieval are replayed: a hit's latency is no cache's less what it spares.",
    "CLIPScore is by the CLIP that the model was trained with, which flatters it.",
)
DRIFT_MAX: Final = 0.1  # of a miss's latency against the same jobs of no cache

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Savings that no arm measured."""

    oracle: float | None  #: None before it is drawn
    simulated: Mapping[str, float]  #: by arm


def write(run: Run, bounds: Bounds) -> Answer | None:
    """Print the table of the arms that are whole, draw them; None before no cache is."""
    whole = [name for name in ALL_ARMS if run.is_whole(name)]
    for name in ALL_ARMS:
        if name not in whole and (num := len(run.rows(name))):
            print(f"{title_of(name)}: {num:,} jobs so far; run again to go on")
    if NONE.name not in whole:
        print(f"nothing to compare with before the arm '{NONE.name}' is whole")
        return None
    measured = measure(run, whole)
    null = null_of(measured)
    figures = {
        name: compare(one, measured[NONE.name], run.requests, null=null)
        for name, one in measured.items()
        if name != RESEEDED.name
    }
    _print_table(figures, null)
    _print_bounds(figures, bounds)
    _print_caveats(run, measured, figures)
    ours = better_of(figures, [arm.name for arm in OURS])
    write_pictures(run, measured, figures, ours)
    return answer(figures, ours, null, bounds)


def measure(run: Run, names: list[str]) -> dict[str, Measured]:
    """Read and score each arm."""
    scorer, found = Scorer.load(run.served.folder), {}
    for name in names:
        rows = run.rows(name)
        scores = scorer.score(run.folder, rows, run.requests)
        found[name] = Measured(title=title_of(name), rows=rows, scores=scores)
    return found


def null_of(measured: Mapping[str, Measured]) -> float | None:
    """The share of jobs that another seed alone puts below alpha; None where none was drawn."""
    reseeded = measured.get(RESEEDED.name)
    return None if reseeded is None else null_below_alpha(reseeded, measured[NONE.name])


def answer(
    figures: Mapping[str, Figures], ours: str | None, null: float | None, bounds: Bounds
) -> Answer:
    """The last line; what was not run is null."""
    best = None if ours is None else figures[ours]
    published = figures.get(NIRVANA.name)
    savings_nirvana = None if published is None else published.savings
    shown = {} if best is None else best.to_json()
    return {
        "ours": ours,
        "savings": shown.get("savings"),
        "savings_nirvana": None if savings_nirvana is None else round(savings_nirvana, 4),
        "savings_oracle": None if bounds.oracle is None else round(bounds.oracle, 4),
        "latency_reduction": shown.get("latency_reduction"),
        "quality_ratio": shown.get("quality_ratio"),
        "judge_ratio": shown.get("judge_ratio"),
        "share_below_alpha_excess": shown.get("share_below_alpha_excess"),
        "diversity_ratio": shown.get("diversity_ratio"),
        "share_below_alpha_of_two_seeds": None if null is None else round(null, 4),
        "missed": None if best is None else missed(best, savings_nirvana),
        "savings_simulated": {name: round(value, 4) for name, value in bounds.simulated.items()},
        "simulator_gap_max": simulator_gap_max(figures, bounds.simulated),
        "arms": {name: one.to_json() for name, one in figures.items()},
    }


def simulator_gap_max(
    figures: Mapping[str, Figures], simulated: Mapping[str, float]
) -> float | None:
    """The largest difference between what an arm saved and what was predicted of it."""
    gaps = [
        abs(figures[name].savings - value) for name, value in simulated.items() if name in figures
    ]
    return round(max(gaps), 4) if gaps else None


def missed(best: Figures, savings_nirvana: float | None) -> list[str]:
    """Targets that the better of ours does not hold, savings first."""
    found = ["savings"] if best.savings < SAVINGS_MIN else []
    if savings_nirvana is None or best.savings < SAVINGS_OVER_NIRVANA_MIN * savings_nirvana:
        found.append("savings_over_nirvana")
    return found + best.missed()


_COLUMNS: Final = (
    ("saved", "savings", ".1%"),
    ("hits", "hits", ","),
    ("k", "k_mean", ".1f"),
    ("mean s", "latency_mean_s", ".3f"),
    ("p95 s", "latency_p95_s", ".3f"),
    ("faster", "latency_reduction", ".1%"),
    ("CLIP", "clip_score", ".3f"),
    ("ratio", "quality_ratio", ".3f"),
    ("< .9", "below_alpha", ".1%"),
    ("excess", "share_below_alpha_excess", "+.1%"),
    ("judge", "judge", ".3f"),
    ("ratio", "judge_ratio", ".3f"),
    ("of hits", "judge_ratio_of_hits", ".3f"),
    ("diverse", "diversity_ratio", ".3f"),
)


def _print_table(figures: Mapping[str, Figures], null: float | None) -> None:
    print(f"{'':<26}" + "".join(f"{heading:>9}" for heading, _, _ in _COLUMNS))
    for one in figures.values():
        cells = (
            f"{'-' if (value := getattr(one, name)) is None else format(value, form):>9}"
            for _, name, form in _COLUMNS
        )
        print(f"{one.title:<26}" + "".join(cells))
    if null is not None:
        print(f"two uncached seeds of a job: {null:.1%} under .9 of each other's CLIPScore")


def _print_bounds(figures: Mapping[str, Figures], bounds: Bounds) -> None:
    for name, value in bounds.simulated.items():
        if name in figures:
            said = f"{value:.1%} by the simulator, {figures[name].savings:.1%} measured"
            print(f"{figures[name].title}: {said}")
    if bounds.oracle is not None:
        print(f"oracle, each job at the largest k that keeps it: {bounds.oracle:.1%}")


def _print_caveats(
    run: Run, measured: Mapping[str, Measured], figures: Mapping[str, Figures]
) -> None:
    print("\nCaveats")
    jobs, first = run.parameters.jobs, run.first
    shown = f"{jobs:,}" if first == jobs else f"The first {first:,} of {jobs:,}"
    print(f"- {shown} jobs of a generated log, one at a time, on a CPU.")
    for caveat in CAVEATS:
        print(f"- {caveat}")
    if run.served.calibration is None:
        print("- The model ships no thresholds.json for these weights: ours run with the paper's.")
    for one in measured.values():
        misses = [row.reason for row in one.rows if row.reason and not row.is_hit]
        faults = [reason for reason in misses if reason not in UNUSABLE]
        if faults:
            print(f"- {one.title}: {len(faults)} misses for a fault, such as {faults[0]}.")
        if joined := sum(row.reason == IN_FLIGHT for row in one.rows):
            print(f"- {one.title}: {joined} hits started from a job not stored yet.")
    for one_arm in figures.values():
        drift = one_arm.miss_latency_ratio
        if drift is not None and abs(drift - 1) > DRIFT_MAX:
            print(f"- {one_arm.title}: its misses took {drift:.2f} times as long as no cache.")
