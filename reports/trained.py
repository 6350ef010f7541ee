"""Trainings as their records tell them: what was asked for, and each number that was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import markdown
from .naming import Marks, Named, at, in_effect, length
from .record import (
    DIVERGED,
    PARAMETERS,
    SECONDS,
    SEQUENCES,
    SOLVED,
    SOLVED_SECONDS,
    SPEED,
    STEADY,
    TOKENS,
    Record,
    identity,
)

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "training"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training: `setting` is its recipe and the steps done, `values` is by metric, DIVERGED alone where it did.

    Of one that is not finished, `values` is what its log says. `device` is None where nothing tells it, `folder`
    where it is not known in which its records lie.
    """

    model: str
    task: str
    seed: int | None
    setting: Mapping[str, Any]
    values: Mapping[str, float]
    is_finished: bool = True
    device: str | None = None
    folder: Path | None = None

    @property
    def done_as(self) -> Mapping[str, Any]:
        """The setting as it took effect."""
        return in_effect(self.setting, self.device)

    @property
    def named(self) -> Named:
        return (self.model, self.done_as)

    def asked(self, path: str) -> Any:
        """What the setting holds under a dotted name."""
        return at(self.setting, path)

    @property
    def is_diverged(self) -> bool:
        """Whether its loss became something else than a number, so that nothing was measured at the end."""
        return DIVERGED in self.values

    @property
    def steps(self) -> int:
        """How many were done."""
        return self.setting["steps_done"]

    @property
    def done(self) -> str:
        """The steps that were done as a table shows them."""
        goal = "" if self.is_finished else f" of {self.setting['steps']:,}"
        return f"{self.steps:,}{goal}{', diverged' if self.is_diverged else ''}"

    def percent(self, metric: str) -> str:
        """An accuracy as a table shows it."""
        value = self.values.get(metric)
        return markdown.fixed(None if value is None else 100 * value)

    def count(self, metric: str) -> str:
        """A whole number as a table shows it."""
        value = self.values.get(metric)
        return markdown.count(None if value is None else round(value))

    def significant(self, metric: str) -> str:
        """A time or a rate as a table shows it."""
        return markdown.significant(self.values.get(metric))

    @property
    def minutes(self) -> str:
        """Wall clock, measurements included."""
        seconds = self.values.get(SECONDS)
        return markdown.significant(None if seconds is None else seconds / 60)


def trained(records: Iterable[Record], folders: Mapping[str, Path] | None = None) -> list[Trained]:
    """The trainings behind the records, in the order in which they come. ValueError for one that is there twice.

    folders     where records lie, by their identity, as far as that is known
    """
    found: dict[str, list[Record]] = {}
    for r in records:
        how = (r.model, r.task, r.seed, r.setting, r.provenance["backend"], r.provenance.get("device"))
        found.setdefault(json.dumps(how, sort_keys=True), []).append(r)
    return [_one(group, folders or {}) for group in found.values()]


def _one(group: Sequence[Record], folders: Mapping[str, Path]) -> Trained:
    first = group[0]
    values = {r.metric: r.value for r in group}
    own = [folder for folder in map(folders.get, map(identity, group)) if folder]
    if len(values) < len(group):
        raise ValueError(
            f"two trainings of {first.model} on {first.task} with the same settings and seed {first.seed}{where(own)}"
        )
    return Trained(
        model=first.model,
        task=first.task,
        seed=first.seed,
        setting=first.setting,
        values=values,
        device=first.provenance.get("device"),
        folder=own[0] if own else None,
    )


def where(folders: Iterable[Path | None]) -> str:
    """What a line that refuses trainings ends with: the folders that hold them, as far as they are known."""
    known = dict.fromkeys(str(folder) for folder in folders if folder)
    return f": {' and '.join(known)}" if known else ""


def ordered(runs: Iterable[Trained]) -> list[Trained]:
    """By task, length, model and seed, as their table has them."""
    return sorted(runs, key=lambda run: (run.task, length(run.setting), run.model, run.seed or 0, run.steps))


def training_table(runs: Sequence[Trained], marks: Marks) -> tuple[pd.DataFrame, list[str]]:
    """A row a training, and notes on what was measured."""
    import pandas as pd

    table = [
        {
            "Model": run.model,
            "Task": run.task,
            "Length": markdown.count(length(run.setting)),
            "Trained": marks.of(run.named),
            "Seed": str(run.seed),
            "Batch": markdown.count(run.asked("batch_size")),
            "Steps": run.done,
            "Answers right %": run.percent(TOKENS),
            "Sequences right %": run.percent(SEQUENCES),
            "Steps to solved": run.count(SOLVED),
            "Seconds to solved": run.significant(SOLVED_SECONDS),
            "Steps/s": run.significant(SPEED),
            "Minutes": run.minutes,
            "Parameters": run.count(PARAMETERS),
        }
        for run in runs
    ]
    sequences = sorted({run.asked("sequences") for run in runs})
    counted = f"Right: of a fixed set of {markdown.either(sequences)} sequences."
    return without_empty(pd.DataFrame(table), "Trained"), [counted, *solved(runs, marks)]


def solved(runs: Sequence[Trained], marks: Marks) -> list[str]:
    """What the steps to solved are, and of trainings with errors after that, since when their logs have none."""
    apart = sorted({run.asked("evaluate_every") for run in runs})
    told = (
        f"Solved: the first measurement that found every sequence right; there is one every {markdown.either(apart)} "
        "steps, and later ones may have found errors again."
    )
    relapsed = [run for run in runs if run.values.get(STEADY) != run.values.get(SOLVED) and STEADY in run.values]
    since = "; ".join(
        f"{' '.join(filter(None, (run.model, marks.of(run.named))))}, seed {run.seed}, since step {run.count(STEADY)}"
        for run in relapsed
    )
    return [told, *([f"Errors after that, by its log, and then right at every measurement: {since}."] if since else [])]


def without_empty(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The table without a column in which nothing is said."""
    return table if any(table[column]) else table.drop(columns=column)


def lines(runs: Iterable[Trained]) -> list[dict[str, Any]]:
    """A line a number, for a CSV."""
    return [
        {"model": run.model, "task": run.task, "length": length(run.setting), "seed": run.seed, "steps": run.steps}
        | {"metric": metric, "value": value}
        for run in runs
        for metric, value in run.values.items()
    ]
