"""The evaluation's numbers as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cache.entry import StateKind
from evaluation.characterize import Characterization
from evaluation.queueing import Latency
from evaluation.results import Run, Simulation


def print_characterization(console: Console, found: Characterization) -> None:
    """Print what `characterize` found."""
    users = "no users" if found.num_users is None else f"{found.num_users:,} users"
    console.print(f"[bold]{found.trace}[/bold]: {found.num_rows:,} prompts, {users}")
    console.print(_similarity_table(found))
    console.print(_locality_table(found))
    popular = found.popularity
    console.print(
        f"\nasked for before, word for word: {popular.repeat_share:.1%} of prompts; the most "
        f"popular hundredth makes up {popular.top_percent_share:.1%}; Zipf exponent "
        f"{popular.zipf_exponent:.2f} (distance of the fit {popular.zipf_distance:.3f})"
    )
    if found.sessions is not None:
        sessions = found.sessions
        console.print(
            f"sessions (a pause of {sessions.pause} ends one): {sessions.num_sessions:,} of "
            f"{sessions.prompts_mean:.1f} prompts on average, half of up to "
            f"{sessions.prompts_p50:.0f}, the longest {sessions.prompts_max:,}; cosine of one "
            f"prompt to the next {sessions.step_similarity_p50:.2f} at the median, "
            f"{sessions.random_similarity_p50:.2f} between any two"
        )
    _print_caveats(console, found.caveats)


def print_simulation(console: Console, found: Simulation) -> None:
    """Print what `simulate` found."""
    console.print(
        f"[bold]{found.trace}[/bold]: {found.num_jobs:,} jobs of {found.num_inference_steps} "
        f"steps, states shared by {found.shared_by}, stored: {found.admission}"
    )
    for kind in dict.fromkeys(run.state_kind for run in found.runs):
        console.print(f"\n[bold]Steps saved, % of all[/bold]: {kind} states, by cache size")
        console.print(_savings_table(found, kind))
    console.print("\n[bold]Each cache[/bold]")
    console.print(_runs_table(found))
    if found.predictor is not None:
        quality = found.predictor
        console.print(
            f"\nmatch predictor: {quality.lookups_avoided_share:.1%} of lookups avoided, "
            f"{1 - quality.recall:.1%} of hits lost, precision {quality.precision:.1%}"
        )
    if found.uncached_latency is not None:
        console.print(
            f"\nwithout a cache on {found.num_gpus} GPUs: {_latency_text(found.uncached_latency)}, "
            f"busy {found.uncached_latency.utilisation:.0%}"
        )
    _print_caveats(console, found.caveats)


def _similarity_table(found: Characterization) -> Table:
    floors = [floor for floor, _ in found.similarity[0].shares]
    table = _table(
        "nearest earlier prompt of", "prompts", "median cosine", *(f"> {f:.2f}" for f in floors)
    )
    for each in found.similarity:
        shares = [f"{share:.1%}" for _, share in each.shares]
        table.add_row(each.among, f"{each.num_rows:,}", f"{each.median:.3f}", *shares)
    return table


def _locality_table(found: Characterization) -> Table:
    asked = (10, 100, 1_000, 10_000)
    shown = [window for window, _ in found.locality[0].share_by_window if window in asked]
    table = _table(
        "cosine above", "prompts with reuse", "median distance", *(f"last {w:,}" for w in shown)
    )
    for each in found.locality:
        shares = dict(each.share_by_window)
        median = "-" if each.median_distance is None else f"{each.median_distance:,}"
        within = [f"{shares[window]:.1%}" for window in shown]
        table.add_row(f"{each.floor:.2f}", f"{each.reuse_share:.1%}", median, *within)
    return table


def _savings_table(found: Simulation, kind: StateKind) -> Table:
    runs = [run for run in found.runs if run.state_kind is kind]
    shares = sorted({run.capacity_share for run in runs})
    table = _table("policy", *(f"{share:.4g}".rstrip() for share in _percents(shares)))
    for policy in dict.fromkeys(run.policy for run in runs):
        of_policy = {run.capacity_share: run.savings for run in runs if run.policy is policy}
        table.add_row(policy, *(f"{100 * of_policy[share]:.2f}" for share in shares))
    bounds = {b.capacity_share: b for b in found.bounds if b.state_kind is kind}
    table.add_row("clairvoyant plan", *(f"{100 * bounds[share].planned:.2f}" for share in shares))
    table.add_row("clairvoyant bound", *(f"{100 * bounds[share].savings:.2f}" for share in shares))
    return table


def _percents(shares: Sequence[float]) -> list[float]:
    return [round(100 * share, 6) for share in shares]


def _runs_table(found: Simulation) -> Table:
    headings = ["policy", "kind", "size %", "cache GB", "hits", "steps saved", "of unbounded"]
    headings += [f"k={k}" for k in found.k_set]
    if found.prices is not None:
        headings += ["GPU hours", *(["money"] if found.prices.gpu_price_per_hour else [])]
    if found.num_gpus is not None:
        headings += ["mean s", "p50 s", "p95 s", "p99 s"]
    table = _table(*headings)
    for run in found.runs:
        table.add_row(*_run_row(run, found))
    return table


def _run_row(run: Run, found: Simulation) -> list[str]:
    row = [
        run.policy.value,
        run.state_kind.value,
        f"{100 * run.capacity_share:g}",
        f"{run.capacity_bytes / 1e9:.3g}",
        f"{run.hit_share:.1%}",
        f"{run.steps_saved:,}",
        f"{run.share_of_unbounded:.1%}",
        *(f"{run.hits_by_k[k]:,}" for k in found.k_set),
    ]
    if run.gpu_hours_saved is not None:
        row.append(f"{run.gpu_hours_saved:,.2f}")
    if run.money_saved:
        row.append(f"{run.money_saved:,.2f}")
    if run.latency is not None:
        times = run.latency
        row += [f"{s:.2f}" for s in (times.mean_s, times.p50_s, times.p95_s, times.p99_s)]
    return row


def _latency_text(times: Latency) -> str:
    return (
        f"mean {times.mean_s:.2f} s, p50 {times.p50_s:.2f} s, p95 {times.p95_s:.2f} s, "
        f"p99 {times.p99_s:.2f} s"
    )


def _print_caveats(console: Console, caveats: Sequence[str]) -> None:
    console.print()
    for caveat in caveats:
        console.print(f"[dim]note: {caveat}[/dim]")


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    words = ("policy", "kind", "nearest earlier prompt of")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right")
    return table
