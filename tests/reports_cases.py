"""Runs written to disk for the tests of reports: small, invented documents whose numbers follow from them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mambalab.reports import record
from mambalab.reports.record import Record

METRICS = {
    "lambada_openai": ("perplexity", "acc"),
    "hellaswag": ("acc", "acc_norm"),
    "piqa": ("acc", "acc_norm"),
    "arc_easy": ("acc", "acc_norm"),
    "arc_challenge": ("acc", "acc_norm"),
    "winogrande": ("acc",),
}
SIX = tuple(METRICS)
PROVENANCE = {
    "version": "0.1.0",
    "digest": "0123456789abcdef",
    "commit": "fedcba9876543210",
    "dirty": True,
    "versions": {"torch": "2.13.0", "lm_eval": "0.4.13"},
    "device": "cpu",
    "cpu": "a CPU",
    "threads": 2,
    "dtype": "float32",
    "backend": "cpu",
    "kernel": "abcdef0123456789",
    "tokenizer": "99887766554433",
    "data": {"piqa.jsonl": "00112233445566"},
}


def some_record(**changes: Any) -> Record:
    fields = {
        "experiment": "zero-shot",
        "model": "mamba-130m",
        "task": "piqa",
        "metric": "acc",
        "setting": {"num_fewshot": 0, "limit": None},
        "seed": 1234,
        "value": 0.5,
        "stderr": 0.1,
        "n": 26,
        "provenance": PROVENANCE,
    }
    return Record(**{**fields, **changes})


def documents(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Sample lines of one task: right or wrong by a coin, log-likelihoods near -3."""
    rng = np.random.default_rng([seed, SIX.index(task) if task in SIX else 9])
    metrics = METRICS.get(task, ("acc",))
    lines = []
    for i in range(count):
        values = {m: float(rng.normal(-3, 0.5)) if m == "perplexity" else float(rng.random() < 0.5) for m in metrics}
        document = {"doc_id": i, "doc_hash": f"{task}-{i}", "target": 0, "filter": "none", "metrics": list(metrics)}
        lines.append(document | values)
    return lines


def records_of(model: str, task: str, lines: list[dict[str, Any]], provenance: Mapping[str, Any]) -> list[Record]:
    made = []
    for metric in lines[0]["metrics"]:
        values = np.array([line[metric] for line in lines])
        stderr = float(values.std(ddof=1) / math.sqrt(len(values)))
        mean = math.fsum(values) / len(values)
        value = math.exp(-mean) if metric == "perplexity" else mean
        made.append(
            some_record(
                model=model,
                task=task,
                metric=metric,
                value=value,
                stderr=stderr * value if metric == "perplexity" else stderr,
                n=len(lines),
                provenance={**provenance, "task_version": 1.0, "documents": len(lines)},
            )
        )
    return made


def write_run(
    path: Path,
    model: str,
    *,
    tasks: tuple[str, ...] = SIX,
    count: int = 40,
    seed: int = 0,
    provenance: Mapping[str, Any] = PROVENANCE,
    samples: bool = True,
) -> Path:
    """A finished zero-shot run directory."""
    made = []
    for task in tasks:
        lines = documents(task, count, seed)
        made += records_of(model, task, lines, provenance)
        if samples:
            write_lines(path / "samples" / f"{task}.jsonl", lines)
    (path / "run.json").parent.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps({"model": model, "settings": {}, "key": "0"}))
    record.write(path / "records.jsonl", made)
    return path


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def narrow(text: str) -> str:
    """Markdown without what only aligns the columns of its tables."""
    return re.sub(r"-{3,}", "-", re.sub(r" {2,}", " ", text))


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
