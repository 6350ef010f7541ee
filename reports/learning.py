"""Plots of training runs: the loss and the share of right answers against the step, from their logs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import canvas, markdown, naming
from .ablation_rows import ABLATIONS, Ablation
from .ablations import name_of as ablation_of
from .training_runs import TrainingRun, kind

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (8.5, 6.0)  # inches
LINES = ("-", "--", ":", "-.")  # of seeds
DOTS = {"linestyle": "none", "marker": "o", "markersize": 3.5}
WIDE = 30  # characters of a line of the legend
# Curves that a plot holds before there is another one.
MOST = 10


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Runs that differ in their seed alone; `model` is what tells it: its name, or the row of an ablation's table."""

    model: str
    runs: tuple[TrainingRun, ...]
    row: int = 0


def curves(runs: Sequence[TrainingRun]) -> list[Curve]:
    """The runs by model and settings, in the order in which they come; an ablation's in the order of its table."""
    found: dict[str, list[TrainingRun]] = {}
    for run in runs:
        found.setdefault(naming.key(run.setting), []).append(run)
    # Unfinished runs have no record that names their model, but another run of it may.
    called = {naming.model_key(run.setting): run.model for run in runs if run.model}
    made = []
    for group in found.values():
        setting, ablation = group[0].setting, _ablation(group[0])
        row = ablation.place(setting) if ablation else None
        model = called.get(naming.model_key(setting)) or kind(setting)
        if ablation and row is not None:
            model = ablation.lines[row].name
        made.append(Curve(model=model, runs=tuple(sorted(group, key=lambda run: run.seed)), row=row or 0))
    return sorted(made, key=lambda one: one.row)


def _ablation(run: TrainingRun) -> Ablation | None:
    name = ablation_of(run.experiment or "")
    return ABLATIONS[name] if name else None


def by_step(found: Sequence[Curve]) -> Figure:
    """Loss in nats over right answers in percent, against the step: training batches as lines, fixed sets as dots.

    A colour a curve, a line style a seed; all are of one task at one length. ValueError for logs without a line.
    """
    runs = [run for one in found for run in one.runs if run.log]
    if not runs:
        raise ValueError("no log has a line yet")
    names, shared = _called(found)
    seeds = sorted({run.seed for run in runs})
    with canvas.look():
        figure = canvas.blank(*SIZE)
        loss, right = figure.subplots(2, 1, sharex=True)
        colours = canvas.colours(len(found))
        for one, colour in zip(found, colours, strict=True):
            for run in one.runs:
                _draw(loss, right, run, {"color": colour, "linestyle": LINES[seeds.index(run.seed) % len(LINES)]})
        keys = [_key(canvas.wrapped(name, WIDE), color=colour) for name, colour in zip(names, colours, strict=True)]
        keys += [_key(f"seed {seed}", color="black", linestyle=LINES[i % len(LINES)]) for i, seed in enumerate(seeds)]
        keys += [*_dots(runs), *_draw_chance(loss, right, runs), *_draw_stages(loss, right, runs)]
        _scale(loss, right, runs)
        title = ", ".join([*_about(runs[0]), *shared])
        loss.set_title(canvas.wrapped(title, 68), loc="left", fontsize=9.5)
        figure.legend(handles=keys, loc="outside right center", labelspacing=0.6, fontsize=9 if len(keys) < 10 else 8)
        return figure


def _about(run: TrainingRun) -> list[str]:
    ablation = _ablation(run)
    return [*([ablation.title] if ablation else []), f"{run.task} at length {markdown.count(run.length)}"]


def _called(found: Sequence[Curve]) -> tuple[list[str], list[str]]:
    """A name for each curve, and what all of them share."""
    named = [(one.model, one.runs[0].setting) for one in found]
    names, shared = naming.names(named), naming.shared(named)
    model = found[0].model
    if len(found) > 1 and all(one.model == model for one in found):
        return [name.removeprefix(f"{model}, ") for name in names], [model, *shared]
    return names, shared


