"""Plots from records and logs: accuracy against length or distance, loss against step; as PNG and SVG, the same bytes.

`python -m mambalab.reports.figures OUT FILE...` draws all records.jsonl among the files into one plot a kind, and all
log.jsonl, each called after its folder, into another.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import jsonl, published, record
from .extrapolation import LEFT_OUT, WHOLE, of_lengths, power
from .record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (8.0, 4.5)  # inches
DOTS = 150  # an inch
# Told apart without colour vision (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
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


def accuracy_by_length(records: Sequence[Record]) -> Figure:
    """Sequences without an error against their length, a line a model and seed; the published curves beside them.

    A cross at the foot is a length that was left out: out of memory, or not possible.
    """
    found = of_lengths(records)
    with _look():
        figure, axes = _canvas("Sequence length, tokens", "Sequences without an error, %")
        lines = _lines(found)
        for line in lines:
            measured = [r for r in line.records if r.metric == WHOLE]
            axes.plot(_lengths(measured), [100 * r.value for r in measured], label=line.label, **line.style)
        _draw_published(axes, lines)
        _draw_left_out(axes, lines)
        _draw_chance(axes, found)
        for length in sorted({r.setting["trained_length"] for r in found}):
            axes.axvline(length, color=GREY, linestyle="-.", linewidth=1, label=f"trained at {_math(length)}")
        return _finish(figure, axes, found, _lengths(found))


def accuracy_by_distance(records: Sequence[Record]) -> Figure:
    """Right answers against how far the query stands behind what it asks for, over all lengths.

    A line a model and seed. ValueError where no record counts distances.
    """
    found = [r for r in of_lengths(records) if r.metric == WHOLE and r.setting["by_distance"]]
    if not found:
        raise ValueError("no records of accuracy by distance")
    with _look():
        figure, axes = _canvas("Distance between trigger and query, tokens (from each power to the next)", "Right, %")
        lows: set[int] = set()
        for line in _lines(found):
            counts = _added(line.records)
            lows |= set(counts)
            axes.plot(list(counts), [100 * right / of for right, of in counts.values()], label=line.label, **line.style)
        _draw_chance(axes, found)
        return _finish(figure, axes, found, lows)


def loss_by_step(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The training loss in nats against the step, on log axes; a line a run, by its name, from the lines of its log."""
    with _look():
        figure, axes = _canvas("Training step", "Loss, nats")
        for i, (name, lines) in enumerate(logs.items()):
            steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
            axes.plot(steps, losses, color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.2)
        axes.set_yscale("log")
        _legend(axes)
        return figure


