"""The plots of `characterize` and `simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache.entry import StateKind
from evaluation.characterize import Characterization
from evaluation.figures import Plot, draw, style
from evaluation.locality import PARTS
from evaluation.results import Simulation


def characterization_plots(found: Characterization) -> list[Plot]:
    """Similarity, popularity, locality, growth; sessions where users are known."""
    plots = [_similarity(found), _popularity(found), _windows(found), _growth(found)]
    return plots + ([_sessions(found)] if found.sessions is not None else [])


def simulation_plots(found: Simulation) -> list[Plot]:
    """Savings by capacity for each kind of state, and hits by k."""
    kinds = list(dict.fromkeys(run.state_kind for run in found.runs))
    return [*(_savings(found, kind) for kind in kinds), _hits_by_k(found)]


def _similarity(found: Characterization) -> Plot:
    def paint(axes: Any) -> None:
        for number, each in enumerate(found.similarity):
            cosines, shares = zip(*each.curve, strict=True)
            axes.plot(cosines, _percent(shares), label=each.among, **_line(number))
        for floor, _ in found.similarity[0].shares:
            axes.axvline(floor, color="#999999", linewidth=0.8, linestyle=":")
        axes.set(
            xlabel="cosine to the nearest earlier prompt",
            ylabel="prompts at or above it, %",
            xlim=(0, 1),
            ylim=(0, 100),
        )
        axes.legend(title="among the prompts of", frameon=False)

    return draw(
        "similarity",
        f"{found.trace}: how close the nearest earlier prompt is",
        f"Embedder {found.embedder}. Dotted: the paper's thresholds, made for another embedder.",
        paint,
    )


def _popularity(found: Characterization) -> Plot:
    popular = found.popularity

    def paint(axes: Any) -> None:
        axes.loglog(popular.ranks, popular.counts, label="the log", **style(0))
        total = sum(rank**-popular.zipf_exponent for rank in range(1, popular.num_distinct + 1))
        scale = found.num_rows / total
        fitted = [scale * rank**-popular.zipf_exponent for rank in popular.ranks]
        label = f"Zipf, exponent {popular.zipf_exponent:.2f}"
        axes.loglog(popular.ranks, fitted, label=label, color="#d1495b", linestyle="--")
        axes.set(xlabel="rank of the prompt", ylabel="times asked for")
        axes.legend(frameon=False)

    return draw(
        "popularity",
        f"{found.trace}: equal prompts, by popularity",
        f"{popular.num_distinct:,} distinct prompts; Kolmogorov-Smirnov distance of the fit "
        f"{popular.zipf_distance:.3f} (above 0.05 Zipf's law does not describe the log).",
        paint,
    )


def _windows(found: Characterization) -> Plot:
    def paint(axes: Any) -> None:
        for number, each in enumerate(found.locality):
            windows, shares = zip(*each.share_by_window, strict=True)
            axes.semilogx(windows, _percent(shares), label=f"{each.floor:.2f}", **style(number))
        axes.set(
            xlabel="latest prompts that are cached",
            ylabel="prompts with a neighbour among them, %",
            ylim=(0, 100),
        )
        axes.legend(title="cosine above", frameon=False)

    return draw(
        "locality",
        f"{found.trace}: what a cache of the latest prompts would find",
        "Where a curve is flat, a larger cache finds nothing more. All users together.",
        paint,
    )


def _growth(found: Characterization) -> Plot:
    def paint(axes: Any) -> None:
        for number, each in enumerate(found.locality):
            parts = [100 * (part + 1) / PARTS for part in range(len(each.share_by_part))]
            shares = _percent(each.share_by_part)
            axes.plot(parts, shares, label=f"{each.floor:.2f}", **style(number))
        axes.set(
            xlabel="part of the log, %",
            ylabel="prompts with an earlier neighbour, %",
            xlim=(0, 102),
            ylim=(0, 100),
        )
        axes.legend(title="cosine above", frameon=False)

    return draw(
        "growth",
        f"{found.trace}: whether reuse grows as the log goes on",
        "Each point is a tenth of the log, held against all of it before.",
        paint,
    )


def _sessions(found: Characterization) -> Plot:
    assert found.sessions is not None
    sessions = found.sessions

    def paint(axes: Any) -> None:
        limits, shares = zip(*sessions.length_shares, strict=True)
        places = range(len(limits))
        bars = axes.bar(places, _percent(shares), color="#1b6ca8", width=0.6)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
        axes.set_xticks(places, [f"≤ {limit}" for limit in limits])
        axes.set(xlabel="prompts in the session", ylabel="sessions, %", ylim=(0, 108))

    return draw(
        "sessions",
        f"{found.trace}: how long sessions are",
        f"{sessions.num_sessions:,} sessions; a pause of {sessions.pause} ends one.",
        paint,
    )


def _savings(found: Simulation, kind: StateKind) -> Plot:
    runs = [run for run in found.runs if run.state_kind is kind]
    bounds = [bound for bound in found.bounds if bound.state_kind is kind]

    def paint(axes: Any) -> None:
        for number, policy in enumerate(dict.fromkeys(run.policy for run in runs)):
            points = [(100 * r.capacity_share, 100 * r.savings) for r in runs if r.policy is policy]
            axes.semilogx(*zip(*points, strict=True), label=policy.value, **_layered(number))
        limit = [(100 * bound.capacity_share, 100 * bound.savings) for bound in bounds]
        axes.semilogx(
            *zip(*limit, strict=True), label="clairvoyant bound", color="#888888", linestyle="--"
        )
        ticks = sorted({100 * run.capacity_share for run in runs})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set(
            xlabel="cache, % of the bytes that all intermediate states would fill",
            ylabel="steps saved, % of all",
        )
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)

    return draw(
        f"savings-{kind}",
        f"{found.trace}: {kind} states, shared by {found.shared_by}",
        f"Stored: {found.admission}. No policy exceeds the clairvoyant bound, which stores all k.",
        paint,
    )


def _hits_by_k(found: Simulation) -> Plot:
    """The largest caches of each kind, side by side."""
    largest = max(run.capacity_share for run in found.runs)
    runs = {run.state_kind: run for run in found.runs if run.capacity_share == largest}

    def paint(axes: Any) -> None:
        width = 0.8 / len(runs)
        for number, (kind, run) in enumerate(runs.items()):
            places = [at + (number - (len(runs) - 1) / 2) * width for at in range(len(found.k_set))]
            shares = [100 * run.hits_by_k[k] / found.num_jobs for k in found.k_set]
            axes.bar(places, shares, width=width, label=kind.value, color=style(number)["color"])
        axes.set_xticks(range(len(found.k_set)), [str(k) for k in found.k_set])
        axes.set(xlabel=f"steps skipped, of {found.num_inference_steps}", ylabel="jobs, %")
        axes.legend(title="kind of state", frameon=False)

    return draw(
        "hits-by-k",
        f"{found.trace}: how many steps hits skip",
        f"At {100 * largest:g} % capacity, policy {next(iter(runs.values())).policy}.",
        paint,
    )


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _layered(number: int) -> dict[str, Any]:
    """Thinner from line to line, so that of equal ones each still shows."""
    return {**style(number), "linewidth": 4.2 - 0.7 * number, "markersize": 9 - 1.2 * number}


def _line(number: int) -> dict[str, Any]:
    return {key: value for key, value in style(number).items() if not key.startswith("marker")}
