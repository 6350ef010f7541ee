"""The zero-shot tables: ours with its standard error beside the published number, and the notes they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from . import markdown, provenance, published
from .published import ACCURACIES, COLUMNS, Published
from .record import Record
from .runs import ZERO_SHOT, Run, labels

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "average of the six"
DOCUMENTS = {column.task: column.documents for column in COLUMNS}
FAR = 2.0  # standard errors
LABELS = {column.key: column.label for column in COLUMNS} | {(AVERAGE, "acc"): "Average"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's number on one task: percent for accuracies (`unit`), perplexity as it is; None is unknown."""

    model: str
    task: str
    metric: str
    unit: str
    shots: int | None
    n: int
    documents: int | None
    ours: float
    stderr: float | None
    published: float | None
    source: str | None

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.ours - self.published

    @property
    def z(self) -> float | None:
        """The difference in our standard errors."""
        return None if self.difference is None or not self.stderr else self.difference / self.stderr


def rows(runs: Sequence[Run]) -> list[Row]:
    """A row per model, task and metric, models as `ordered`, Table 3's columns first, then each model's average."""
    return [row for run, name in ordered(runs) for row in _rows_of(run, name)]


def ordered(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """The runs that hold zero-shot records with their labels: by size, Mamba after the Pythia of its size."""
    chosen = [run for run in runs if any(r.experiment == ZERO_SHOT for r in run.records)]
    named = zip(chosen, labels(chosen), strict=True)
    return sorted(named, key=lambda pair: published.size_order(pair[1]))


def found(run: Run) -> Published | None:
    """The published numbers of a run's checkpoint; None for other weights (a note says what they are)."""
    checkpoint = run.provenance.get("checkpoint")
    origin = checkpoint if isinstance(checkpoint, dict) else {}
    if provenance.note(run.provenance):
        return None
    return published.find(str(origin.get("source") or run.model), origin.get("revision"))


def lines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """`rows` with what follows from them, for a CSV."""
    return [asdict(row) | {"difference": row.difference, "z": row.z} for row in rows(runs)]


def zero_shot_long(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per model, task and metric, as numbers."""
    import pandas as pd

    return pd.DataFrame(lines(runs))


def zero_shot_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a model, a column for each of Table 3's: `ours ± standard error (published)`, bold where |z| > 2."""
    import pandas as pd

    cells: dict[str, dict[str, str]] = {}
    for row in rows(runs):
        if (row.task, row.metric) in LABELS:
            cells.setdefault(row.model, {})[_heading(row.task, row.metric)] = _cell(row)
    headings = [_heading(*key) for key in LABELS]
    filled = [{"Model": model} | {h: cell.get(h, markdown.BLANK) for h in headings} for model, cell in cells.items()]
    return pd.DataFrame(filled, columns=["Model", *headings])


def detail_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a model and measure, formatted; of Table 3's tasks only Table 3's metrics."""
    import pandas as pd

    shown = [r for r in rows(runs) if r.task not in DOCUMENTS or (r.task, r.metric) in LABELS]
    return pd.DataFrame(
        {
            "Model": r.model,
            "Task": r.task,
            "Metric": r.metric + (" %" if r.unit else ""),
            "n": r.n,
            "Ours": markdown.measured(r.ours, r.stderr),
            "Published": markdown.printed(r.published, r.metric),
            "Difference": markdown.signed(r.difference),
            "z": markdown.signed(r.z, bold_beyond=FAR),
            "Source": r.source or markdown.BLANK,
        }
        for r in shown
    )


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know: units, sources, limited samples, unpublished and random weights, blank averages."""
    every = rows(runs)
    sources = dict.fromkeys(f"{row.source} = {published.SOURCES[row.source]}" for row in every if row.source)
    made = ["Accuracies in percent, ± one standard error over the documents; averages are computed, never copied."]
    if sources:
        made.append(
            f"In brackets, the published value: {'; '.join(sources)}. z = (ours − published) / our standard error, "
            f"bold beyond {FAR:g}; on the same documents a faithful reproduction lies well inside."
        )
    told: dict[str, list[str]] = {}
    for run, name in ordered(runs):
        for note in _notes_of(run):
            told.setdefault(note, []).append(name)
    return made + [f"{', '.join(names)}: {note}" for note, names in told.items()]


def _rows_of(run: Run, name: str) -> Iterator[Row]:
    known = found(run)
    order = [column.key for column in COLUMNS]
    records = [r for r in run.records if r.experiment == ZERO_SHOT]
    records.sort(key=lambda r: order.index((r.task, r.metric)) if (r.task, r.metric) in order else len(order))
    made = [_row(r, name, known) for r in records]
    yield from made
    average = _average(made, name, known)
    if average is not None:
        yield average


def _row(r: Record, name: str, known: Published | None) -> Row:
    percent = published.scale(r.metric)
    shots = r.setting.get("num_fewshot")
    value = known.values.get((r.task, r.metric)) if known and not shots else None
    return Row(
        model=name,
        task=r.task,
        metric=r.metric,
        unit="%" if percent != 1 else "",
        shots=shots,
        n=r.n,
        documents=_documents(r),
        ours=r.value * percent,
        stderr=None if r.stderr is None else r.stderr * percent,
        published=value,
        source=known.source if known and value is not None else None,
    )


def _average(made: Sequence[Row], name: str, known: Published | None) -> Row | None:
    """The mean of the six accuracies, its standard error from theirs (six independent sets); None if one is missing."""
    six = {(row.task, row.metric): row for row in made if (row.task, row.metric) in ACCURACIES}
    if len(six) < len(ACCURACIES):
        return None
    stderrs = [row.stderr for row in six.values()]
    value = known.average if known and not any(row.shots for row in six.values()) else None
    return Row(
        model=name,
        task=AVERAGE,
        metric="acc",
        unit="%",
        shots=None,
        n=sum(row.n for row in six.values()),
        documents=None,
        ours=math.fsum(row.ours for row in six.values()) / len(six),
        stderr=None if None in stderrs else math.hypot(*(s or 0.0 for s in stderrs)) / len(six),
        published=value,
        source=known.source if known and value is not None else None,
    )


def _notes_of(run: Run) -> Iterator[str]:
    made = list(_rows_of(run, run.model))
    held = {(r.task, r.metric) for r in made}
    missing = [f"{task} {metric}" for task, metric in ACCURACIES if (task, metric) not in held]
    limited = {r.task: f"{r.task} {r.n:,} of {r.documents:,}" for r in made if r.documents and r.n != r.documents}
    shots = sorted({r.task for r in made if r.shots})
    note = provenance.note(run.provenance)
    if note:
        yield note
    if found(run) is None:
        yield "not a published checkpoint, so no published value stands beside it."
    if limited:
        yield f"limited sample ({', '.join(limited.values())} documents): not the published set."
    for parity in sorted({str(r.setting["parity"]) for r in run.records if r.setting.get("parity")}):
        yield f"arithmetic as in the official script (parity {parity})."
    if shots:
        yield f"few-shot on {', '.join(shots)}; published numbers are zero-shot and left out."
    if missing and len(missing) < len(ACCURACIES):
        yield f"no average, because {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."


def _documents(r: Record) -> int | None:
    """Size of the whole set: of Table 3's where the task is one of its, else as the record says."""
    own = r.provenance.get("documents")
    return DOCUMENTS.get(r.task, own if isinstance(own, int) else None)


def _heading(task: str, metric: str) -> str:
    return f"{LABELS[task, metric]} {'↓' if metric == 'perplexity' else '↑'}"


def _cell(row: Row) -> str:
    text = f"{markdown.measured(row.ours, row.stderr)} ({markdown.printed(row.published, row.metric)})"
    return f"**{text}**" if row.z is not None and abs(row.z) > FAR else text
