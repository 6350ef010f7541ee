"""The ablations beside the paper's: our accuracy on a synthetic task, its perplexity of a language model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from . import markdown
from .ablation_rows import ABLATIONS, Ablation
from .naming import filled, how, length
from .rank_correlation import spearman
from .record import PARAMETERS, SEQUENCES, SOLVED, TOKENS, Record
from .synthetic import NOT_RUN
from .trained import Trained, trained, where

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "ablation-"
PERPLEXITY = "Paper: perplexity, 350M LM"
# Of a setting: what the trainings of one table share, beside the task; and of the model, whatever is ablated.
SHARED = (
    "steps",
    "batch_size",
    "optimiser",
    "matmul",
    "curriculum",
    "sequences",
    "evaluation_seed",
    "solved_after",
    "evaluate_every",
)
SHARED_MODEL = ("d_model", "n_layer", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Found:
    """An ablation on one task: the trainings of each row, which share all settings but what is ablated and the seed."""

    ablation: Ablation
    task: str
    runs: tuple[tuple[Trained, ...], ...] = field(repr=False)

    @property
    def title(self) -> str:
        return f"{self.ablation.title}, {self.task} at length {markdown.count(length(self.all[0].setting))}"

    @property
    def all(self) -> list[Trained]:
        return [run for runs in self.runs for run in runs]


def name_of(experiment: str) -> str | None:
    """The ablation whose records these are: a key of ABLATIONS; None for another experiment."""
    name = experiment.removeprefix(EXPERIMENT)
    return name if name != experiment and name in ABLATIONS else None


def found(name: str, records: Iterable[Record], folders: Mapping[str, Path] | None = None) -> list[Found]:
    """The ablation in these records: one for each task and each set of shared settings, in their order.

    ValueError for a training that is in no row, and for two in a row with the same seed; it names their `folders`,
    which are by the identity of their records.
    """
    ablation = ABLATIONS[name]
    groups: dict[str, list[Trained]] = {}
    for run in trained(records, folders):
        groups.setdefault(_shared(ablation, run), []).append(run)
    return [_found(ablation, group) for group in groups.values()]


def _shared(ablation: Ablation, run: Trained) -> str:
    ablated = {path for line in ablation.lines for path in line.asked}
    task = {key: value for key, value in run.setting["task"].items() if f"task.{key}" not in ablated}
    # What mixes decides what else a model has.
    names = SHARED_MODEL if "model.mixer" in ablated else (*SHARED_MODEL, "d_state", "dt_rank", "expand", "d_conv")
    model = {key: run.setting["model"].get(key) for key in names if f"model.{key}" not in ablated}
    setting = filled(run.done_as)
    return json.dumps([task, model, {key: setting.get(key) for key in SHARED}], sort_keys=True)


def _found(ablation: Ablation, group: Sequence[Trained]) -> Found:
    rows: list[list[Trained]] = [[] for _ in ablation.lines]
    for run in group:
        place = ablation.place(run.setting)
        if place is None:
            raise ValueError(f"a training of {run.model} on {run.task} is in no row of the {ablation.title} ablation")
        if twin := next((other for other in rows[place] if other.seed == run.seed), None):
            row = f"{ablation.title}: {ablation.lines[place].name}{where([twin.folder, run.folder])}"
            raise ValueError(f"two trainings on {run.task} with seed {run.seed} in a row of {row}")
        rows[place].append(run)
    ordered = (tuple(sorted(row, key=lambda run: run.seed or 0)) for row in rows)
    return Found(ablation=ablation, task=group[0].task, runs=tuple(ordered))


def ablation_table(one: Found) -> pd.DataFrame:
    """A row a cell: the mean over seeds with the least and the greatest, and the paper's perplexity."""
    import pandas as pd

    table = []
    for line, runs in zip(one.ablation.lines, one.runs, strict=True):
        printed = {} if one.ablation.source is None else {PERPLEXITY: markdown.fixed(line.perplexity)}
        table.append({**line.labels, **(_measured(runs) if runs else {"Answers right %": NOT_RUN}), **printed})
    columns = [*one.ablation.lines[0].labels, *_measured(one.all), *({PERPLEXITY} & table[0].keys())]
    return pd.DataFrame(table, columns=columns, dtype=object)


