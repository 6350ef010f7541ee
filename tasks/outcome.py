"""What a training run measured, or that it diverged, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from ..models.architectures import ModelConfig, SequenceConfig
from ..models.synthetic import SYNTHETIC
from ..reports.record import (
    DIVERGED,
    PARAMETERS,
    SECONDS,
    SEQUENCES,
    SOLVED,
    SOLVED_SECONDS,
    SPEED,
    TOKENS,
    Record,
)
from .accuracy import Accuracy, standard_error
from .recipes import Recipe, to_json


def records(
    recipe: Recipe,
    log: Sequence[Mapping[str, Any]],
    accuracy: Accuracy,
    *,
    parameters: int,
    experiment: str,
    provenance: Mapping[str, Any],
) -> list[Record]:
    """Accuracy of answers and of rows at the end, and what the log tells: time, speed, and when all was right first."""
    first = _record(
        recipe,
        log[-1]["step"],
        experiment=experiment,
        provenance=provenance,
        metric=TOKENS,
        value=accuracy.token,
        n=accuracy.answers,
        stderr=standard_error(accuracy.token, accuracy.answers),
    )
    rows = replace(
        first,
        metric=SEQUENCES,
        value=accuracy.sequence,
        n=accuracy.sequences,
        stderr=standard_error(accuracy.sequence, accuracy.sequences),
    )
    others = {"loss": accuracy.loss, PARAMETERS: parameters} | _from_log(log)
    return [first, rows, *(replace(first, metric=name, value=v, n=1, stderr=None) for name, v in others.items())]


def accuracy(records: Sequence[Record]) -> Accuracy:
    """What `records` was made with."""
    by_metric = {r.metric: r for r in records}
    answers, rows = by_metric[TOKENS], by_metric[SEQUENCES]
    return Accuracy(
        token=answers.value,
        sequence=rows.value,
        loss=by_metric["loss"].value,
        answers=answers.n,
        sequences=rows.n,
    )


def diverged(recipe: Recipe, steps: int, *, experiment: str, provenance: Mapping[str, Any]) -> Record:
    """That a run can't go on, and how many of its steps are in its log."""
    return _record(recipe, steps, experiment=experiment, provenance=provenance, metric=DIVERGED, value=steps, n=1)


def _record(recipe: Recipe, steps: int, **told: Any) -> Record:
    """A record of a training that came so far."""
    return Record(
        model=model_name(recipe.model),
        task=recipe.task.name,
        setting=to_json(recipe) | {"steps_done": steps},
        seed=recipe.seed,
        **told,
    )


def model_name(config: ModelConfig) -> str:
    """What a model is called in records: its row of the paper's tables, or else how it mixes and that it is no row."""
    rows = (row for row in SYNTHETIC.values() if replace(row.config, vocab_size=config.vocab_size) == config)
    row = next(rows, None)
    if row is not None:
        return row.name
    return f"{config.mixer if isinstance(config, SequenceConfig) else 'mamba'}-variant"


def _from_log(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    told = {SECONDS: log[-1]["seconds"], SPEED: median(line["steps_per_second"] for line in log)}
    solved = next((line for line in log if "measured" in line and line["measured"]["sequence"] == 1), None)
    if solved is not None:
        told |= {SOLVED: solved["step"], SOLVED_SECONDS: solved["seconds"]}
    return told
