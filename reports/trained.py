"""Trainings as their records tell them: what was asked for, and each number that was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import markdown
from .record import Record

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "training"
TOKENS, SEQUENCES = "token accuracy", "sequence accuracy"
SOLVED, DIVERGED = "steps to solved", "diverged after step"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training: `setting` is its recipe and the steps done, `values` is by metric, DIVERGED alone where it did."""

    model: str
    task: str
    seed: int | None
    setting: Mapping[str, Any]
    values: Mapping[str, float]

    def asked(self, path: str) -> Any:
        """What the setting holds under a dotted name, such as "model.d_state"; None where there is nothing."""
        found: Any = self.setting
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @property
    def is_diverged(self) -> bool:
        """Whether its loss became something else than a number, so that nothing was measured at the end."""
        return DIVERGED in self.values

    @property
    def steps(self) -> int:
        """How many were done."""
        return self.setting["steps_done"]

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
        seconds = self.values.get("training seconds")
        return markdown.significant(None if seconds is None else seconds / 60)


def trained(records: Iterable[Record]) -> list[Trained]:
    """The trainings behind the records, in the order in which they come. ValueError for one that is there twice."""
    found: dict[str, list[Record]] = {}
    for r in records:
        how = (r.model, r.task, r.seed, r.setting, r.provenance["backend"], r.provenance.get("device"))
        found.setdefault(json.dumps(how, sort_keys=True), []).append(r)
    return [_one(group) for group in found.values()]


def _one(group: Sequence[Record]) -> Trained:
    first = group[0]
    values = {r.metric: r.value for r in group}
    if len(values) < len(group):
        raise ValueError(f"two trainings of {first.model} on {first.task} with the same settings and seed {first.seed}")
    return Trained(model=first.model, task=first.task, seed=first.seed, setting=first.setting, values=values)


def training_table(runs: Iterable[Trained]) -> pd.DataFrame:
    """A row a training, by task, length, model and seed."""
    import pandas as pd

    ordered = sorted(runs, key=lambda run: (run.task, length(run.setting), run.model, run.seed or 0, run.steps))
    return pd.DataFrame(
        {
            "Model": run.model,
            "Task": run.task,
            "Length": markdown.count(length(run.setting)),
            "Seed": str(run.seed),
            "Batch": markdown.count(run.asked("batch_size")),
            "Steps": markdown.count(run.steps),
            "Answers right %": run.percent(TOKENS),
            "Sequences right %": run.percent(SEQUENCES),
            "Steps to solved": run.count(SOLVED),
            "Seconds to solved": run.significant("seconds to solved"),
            "Steps/s": run.significant("steps per second"),
            "Minutes": run.minutes,
            "Parameters": run.count("parameters"),
        }
        for run in ordered
    )


def length(setting: Mapping[str, Any]) -> int:
    """Tokens that the task counts as its length: for selective copying its places, without the markers."""
    task = setting["task"]
    return task["places"] if "places" in task else task["length"]


def how(setting: Mapping[str, Any]) -> str:
    """How a training was done, in a line."""
    return ", ".join(manner(setting))


def manner(setting: Mapping[str, Any]) -> list[str]:
    """How a training was done, one thing after another."""
    optimiser = setting["optimiser"]
    kind = "AdamW" if optimiser["weight_decay"] else "Adam"
    return [
        f"batches of {setting['batch_size']}",
        f"{kind} at {optimiser['learning_rate']:g}",
        _schedule(optimiser),
        *_unusual(setting),
        *([f"gradients clipped to {optimiser['clip']:g}"] if optimiser["clip"] else []),
        *([f"first {stages}"] if (stages := _curriculum(setting["curriculum"])) else []),
    ]


PRODUCTS = {"tf32": "TF32", "bfloat16": "bfloat16"}
USUAL = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def _unusual(setting: Mapping[str, Any]) -> list[str]:
    """What few trainings set, where this one did."""
    optimiser = setting["optimiser"]
    parts = [f"{name} {optimiser[name]:g}" for name, value in USUAL.items() if optimiser.get(name, value) != value]
    product = setting.get("matmul", "float32")
    return [*parts, *([f"matrix products in {PRODUCTS[product]}"] if product != "float32" else [])]


def _schedule(optimiser: Mapping[str, Any]) -> str:
    decay = "constant" if optimiser["decay"] == "constant" else f"{optimiser['decay']} decay"
    if optimiser["decay"] != "constant" and optimiser["decay_steps"]:
        decay += f" over the last {optimiser['decay_steps']:,} steps"
    return decay + (f" after {optimiser['warmup']:,} steps of warm-up" if optimiser["warmup"] else "")


def _curriculum(stages: Sequence[Sequence[int]]) -> str:
    return " and ".join(f"{steps:,} steps at length {size:,}" for steps, size in stages)


def hows(runs: Iterable[Trained]) -> list[str]:
    """Each way in which some of these were trained, with their models where there are several."""
    ways: dict[str, dict[str, None]] = {}
    for run in runs:
        ways.setdefault(how(run.setting), {})[run.model] = None
    return [f"Trained in {way}." if len(ways) == 1 else f"{', '.join(of)}: {way}." for way, of in ways.items()]


def lines(runs: Iterable[Trained]) -> list[dict[str, Any]]:
    """A line a number, for a CSV."""
    return [
        {"model": run.model, "task": run.task, "length": length(run.setting), "seed": run.seed, "steps": run.steps}
        | {"metric": metric, "value": value}
        for run in runs
        for metric, value in run.values.items()
    ]
