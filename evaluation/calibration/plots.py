"""The plots of a calibration: what is kept, by similarity, for each k."""

from __future__ import annotations

from typing import Any

from cache.entry import StateKind
from evaluation.calibration.calibrate import Calibrated
from evaluation.calibration.floors import GRID, Curve
from evaluation.figures import Plot, draw

_KINDS = {
    StateKind.INTERMEDIATE: "states kept on the way",
    StateKind.FINAL: "finished latents, noised again",
}


def calibration_plots(found: Calibrated) -> list[Plot]:
    """One plot for each kind of state and measure."""
    which = dict.fromkeys((curve.kind, curve.measure) for curve in found.curves)
    return [_kept(found, kind, measure) for kind, measure in which]


def _kept(found: Calibrated, kind: StateKind, measure: str) -> Plot:
    curves = [c for c in found.curves if (c.kind, c.measure) == (kind, measure)]
    alpha = found.alphas[measure]

    def paint(axes: Any) -> None:
        for number, curve in enumerate(curves):
            _paint_curve(axes, curve, number / max(1, len(curves) - 1))
        axes.axhline(alpha, color="#d1495b", linestyle="--", linewidth=1.2)
        axes.set(
            xlabel="cosine of the two prompts",
            ylabel=f"share of {measure} kept",
            xlim=(GRID[0], 1),
        )
        axes.legend(title="steps skipped", frameon=False, ncols=2, loc="lower right")

    return draw(
        f"kept-{kind.value}-{measure.replace('_', '-')}",
        f"{_KINDS[kind]}: what reuse keeps of {measure}",
        f"{found.num_pairs} pairs of prompts, fitted; dots: where the lower bound reaches "
        f"{alpha:g} (dashed) and stays there. Two seeds from noise: "
        f"{100 * found.null_share_below[measure]:.0f} % of pictures lie under {alpha:g} of their "
        "twin by chance alone.",
        paint,
    )


def _paint_curve(axes: Any, curve: Curve, shade: float) -> None:
    colour = (0.75 - 0.65 * shade, 0.82 - 0.52 * shade, 0.9 - 0.3 * shade)
    axes.plot(GRID, curve.kept, color=colour, linewidth=1.6, label=f"{curve.k}")
    if curve.floor is not None:
        at = GRID.index(curve.floor)
        axes.plot([curve.floor], [curve.kept[at]], "o", color=colour, markersize=5)
