"""The report's plots, and its pairs of images."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

from cache.errors import ObjectStoreError
from evaluation.errors import PackageMissing
from evaluation.figures import Plot, draw, style
from evaluation.report.savings import ImagePair, Savings
from evaluation.report.shadow import ALPHA, ShadowPair

logger = logging.getLogger(__name__)

SIDE: Final = 256  # pixels of each image of a pair
GAP: Final = 8
SHADOWS_SHOWN_MAX: Final = 12

ReadImage = Callable[[str], bytes]  # by key; raises ObjectStoreError


def report_plots(found: Savings) -> list[Plot]:
    """Savings over time, hits by k, and evictions; what has not happened is left out."""
    shown = [_over_time(found), _by_k(found)] if found.num_jobs else []
    return [*shown, _evictions(found)] if found.evicted else shown


def pair_pictures(found: Savings, read: ReadImage) -> list[Plot]:
    """Each hit beside the image its state came from; one whose image is gone is left out."""
    shown: list[Plot] = []
    for pair in found.pairs:
        try:
            images = [read(pair.source_image_key), read(pair.image_key)]
        except ObjectStoreError as error:  # expired, or the store is down: the numbers stand
            logger.warning("a pair is left out: %s", error)
            continue
        shown.append(_beside(len(shown) + 1, pair, images))
    return shown


def shadow_pictures(
    pairs: Sequence[ShadowPair], read: ReadImage, *, measure: str = "clip_score"
) -> list[Plot]:
    """Kept quality over time, and the newest hits beside their sources and uncached twins."""
    scored = [pair for pair in pairs if measure in (pair.scores or {})]
    shown = [_shadows_over_time(scored, measure)] if scored else []
    for number, pair in enumerate(pairs[:SHADOWS_SHOWN_MAX]):
        keys = [pair.source_image_key, pair.image_key, pair.uncached_image_key]
        try:
            images = [read(key) for key in keys if key is not None]
        except ObjectStoreError as error:
            logger.warning("a shadowed hit is left out: %s", error)
            continue
        source = "" if len(images) < 3 else f"Left: “{pair.source_prompt}”. Then the hit, "
        shown.append(
            Plot(
                name=f"shadow-{number + 1:02}",
                title=pair.prompt,
                caption=f"{source or 'Left: the hit, '}from its state after step {pair.k} (cosine "
                f"{pair.similarity:.3f}). Right: the same seed from noise.",
                png=_in_a_row(images),
            )
        )
    return shown


def _shadows_over_time(scored: Sequence[ShadowPair], measure: str) -> Plot:
    def paint(axes: Any) -> None:
        both = [pair.scores[measure] for pair in scored if pair.scores]
        times, ratios = [pair.drawn_at for pair in scored], [hit / twin for hit, twin in both]
        axes.plot(times, ratios, **(style(0) | {"linestyle": "none", "marker": "o"}))
        axes.axhline(ALPHA, color="#888888", linewidth=1, linestyle="--")
        axes.set(ylabel=f"{measure}, ratio to uncached")
        dates = import_module("matplotlib.dates")
        locator = axes.xaxis.get_major_locator()
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))

    return draw(
        "shadows-over-time",
        "Quality of hits, by shadow runs",
        f"{len(scored):,} hits, each against the same seed from noise; the line is the paper's "
        "floor of 0.9. Two uncached seeds of a prompt differ, too.",
        paint,
    )


def _over_time(found: Savings) -> Plot:
    def paint(axes: Any) -> None:
        times = [period.starts_at for period in found.by_period]
        saved = [_percent(1 - p.steps_run / p.steps_asked) for p in _asked(found)]
        hits = [_percent(period.num_hits / period.num_jobs) for period in found.by_period]
        whole = {"clip_on": False}  # the first point lies on the edge
        asked_at = [period.starts_at for period in _asked(found)]
        axes.plot(asked_at, saved, label="steps saved", **style(0), **whole)
        axes.plot(times, hits, label="jobs that were hits", **style(1), **whole)
        axes.set(ylabel="%", ylim=(0, 100), xlim=(times[0], found.until))
        _show_dates(axes)
        axes.legend(frameon=False)

    return draw(
        "savings-over-time",
        "Savings over time",
        f"{found.num_jobs:,} jobs that succeeded, {found.since:%Y-%m-%d %H:%M} to "
        f"{found.until:%Y-%m-%d %H:%M} (UTC).",
        paint,
    )


def _by_k(found: Savings) -> Plot:
    def paint(axes: Any) -> None:
        names = [str(k) for k in found.hits_by_k]
        axes.bar(names, list(found.hits_by_k.values()), color="#1b6ca8", width=0.6)
        axes.set(xlabel="steps skipped", ylabel="hits")
        axes.yaxis.get_major_locator().set_params(integer=True)

    return draw("hits-by-k", "Hits by steps skipped", f"{found.num_hits:,} hits.", paint)


def _evictions(found: Savings) -> Plot:
    def paint(axes: Any) -> None:
        hours = [each.hour for each in found.evicted]
        axes.bar(hours, [each.num_states for each in found.evicted], width=1 / 24, align="edge")
        axes.set(ylabel="states evicted in the hour", xlim=(hours[0], found.until))
        axes.yaxis.get_major_locator().set_params(integer=True)
        _show_dates(axes)

    num_states = sum(each.num_states for each in found.evicted)
    num_bytes = sum(each.num_bytes for each in found.evicted)
    caption = f"{num_states:,} states, {num_bytes:,} bytes made room for others."
    return draw("evictions", "Evictions", caption, paint)


def _show_dates(axes: Any) -> None:
    dates = import_module("matplotlib.dates")
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))


def _beside(number: int, pair: ImagePair, pngs: list[bytes]) -> Plot:
    return Plot(
        name=f"pair-{number:02}",
        title=pair.prompt,
        caption=f"Left: “{pair.source_prompt}”. Right, from its state after step {pair.k} "
        f"(cosine {pair.similarity:.3f}): “{pair.prompt}”.",
        png=_in_a_row(pngs),
    )


def _in_a_row(pngs: Sequence[bytes]) -> bytes:
    try:
        image = import_module("PIL.Image")
    except ModuleNotFoundError:
        raise PackageMissing("pillow", needed_for="image pairs") from None
    canvas = image.new("RGB", (len(pngs) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, png in enumerate(pngs):
        opened = image.open(io.BytesIO(png)).convert("RGB").resize((SIDE, SIDE))
        canvas.paste(opened, (place * (SIDE + GAP), 0))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG")
    return stream.getvalue()


def _asked(found: Savings) -> list[Any]:
    return [period for period in found.by_period if period.steps_asked]


def _percent(share: float) -> float:
    return 100 * share
