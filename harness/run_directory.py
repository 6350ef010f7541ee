"""The run directory: what a finished evaluation leaves in it, and what a killed one has left there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reports.record import Record, to_lines
from .answers import Answers
from .store import remove_unfinished, write_json, write_text

if TYPE_CHECKING:
    from .zero_shot import Settings

RECORDS = "records.jsonl"
SAMPLE_FIELDS = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "target", "filter", "filtered_resps", "metrics")
# Of the provenance: what is about all tasks together.
OF_ALL_TASKS = ("task_version", "documents", "asked", "truncated_requests")


def name(model: str, key: str) -> str:
    """The directory's name: the last part of the model's, and the beginning of the run's key."""
    tail = model.rstrip("/").rsplit("/", 1)[-1]
    return f"{''.join(c if c.isalnum() or c in '-_.' else '-' for c in tail) or 'model'}-{key[:12]}"


def is_complete(run: Path) -> bool:
    """Whether all results are there."""
    return (run / RECORDS).is_file()


def answers(run: Path, key: str) -> Answers:
    """The store of a run's answers under this key, which is in its name: answers under other keys stay as they are."""
    return Answers(run / f"answers-{key[:12]}.jsonl", key)


def tidy(run: Path) -> None:
    """Take the scaffolding away once the results stand: stored answers, and temporary files of a killed process.

    The answers have done their work then: samples/ holds every document's, and a finished run is never computed again.
    """
    for left in run.glob("answers-*.jsonl"):
        left.unlink()
    remove_unfinished(run)


def finish(
    run: Path,
    settings: Settings,
    key: str,
    origin: dict[str, Any],
    results: dict[str, Any],
    times: dict[str, Any],
) -> None:
    """Write the results; records.jsonl comes last, so its presence says that the run is whole.

    Nothing but times.json depends on when the run ran, or in how many pieces. ValueError for a task without a number.
    """
    samples = results["samples"]
    records = list(_records(settings, origin, results))
    if silent := sorted(samples.keys() - {r.task for r in records}):
        raise ValueError(f"task {silent[0]} gave no number: does lm-eval know a metric of its metric_list?")
    for task, rows in samples.items():
        write_text(run / "samples" / f"{task}.jsonl", "".join(_sample_line(row) for row in rows))
    write_json(run / "provenance.json", origin)
    write_json(run / "run.json", {"key": key, "model": settings.model, "settings": asdict(settings)})
    write_json(run / "times.json", times)
    write_text(run / RECORDS, to_lines(records))
    tidy(run)


def _sample_line(row: dict[str, Any]) -> str:
    kept = {name: row[name] for name in (*SAMPLE_FIELDS, *row["metrics"]) if name in row}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def _records(settings: Settings, origin: dict[str, Any], results: dict[str, Any]) -> Iterator[Record]:
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        rows = results["samples"].get(task)
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            values = [row[metric] for row in rows or () if row["filter"] == chosen and metric in row]
            count = results.get("n-samples", {}).get(task, {}).get("effective")
            yield Record(
                experiment="zero-shot",
                model=settings.model,
                task=task,
                metric=metric if chosen == "none" else key,
                setting={
                    "num_fewshot": results["n-shot"].get(task),
                    "limit": settings.limit,
                    "parity": settings.parity,
                },
                seed=settings.seed,
                value=float(value),
                stderr=standard_error(metric, float(value), values),
                n=len(values) or count,
                provenance=provenance_of(task, origin),
            )


def provenance_of(task: str, origin: dict[str, Any]) -> dict[str, Any]:
    """The run's provenance as it stands in one task's records: what is listed by task, cut to this one."""
    own = {name: origin[name].get(task) for name in ("task_version", "documents")}
    return {name: value for name, value in origin.items() if name not in OF_ALL_TASKS} | own


def standard_error(metric: str, value: float, values: Sequence[Any]) -> float | None:
    """Standard error of a mean from its documents' values (n - 1 in the variance, as lm-eval's).

    For `perplexity` = exp(-mean log-likelihood) the delta method: the value times the mean's standard error.
    None for other aggregates, and for fewer than two documents.
    """
    if len(values) < 2 or not all(isinstance(v, int | float) for v in values):
        return None
    mean = math.fsum(values) / len(values)
    of_mean = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    if metric == "perplexity":
        return value * of_mean
    return of_mean if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12) else None