def _measured(runs: Sequence[Trained]) -> dict[str, str]:
    return {
        "Answers right %": _accuracy(runs, TOKENS),
        "Sequences right %": _accuracy(runs, SEQUENCES),
        "Steps to solved": _solved(runs),
        "Seeds": ", ".join(str(run.seed) for run in runs),
        "Parameters": next((run.count(PARAMETERS) for run in runs if not run.is_diverged), markdown.BLANK),
    }


def _accuracy(runs: Sequence[Trained], metric: str) -> str:
    values = [100 * run.values[metric] for run in runs if not run.is_diverged]
    parts = [spread(values, markdown.fixed)] if values else []
    if lost := len(runs) - len(values):
        parts.append(f"{lost} of {len(runs)} diverged")
    return ", ".join(parts)


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """The mean, with the least and the greatest where they differ: "98.20 (97.10 .. 99.30)"."""
    least, greatest = write(min(values)), write(max(values))
    return write(mean(values)) + (f" ({least} .. {greatest})" if least != greatest else "")


def _solved(runs: Sequence[Trained]) -> str:
    steps = [run.values[SOLVED] for run in runs if SOLVED in run.values]
    if not steps:
        return "unsolved"
    text = spread(steps, lambda value: markdown.count(round(value)))
    return text if len(steps) == len(runs) else f"{text}, {len(steps)} of {len(runs)} seeds"


def notes(one: Found) -> list[str]:
    """What the columns are, how it was trained, and how far the order is the paper's."""
    first = one.all[0]
    made = [
        f"{one.title}: mean over the seeds (least .. greatest), {_budget(one)}, on "
        f"{markdown.count(first.setting['sequences'])} sequences. Solved: every sequence right for the first time, "
        f"measured every {markdown.count(first.setting['evaluate_every'])} steps.",
        f"Trained in {how(first.done_as)}.",
        *one.ablation.remarks,
    ]
    if one.ablation.source is not None:
        made += [
            f"{PERPLEXITY}: arXiv:2312.00752v2, {one.ablation.source}, another setting (language models of about "
            "350M parameters on the Pile): only the orders compare.",
            f"Rank correlation (Spearman) with the paper's order, 1 where the two are the same, and p if all orders "
            f"were alike likely: {_correlations(one)}.",
        ]
    return made


def _budget(one: Found) -> str:
    asked, done = one.all[0].setting["steps"], {run.steps for run in one.all if not run.is_diverged}
    return f"{'after' if done == {asked} else 'after at most'} {markdown.count(asked)} steps"


def correlations(one: Found) -> dict[str, tuple[tuple[float, float] | None, int]]:
    """Spearman's coefficient with its p-value, and over how many rows: accuracy and speed against paper's perplexity.

    A row counts as slower than any other when a seed of it was not solved, and is left out when one diverged.
    """
    both = [
        (line.perplexity, runs)
        for line, runs in zip(one.ablation.lines, one.runs, strict=True)
        if line.perplexity is not None and runs and not any(run.is_diverged for run in runs)
    ]
    printed = [-perplexity for perplexity, _ in both]
    accuracy = [mean(run.values[TOKENS] for run in runs) for _, runs in both]
    speed = [-mean(run.values.get(SOLVED, math.inf) for run in runs) for _, runs in both]
    return {
        "answers right": (spearman(accuracy, printed), len(both)),
        "steps to solved (unsolved last)": (spearman(speed, printed), len(both)),
    }


def _correlation(found: tuple[float, float] | None) -> str:
    return f"{markdown.signed(found[0])} (p = {markdown.probability(found[1])})" if found else "none"


def _correlations(one: Found) -> str:
    made = correlations(one)
    parts = [f"{name} {_correlation(value)}" for name, (value, _) in made.items()]
    return f"{', '.join(parts)}, over {max(count for _, count in made.values())} rows"


def lines(one: Found) -> list[dict[str, Any]]:
    """A line a number, for a CSV."""
    return [
        {"task": one.task, **line.labels, "seed": run.seed, "metric": metric, "value": value}
        | {"perplexity": line.perplexity}
        for line, runs in zip(one.ablation.lines, one.runs, strict=True)
        for run in runs
        for metric, value in run.values.items()
    ]
