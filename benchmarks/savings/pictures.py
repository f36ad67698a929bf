"""A plot of savings against quality, and a contact sheet of hits to judge by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.savings.arms import NONE
from benchmarks.savings.comparison import JUDGE_RATIO_MIN, Figures, Measured
from benchmarks.savings.rows import Row
from benchmarks.savings.run import Run
from evaluation.figures import Plot, draw, style
from evaluation.pages import write_page
from fleet.demo.contact_sheet import Card, write_contact_sheet

CARDS_MAX: Final = 12


def write_pictures(
    run: Run, measured: Mapping[str, Measured], figures: Mapping[str, Figures], ours: str | None
) -> None:
    """Write savings.png, index.html, and for the better of ours contact-sheet.png."""
    title = f"What the cache saves on {run.parameters.jobs:,} jobs"
    write_page(run.folder, title, [savings_plot(figures)])
    if ours is not None:
        one = figures[ours]
        headline = (
            f"{one.title}: {one.hits:,} of {one.jobs:,} jobs were hits, {one.savings:.1%} of the "
            f"steps skipped, {one.judge_ratio:.1%} of the judge's share of attributes kept"
        )
        shown = cards(run, measured[ours].rows, measured[NONE.name].rows)
        write_contact_sheet(run.folder / "contact-sheet.png", title=headline, cards=shown)


def savings_plot(figures: Mapping[str, Figures]) -> Plot:
    """One dot an arm."""

    def paint(axes: Any) -> None:
        for number, (name, one) in enumerate(figures.items()):
            look = style(number - 1) | {"linestyle": "none", "markersize": 8}
            if name == NONE.name:  # a seventh look
                look |= {"color": "black", "marker": "*"}
            axes.plot([100 * one.savings], [one.judge_ratio], label=one.title, **look)
        axes.axhline(JUDGE_RATIO_MIN, color="#888888", linewidth=1, linestyle="--")
        axes.set_xlabel("denoising steps saved, %")
        axes.set_ylabel("attributes that the judge finds, ratio to no cache")
        axes.legend(fontsize=8, frameon=False)

    return draw(
        "savings",
        "Savings against quality",
        "To the right is cheaper, above is truer to the prompt; the line is the least that is "
        "asked for. The judge names what a picture shows, and saw none of the generator's.",
        paint,
    )


def cards(run: Run, rows: Sequence[Row], uncached: Sequence[Row]) -> list[Card]:
    """Hits over the whole range of similarity, each beside its source and its uncached twin."""
    hits = sorted(
        (row for row in rows if row.is_hit and row.source_row is not None),
        key=lambda row: (row.similarity or 0.0, row.row),
    )
    num = min(CARDS_MAX, len(hits))
    chosen = [hits[place * (len(hits) - 1) // max(1, num - 1)] for place in range(num)]
    return [_card(run, rows, row, uncached[row.row]) for row in chosen]


def _card(run: Run, rows: Sequence[Row], hit: Row, twin: Row) -> Card:
    assert hit.source_row is not None
    assert hit.similarity is not None
    source = rows[hit.source_row]
    return Card(
        prompt=run.requests[hit.row].prompt,
        source_prompt=run.requests[source.row].prompt,
        k=hit.k,
        steps_asked=hit.steps_asked,
        similarity=hit.similarity,
        source_png=(run.folder / source.picture).read_bytes(),
        reused_png=(run.folder / hit.picture).read_bytes(),
        uncached_png=(run.folder / twin.picture).read_bytes(),
    )
