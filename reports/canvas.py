"""What all plots look like, and how they are written: as PNG and SVG, equal figures as the same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS = 150  # an inch
# Told apart without colour vision (Okabe and Ito, 2008), then four as dark. Black is for what curves share.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B5125A", "#7A8B1F", "#5B4BC4", "#6B3E1E")
GREY = "#666666"
LOOK: Mapping[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "mambalab",
}


def colours(n: int) -> Sequence[Any]:
    """So many colours: the ones above, or a row of hues where they are too few."""
    if n <= len(COLOURS):
        return COLOURS[:n]
    from matplotlib import colormaps

    return [colormaps["turbo"](i / (n - 1)) for i in range(n)]


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most so many characters, broken at commas where what stands between them has room.

    >>> print(wrapped("mamba, batches of 8, seed 0", 18))
    mamba,
    batches of 8,
    seed 0
    """
    parts = (part if len(part) > width - 1 else part.replace(" ", "\xa0") for part in text.split(", "))
    return textwrap.fill(", ".join(parts), width).replace("\xa0", " ")


def look() -> Any:
    """matplotlib as it comes, whatever the user's own settings are, and ours on top."""
    from matplotlib import style

    return style.context(["default", dict(LOOK)])


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches, to be drawn on under `look`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def percents(axes: Axes) -> None:
    """Percent along y, with room for the marks at 100."""
    axes.set_ylim(0, 103)
    axes.set_yticks(range(0, 101, 20))


def write(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, each whole or not at all; equal figures give equal bytes."""
    written = []
    with look():
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
            content = io.BytesIO()
            figure.savefig(content, format=suffix[1:], dpi=DOTS, metadata=metadata)
            written.append(path.with_name(path.name + suffix))
            jsonl.write_whole(written[-1], content.getvalue())
    return written