def write(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, each whole or not at all; equal figures give equal bytes."""
    written = []
    with _look():
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
            content = io.BytesIO()
            figure.savefig(content, format=suffix[1:], dpi=DOTS, metadata=metadata)
            written.append(path.with_name(path.name + suffix))
            jsonl.write_whole(written[-1], content.getvalue())
    return written


def _look() -> Any:
    """matplotlib as it comes, whatever the user's own settings are, and ours on top."""
    from matplotlib import style

    return style.context(["default", dict(LOOK)])


def _canvas(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(xlabel=x, ylabel=y)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One curve: what it is called, the records of it, and how it is drawn."""

    label: str
    records: list[Record]
    style: dict[str, Any]

    @property
    def published(self) -> str | None:
        """The row of Table 2 that it repeats."""
        return self.records[0].setting["published"]


def _lines(records: Sequence[Record]) -> list[_Line]:
    """A line a model and seed. Models have a colour each, or seeds where there is one model.

    Lines of one model may lie on each other and are all seen: later ones are thinner, their marks smaller.
    """
    by_line: dict[tuple[str, int | None], list[Record]] = {}
    for r in records:
        by_line.setdefault((r.model, r.seed), []).append(r)
    models = list(dict.fromkeys(model for model, _ in by_line))
    made = []
    for (model, seed), of_line in by_line.items():
        nth = [other for other in by_line if other[0] == model].index((model, seed))
        colour = COLOURS[(models.index(model) if len(models) > 1 else nth) % len(COLOURS)]
        marker = MARKERS[(models.index(model) + nth) % len(MARKERS)]
        size, width = max(3.0, 6.5 - 1.6 * nth), max(0.8, 2.0 - 0.6 * nth)
        style = {"color": colour, "marker": marker, "markersize": size, "linewidth": width, "zorder": 3}
        made.append(_Line(label=f"{model}, seed {seed}", records=of_line, style=style | {"clip_on": False}))
    return made


def _draw_published(axes: Axes, lines: Sequence[_Line]) -> None:
    """The rows of Table 2, dashed, each in its model's colour; black where there is one model alone."""
    coloured = {line.published: line.style["color"] for line in lines if line.published}
    dashed = {"linestyle": (0, (5, 3)), "linewidth": 1.2}
    for row, colour in coloured.items():
        points = {length: value for length, value in published.table2(row).items() if value is not None}
        is_alone = len(coloured) == 1
        axes.plot(list(points), list(points.values()), color="black" if is_alone else colour, zorder=4, **dashed)
    if coloured:
        axes.plot([], [], color="black", label="published", **dashed)


def _draw_left_out(axes: Axes, lines: Sequence[_Line]) -> None:
    whys: dict[str, None] = {}
    for line in lines:
        left_out = [r for r in line.records if r.metric == LEFT_OUT]
        whys |= dict.fromkeys(r.setting["why"].partition(":")[0] for r in left_out)
        # An empty line would still take room, outside the axes.
        if left_out:
            axes.plot(_lengths(left_out), [0] * len(left_out), "x", color=line.style["color"], clip_on=False)
    if whys:
        axes.plot([], [], "x", color="black", label=", ".join(whys))


def _draw_chance(axes: Axes, records: Sequence[Record]) -> None:
    for chance in sorted({r.setting["chance"] for r in records}):
        axes.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1.2, label=f"chance, {chance:.1%}")


def _finish(figure: Figure, axes: Axes, records: Sequence[Record], lengths: Collection[int]) -> Figure:
    """Powers of two along x, percent along y, a title and a legend."""
    _powers(axes, min(lengths), max(lengths))
    axes.set_ylim(0, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(_title(records))
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _lengths(records: Sequence[Record]) -> list[int]:
    return [r.setting["length"] for r in records]


def _added(line: Sequence[Record]) -> dict[int, tuple[int, int]]:
    """Right answers and all answers by distance, over all lengths."""
    counts: dict[int, tuple[int, int]] = {}
    for r in line:
        for low, right, of in r.setting["by_distance"]:
            before = counts.get(low, (0, 0))
            counts[low] = (before[0] + right, before[1] + of)
    return dict(sorted(counts.items()))


def _powers(axes: Axes, low: int, high: int) -> None:
    """A log2 axis with a tick at every power, or at every second where they are many."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    axes.set_xscale("log", base=2)
    exponents = [e for e in range(first, last + 1) if last - first <= 12 or e % 2 == 0]
    axes.set_xticks([2**e for e in exponents], [_math(2**e) for e in exponents])
    axes.minorticks_off()
    axes.set_xlim(2 ** (first - 0.3), 2 ** (last + 0.3))


def _title(records: Sequence[Record]) -> str:
    """The tasks, and how many sequences were read of each length."""
    counts = sorted({r.setting["sequences"] for r in records})
    sequences = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{', '.join(sorted({r.task for r in records}))}: {sequences} sequences of each length"


def _math(length: int) -> str:
    """A length with its power raised."""
    base, raised, exponent = power(length).partition("^")
    return f"${base}^{{{exponent}}}$" if raised else base


def draw(records: Sequence[Record], out: Path) -> list[Path]:
    """Write into `out` the plots over length and, where distances are counted, over distance."""
    written = write(accuracy_by_length(records), out / "accuracy-by-length")
    if any(r.setting.get("by_distance") for r in of_lengths(records)):
        written += write(accuracy_by_distance(records), out / "accuracy-by-distance")
    return written


def main(arguments: Sequence[str]) -> None:
    """Draw what the files hold into the folder named first."""
    if len(arguments) < 2:
        raise SystemExit("usage: python -m mambalab.reports.figures OUT FILE...")
    out, files = Path(arguments[0]), [Path(name) for name in arguments[1:]]
    records = [r for path in files if path.name == "records.jsonl" for r in record.read(path)]
    logs = {
        path.parent.name: [line for _, line in jsonl.read_lines(path)] for path in files if path.name == "log.jsonl"
    }
    if records:
        draw(records, out)
    if logs:
        write(loss_by_step(logs), out / "loss-by-step")


if __name__ == "__main__":
    main(sys.argv[1:])
