"""What the demo saved, as figures and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fleet.demo.session import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Sums over the prompt list; each job's uncached twin is measured, not assumed."""

    jobs: int
    succeeded: int
    hits: int
    steps_asked: int
    steps_run: int
    seconds_cached: float
    seconds_uncached: float

    @property
    def savings(self) -> float:
        """Steps skipped / steps asked for."""
        return 1 - self.steps_run / self.steps_asked

    @property
    def seconds_saved(self) -> float:
        return self.seconds_uncached - self.seconds_cached

    def to_json(self, *, contact_sheet: Path, elapsed_s: float) -> dict[str, Any]:
        """Build the object of the demo's last line."""
        return asdict(self) | {
            "savings": round(self.savings, 4),
            "seconds_cached": round(self.seconds_cached, 2),
            "seconds_uncached": round(self.seconds_uncached, 2),
            "contact_sheet": str(contact_sheet),
            "elapsed_s": round(elapsed_s, 1),
        }


def summarize(comparisons: list[Comparison]) -> Summary:
    """Add up the list."""
    steps = [each.cached.result.steps for each in comparisons]
    return Summary(
        jobs=len(comparisons),
        succeeded=len(comparisons),  # a job that fails ends the demo
        hits=sum(each.is_hit for each in comparisons),
        steps_asked=sum(step.asked for step in steps if step),
        steps_run=sum(step.run for step in steps if step),
        seconds_cached=sum(each.cached.seconds for each in comparisons),
        seconds_uncached=sum(each.uncached.seconds for each in comparisons),
    )


def job_table(comparisons: list[Comparison]) -> Table:
    """One row a prompt."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("user")
    table.add_column("prompt", no_wrap=True, overflow="ellipsis")
    table.add_column("outcome")
    for heading in ("k", "similar", "seconds", "uncached"):
        table.add_column(heading, justify="right")
    for each in comparisons:
        table.add_row(*_row(each), style=None if each.is_hit else "dim")
    return table


def _row(each: Comparison) -> tuple[str, ...]:
    return (
        each.user,
        each.prompt,
        "hit" if each.is_hit else "miss",
        str(each.k) if each.is_hit else "",
        "" if each.similarity is None else f"{each.similarity:.3f}",
        f"{each.cached.seconds:.2f}",
        f"{each.uncached.seconds:.2f}",
    )


def headline(summary: Summary) -> str:
    """Say it in one line."""
    skipped = summary.steps_asked - summary.steps_run
    ratio = summary.seconds_saved / summary.seconds_uncached
    return (
        f"{summary.hits} of {summary.jobs} jobs were hits; "
        f"{skipped:,} of {summary.steps_asked:,} denoising steps skipped ({summary.savings:.1%}); "
        f"{summary.seconds_saved:.1f} s saved of the {summary.seconds_uncached:.1f} s "
        f"that the same jobs took without the cache ({ratio:.1%})"
    )
