"""Matplotlib figures as PNG bytes, without a display."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from evaluation.errors import PackageMissing

DPI: Final = 110
SIZE_INCHES: Final = (7.0, 4.2)

#: Told apart without colour too, by their markers.
COLOURS: Final = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#444444")
MARKERS: Final = ("o", "s", "^", "D", "v", "x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A finished figure."""

    name: str  #: of its file, without the ending
    title: str
    caption: str  #: what is to be read off it, and what not
    png: bytes = field(repr=False)


def draw(name: str, title: str, caption: str, paint: Callable[[Any], None]) -> Plot:
    """Paint one pair of axes; raises PackageMissing."""
    try:
        figure_module = import_module("matplotlib.figure")
    except ModuleNotFoundError:
        raise PackageMissing("matplotlib", needed_for="plots") from None
    figure = figure_module.Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11)
    paint(axes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return Plot(name=name, title=title, caption=caption, png=stream.getvalue())


def style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th line."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.6,
    }