def _draw(loss: Axes, right: Axes, run: TrainingRun, style: Mapping[str, Any]) -> None:
    steps = [line["step"] for line in run.log]
    loss.plot(steps, [line["loss"] for line in run.log], linewidth=1.1, **style)
    right.plot(steps, [100 * line["accuracy"] for line in run.log], linewidth=1.1, **style)
    right.plot(
        [line["step"] for line in run.measured],
        [100 * line["measured"]["sequence"] for line in run.measured],
        color=style["color"],
        clip_on=False,
        zorder=3,
        **DOTS,
    )


def _key(label: str, **style: Any) -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"linewidth": 1.6, **style})


def _dots(runs: Sequence[TrainingRun]) -> list[Artist]:
    numbers = sorted({line["measured"]["sequences"] for run in runs for line in run.measured})
    of = markdown.either(numbers)
    return [_key(f"of {of} fixed sequences,\nthose without an error", color="black", **DOTS)] if of else []


def _draw_chance(loss: Axes, right: Axes, runs: Sequence[TrainingRun]) -> list[Artist]:
    """The level of a guess among all answers, where it is known and the same for all."""
    chances = {run.chance_loss for run in runs}
    chance = chances.pop()
    if chance is None or chances:
        return []
    style = {"color": canvas.GREY, "linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.2}
    answers = math.exp(chance)
    loss.axhline(chance, **style)
    right.axhline(100 / answers, **style)
    return [_key(f"chance: ln {answers:.0f} = {chance:.2f} nats,\n{markdown.significant(100 / answers, 2)} %", **style)]


def _draw_stages(loss: Axes, right: Axes, runs: Sequence[TrainingRun]) -> list[Artist]:
    """Where a curriculum that all runs share goes on to another length."""
    stages = runs[0].setting["curriculum"]
    if not stages or any(run.setting["curriculum"] != stages for run in runs):
        return []
    style = {"color": canvas.GREY, "linestyle": "-", "linewidth": 0.8}
    for end in accumulate(steps for steps, _ in stages):
        for axes in (loss, right):
            axes.axvline(end, zorder=1, **style)
    lengths = [*(size for _, size in stages), runs[0].length]
    text = f"trained at length {', then '.join(map(markdown.count, lengths))}"
    return [_key(canvas.wrapped(text, WIDE), **style)]


def _scale(loss: Axes, right: Axes, runs: Sequence[TrainingRun]) -> None:
    """Log axes where a linear one would hide what is small."""
    steps = [line["step"] for run in runs for line in run.log]
    losses = [line["loss"] for run in runs for line in run.log]
    if max(steps) >= 100 * min(steps):
        right.set_xscale("log")
    if 0 < 20 * min(losses) < max(losses):
        loss.set_yscale("log")
    right.xaxis.set_major_formatter("{x:,.0f}")
    right.set_xlim(min(steps), max(steps))
    canvas.percents(right)
    loss.set_ylabel("Loss, nats")
    right.set_ylabel("Right answers, %")
    right.set_xlabel("Training step")


def not_drawn(runs: Sequence[TrainingRun]) -> list[str]:
    """A line for each run that no plot shows, with what is wrong with its log."""
    return [f"not drawn: {run.folder}: {run.lacking}" for run in runs if not run.log]


def draw(runs: Sequence[TrainingRun], out: Path) -> list[Path]:
    """Write into `out` a plot for each ablation, task and length, or several of at most `MOST` curves; the paths."""
    groups: dict[str, list[TrainingRun]] = {}
    for run in runs:
        if run.log:
            ablation = ablation_of(run.experiment or "")
            name = f"{ablation}-{run.task}-{run.length}" if ablation else f"{run.task}-{run.length}"
            groups.setdefault(name, []).append(run)
    written = []
    for name, group in groups.items():
        found = curves(group)
        parts = [found[i : i + MOST] for i in range(0, len(found), MOST)]
        for number, part in enumerate(parts, start=1):
            suffix = f"-{number}-of-{len(parts)}" if len(parts) > 1 else ""
            written += canvas.write(by_step(part), out / f"loss-and-accuracy-by-step-{name}{suffix}")
    return written
