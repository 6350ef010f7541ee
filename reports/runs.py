"""Evaluations as they lie on disk: a run's records and scored documents, read whole and held against each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import jsonl, record, training_runs
from .record import Record

ZERO_SHOT = "zero-shot"
NOT_METRICS = frozenset({"doc_id", "target"})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One scored document; `values` holds its metrics (perplexity: the document's log-likelihood)."""

    doc_id: int | str
    doc_hash: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model's records with the documents behind them (task -> samples, empty where none were kept)."""

    path: Path
    model: str
    records: tuple[Record, ...]
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError(f"{self.path} holds no records")
        others = {r.model for r in self.records} - {self.model}
        if others:
            raise ValueError(f"{self.path}: a run of {self.model} holds records of {', '.join(sorted(others))}")
        zero_shot = [r for r in self.records if r.experiment == ZERO_SHOT]
        for key, count in Counter((r.task, r.metric) for r in zero_shot).items():
            if count > 1:
                raise ValueError(f"{self.path}: {count} records of {' '.join(key)} for {self.model}")
        for r in zero_shot:
            _check_against_samples(self.path, r, self.samples.get(r.task, ()))

    @property
    def folder(self) -> Path:
        """Where its records lie."""
        return self.path.parent if self.path.suffix == ".jsonl" else self.path

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What ran, as the first record says."""
        return self.records[0].provenance


def load_run(path: Path | str) -> Run:
    """The one run at `path`; FileNotFoundError or a one-line ValueError for anything else."""
    found = load_runs(path)
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} runs, not one")
    return found[0]


def load_all(paths: Iterable[Path | str]) -> list[Run]:
    """Every run at or below these paths, each once. Errors as of `load_runs`."""
    given = dict.fromkeys(map(Path, paths))
    return [run for path in given if given.keys().isdisjoint(path.parents) for run in load_runs(path)]


def records_of(runs: Iterable[Run], experiment: str) -> list[Record]:
    """An experiment's records, equal ones once: what was copied was not measured twice."""
    return record.distinct(r for run in runs for r in run.records if r.experiment == experiment)


def folders(runs: Iterable[Run]) -> dict[str, Path]:
    """Where each record lies, by its identity; of copies the first."""
    found: dict[str, Path] = {}
    for run in runs:
        for r in run.records:
            found.setdefault(record.identity(r), run.folder)
    return found


def load_runs(path: Path | str) -> list[Run]:
    """Every run at or below `path`: our run directories, lm-eval's results_*.json, a bare records.jsonl.

    Trainings that are not finished have no records, and where there is nothing else, no run is found.
    FileNotFoundError when nothing is there; a one-line ValueError for what is no run, cut short or inconsistent.
    """
    path = Path(path)
    if path.is_dir():
        return _from_directory(path)
    if path.suffix == ".jsonl":
        return _from_records(path)
    from . import lm_eval_results

    return [lm_eval_results.read(path)]


def _from_directory(path: Path) -> list[Run]:
    from . import lm_eval_results

    folders = sorted({file.parent for name in ("run.json", "records.jsonl") for file in path.rglob(name)})
    ours = [run for folder in folders for run in _from_folder(folder)]
    theirs = [lm_eval_results.read(file) for file in sorted(path.rglob("results_*.json"))]
    if not ours and not theirs and not training_runs.find([path]):
        raise ValueError(f"{path} is not a run: it holds neither run.json, records.jsonl nor lm-eval's results_*.json")
    return ours + theirs


def _from_folder(path: Path) -> list[Run]:
    return [_from_run_directory(path)] if (path / "run.json").is_file() else _from_records(path / "records.jsonl")


