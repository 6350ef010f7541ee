"""Plots of how far accuracy reaches, against length or distance, and every plot that there is of some runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import learning, markdown, naming, published, training_runs
from .canvas import GREY, blank, colours, look, percents, wrapped, write
from .extrapolation import EXPERIMENT, named, of_lengths, power, seeds, with_distances
from .record import LEFT_OUT, SEQUENCES, TOKENS, Record
from .runs import load_all, records_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (8.0, 4.5)  # inches
MARKERS = "osD^vP"
WIDE = 36  # characters of a line of the legend
TALL = 0.22  # inches of one
UNLABELLED = "_"  # what matplotlib leaves out of a legend


def accuracy_by_length(records: Sequence[Record]) -> Figure:
    """Sequences without an error against their length, a line a model and seed; the published curves beside them.

    A cross at the foot is a length that was left out: out of memory, or not possible.
    """
    found = of_lengths(records)
    with look():
        figure, axes = _canvas("Sequence length, tokens", "Sequences without an error, %")
        lines = _lines(found)
        for line in lines:
            measured = [r for r in line.records if r.metric == SEQUENCES]
            axes.plot(_lengths(measured), [100 * r.value for r in measured], label=line.label, **line.style)
        _draw_published(axes, lines)
        _draw_left_out(axes, lines)
        several = {r.task for r in records if r.metric == TOKENS}
        _draw_chance(axes, [r for r in found if r.metric == SEQUENCES and r.task not in several])
        for length in sorted({r.setting["trained_length"] for r in found}):
            axes.axvline(length, color=GREY, linestyle="-.", linewidth=1, label=f"trained at {_math(length)}")
        return _finish(figure, axes, found, _lengths(found))


def accuracy_by_distance(records: Sequence[Record]) -> Figure:
    """Right answers against how far the query stands behind what it asks for, over all lengths.

    A line a model and seed. ValueError where no record counts distances.
    """
    found = with_distances(records)
    if not found:
        raise ValueError("no records of accuracy by distance")
    with look():
        figure, axes = _canvas("Distance between trigger and query, tokens", "Right at all lengths together, %")
        lows: set[int] = set()
        for line in _lines(found):
            counts = _added(line.records)
            lows |= set(counts)
            axes.plot(list(counts), [100 * right / of for right, of in counts.values()], label=line.label, **line.style)
        _draw_chance(axes, found)
        return _finish(figure, axes, found, lows)


def _canvas(x: str, y: str) -> tuple[Figure, Axes]:
    figure = blank(*SIZE)
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
    """A line a training. Models, or ways to train one, have a colour and a label each; seeds where there is one way.

    Lines may lie on each other and are all seen: later ones are thinner, their marks smaller.
    """
    by_way: dict[tuple[str, str], dict[tuple[int | None, str | None], list[Record]]] = {}
    for r in records:
        of_way = by_way.setdefault(naming.way_of(named(r)), {})
        of_way.setdefault((r.seed, r.setting.get("weights")), []).append(r)
    is_one = len(by_way) == 1
    hues = colours(len(next(iter(by_way.values()))) if is_one else len(by_way))
    made = []
    names = naming.names([(model, json.loads(way)) for model, way in by_way])
    for i, (name, of_way) in enumerate(zip(names, by_way.values(), strict=True)):
        for nth, ((seed, _), of_line) in enumerate(of_way.items()):
            style = {"color": hues[nth if is_one else i], "zorder": 3, "clip_on": False}
            style |= {"marker": MARKERS[(nth if is_one else i) % len(MARKERS)]}
            style |= {"markersize": max(3.0, 6.5 - 1.6 * len(made)), "linewidth": max(0.8, 2.0 - 0.6 * len(made))}
            shown = seeds([seed] if is_one else [seed for seed, _ in of_way])
            label = wrapped(f"{name}, {shown}", WIDE) if is_one or not nth else UNLABELLED
            made.append(_Line(label=label, records=of_line, style=style))
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
    """The level of one guess: not that of a sequence with several answers, which is next to nothing."""
    for chance in sorted({r.setting["chance"] for r in records}):
        axes.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1.2, label=f"chance, {chance:.1%}")


def _finish(figure: Figure, axes: Axes, records: Sequence[Record], lengths: Collection[int]) -> Figure:
    """Powers of two along x, percent along y, a title and a legend."""
    _powers(axes, min(lengths), max(lengths))
    percents(axes)
    axes.set_title(_title(records))
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    """Beside the axes, whose figure grows where that is too low for it."""
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(SIZE[0], max(SIZE[1], TALL * lines))


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
    sequences = markdown.span({r.setting["sequences"] for r in records})
    return f"{', '.join(sorted({r.task for r in records}))}: {sequences} sequences of each length"


def _math(length: int) -> str:
    """A length with its power raised."""
    base, raised, exponent = power(length).partition("^")
    return f"${base}^{{{exponent}}}$" if raised else base


def draw(records: Sequence[Record], out: Path, of: str = "") -> list[Path]:
    """Write into `out` the plots over length and, where distances are counted, over distance; `of` ends their names."""
    written = write(accuracy_by_length(records), out / f"accuracy-by-length{of}")
    if with_distances(records):
        written += write(accuracy_by_distance(records), out / f"accuracy-by-distance{of}")
    return written


def draw_runs(paths: Sequence[Path], out: Path, say: Callable[[str], object]) -> list[Path]:
    """Write into `out` all plots of the runs at these paths and below: of their logs, and of each task's accuracies.

    `say` gets a line for each training that is in no plot. ValueError where there is nothing to draw.
    """
    records = records_of(load_all(paths), EXPERIMENT)
    trainings = training_runs.find(paths)
    written = learning.draw(trainings, out)
    for task in dict.fromkeys(r.task for r in records):
        written += draw([r for r in records if r.task == task], out, f"-{task}")
    if not written:
        raise ValueError("nothing to draw: these runs have neither logs of training nor accuracies by length")
    for line in learning.not_drawn(trainings):
        say(line)
    return written
