"""Plots as files: a PNG each, and one HTML page that holds them all and needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evaluation.figures import Plot

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ margin: 2rem 0; }}
img {{ max-width: 100%; height: auto; }}
figcaption, li {{ color: #444; }}
</style>
</head>
<body>
<h1>{title}</h1>
<ul>
{caveats}
</ul>
{figures}
</body>
</html>
"""

_FIGURE: Final = """<figure>
<img src="data:image/png;base64,{data}" alt="{title}">
<figcaption>{caption}</figcaption>
</figure>"""


def write_page(
    folder: Path, title: str, plots: Sequence[Plot], *, caveats: Sequence[str] = ()
) -> Path:
    """Write NAME.png for each plot, and index.html; answers the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.png)
    page = folder / "index.html"
    page.write_text(page_text(title, plots, caveats=caveats), encoding="utf-8")
    return page


def page_text(title: str, plots: Sequence[Plot], *, caveats: Sequence[str]) -> str:
    """The HTML page."""
    return _PAGE.format(
        title=html.escape(title),
        caveats="\n".join(f"<li>{html.escape(caveat)}</li>" for caveat in caveats),
        figures="\n".join(
            _FIGURE.format(
                data=base64.b64encode(plot.png).decode(),
                title=html.escape(plot.title),
                caption=html.escape(plot.caption),
            )
            for plot in plots
        ),
    )