def _from_run_directory(path: Path) -> Run:
    model = jsonl.read_object(path / "run.json").get("model")
    if not isinstance(model, str):
        raise ValueError(f"{path / 'run.json'} names no model")
    if not (path / "records.jsonl").is_file():
        raise ValueError(f"{path} is not a finished run: it has no records.jsonl")
    samples = {file.stem: read_samples(file) for file in sorted((path / "samples").glob("*.jsonl"))}
    return Run(path=path, model=model, records=tuple(record.read(path / "records.jsonl")), samples=samples)


def _from_records(path: Path) -> list[Run]:
    """One run per model, backend and dtype, in the order of their first records."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for r in record.read(path):
        groups.setdefault((r.model, *_how(r)), []).append(r)
    return [Run(path=path, model=group[0].model, records=tuple(group)) for group in groups.values()]


def _how(r: Record) -> tuple[str, str]:
    return (r.provenance["backend"], str(r.provenance.get("dtype")))


def read_samples(path: Path) -> tuple[Sample, ...]:
    """The documents of one samples file, ours or lm-eval's; a filter but "none" becomes part of its metrics' names."""
    documents: dict[tuple[int | str, str], dict[str, float]] = {}
    for number, line in jsonl.read_lines(path):
        doc_id, doc_hash = line.get("doc_id"), line.get("doc_hash")
        if not isinstance(doc_id, int | str) or not isinstance(doc_hash, str):
            raise ValueError(f"{path}:{number}: a sample needs doc_id and doc_hash")
        values = _metrics(line)
        held = documents.setdefault((doc_id, doc_hash), {})
        if held.keys() & values.keys():
            raise ValueError(f"{path}:{number}: document {doc_id} comes twice")
        held |= values
    return tuple(Sample(doc_id=i, doc_hash=h, values=values) for (i, h), values in documents.items())


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    names = line.get("metrics") or [name for name in line if name not in NOT_METRICS]
    chosen = line.get("filter", "none")
    suffix = "" if chosen == "none" else f",{chosen}"
    found = {name: line.get(name) for name in names}
    return {f"{name}{suffix}": float(v) for name, v in found.items() if isinstance(v, int | float)}


def _check_against_samples(path: Path, r: Record, samples: Sequence[Sample]) -> None:
    """A record must follow from its documents, where they were kept."""
    values = [s.values[r.metric] for s in samples if r.metric in s.values]
    if not values:
        return
    if len(values) != r.n:
        raise ValueError(f"{path}: {r.task} {r.metric} was measured on {r.n} documents, its samples hold {len(values)}")
    value = _aggregate(r.metric, values)
    if value is not None and not math.isclose(value, r.value, rel_tol=1e-9, abs_tol=1e-12):
        raise ValueError(f"{path}: {r.task} {r.metric} is recorded as {r.value}, its samples give {value}")


def _aggregate(metric: str, values: Sequence[float]) -> float | None:
    """What lm-eval makes of the documents' values, for the metrics of Table 3; None for others."""
    mean = math.fsum(values) / len(values)
    if metric in ("acc", "acc_norm"):
        return mean
    if metric == "perplexity":
        return math.exp(-mean) if mean > -700 else math.inf
    return None


def labels(runs: Sequence[Run]) -> list[str]:
    """A short, distinct name for each run: the model's, with what tells two runs of it apart."""
    short = [_short(run.model) for run in runs]
    named = list(zip(short, runs, strict=True))
    spellings = (
        short,
        [f"{name} [{_how(run.records[0])[0]}]" for name, run in named],
        [f"{name} [{', '.join(_how(run.records[0]))}]" for name, run in named],
        [f"{name} ({run.path.name.removesuffix('.json')})" for name, run in named],
        [f"{name} {number}" for number, name in enumerate(short, start=1)],
    )
    # The last spelling is always distinct.
    return [next(names[i] for names in spellings if names.count(names[i]) == 1) for i in range(len(runs))]


def _short(model: str) -> str:
    """A local path by its last part; a hub id and a bare name as they are."""
    return Path(model).name or model if model.startswith(("/", ".", "~")) or model.count("/") > 1 else model
