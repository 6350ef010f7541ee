"""A training run as its folder holds it, small and invented, for the tests of reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mambalab.reports import record
from mambalab.reports.training_runs import TrainingRun
from mambalab.tasks.recipes import recipe, to_json
from reports_cases import some_record, write_lines

RECIPE = replace(recipe("induction-heads"), steps=400, log_every=100, evaluate_every=200, checkpoint_every=200)
MEASURED = {"answers": 256, "loss": 0.5, "sequence": 0.75, "sequences": 256, "token": 0.75}
LOG: list[dict[str, Any]] = [
    {"step": 100, "length": 256, "loss": 2.7, "accuracy": 0.125, "steps_per_second": 50.0, "seconds": 2.0},
    {"step": 200, "length": 256, "loss": 0.02, "accuracy": 0.5, "steps_per_second": 50.0, "seconds": 90.0}
    | {"measured": MEASURED},
]


def run(*, model: str | None = "mamba", log: Sequence[Mapping[str, Any]] = LOG, **changes: Any) -> TrainingRun:
    """One that might have been trained by the recipe with these changes."""
    setting = to_json(replace(RECIPE, **changes))
    shared: dict[str, Any] = {"name": "run", "folder": Path("run"), "is_finished": model is not None}
    return TrainingRun(setting=setting, log=log, model=model, **shared)


def write_training(folder: Path, *, finished: bool = True, **changes: Any) -> Path:
    """The folder of a training run."""
    one = run(**changes)
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"recipe": one.setting}))
    write_lines(folder / "log.jsonl", [dict(line) for line in one.log])
    if finished:
        setting = {**one.setting, "steps_done": one.setting["steps"]}
        numbers = {"token accuracy": 0.5, "sequence accuracy": 0.25, "training seconds": 90.0, "parameters": 73664}
        shared = {"experiment": "training", "model": "mamba", "task": one.task, "setting": setting, "seed": one.seed}
        made = [some_record(metric=metric, value=value, stderr=None, **shared) for metric, value in numbers.items()]
        record.write(folder / "records.jsonl", made)
    return folder
