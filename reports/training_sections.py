"""The sections of a report on trainings and on how far they reach, in which one way to train has one mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import extrapolation, markdown, naming, synthetic, training_runs
from .naming import Marks
from .record import Record
from .runs import Run, folders, records_of
from .section import Section, plain_lines
from .synthetic import Reach
from .trained import EXPERIMENT as TRAINING
from .trained import Trained, ordered, trained, training_table
from .trained import lines as training_lines
from .training_runs import TrainingRun

EXPERIMENTS = (TRAINING, extrapolation.EXPERIMENT)
# What both are called where their sections are made, which is at once.
TOGETHER = " or ".join(EXPERIMENTS)


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """All that the sections tell: trainings of rows of Table 1 and others, models of Table 2, accuracies by length."""

    copying: Sequence[Trained]
    others: Sequence[Trained]
    reaches: Sequence[Reach]
    far: Sequence[Record]
    marks: Marks


def gather(runs: Sequence[Run], logs: Sequence[TrainingRun]) -> Trainings:
    """The trainings of these runs and logs, numbered in the order in which the sections show them."""
    finished = training_runs.with_logs(trained(records_of(runs, TRAINING), folders(runs)), logs)
    found = [*finished, *training_runs.so_far(logs, finished)]
    copying = synthetic.of_table1(found)
    others = ordered(run for run in found if not synthetic.is_table1(run))
    far = records_of(runs, extrapolation.EXPERIMENT)
    reaches = synthetic.reaches(_of_heads(far), finished)
    far = synthetic.as_done(far, finished)
    named = [run.named for run in (*copying, *others, *reaches)] + [extrapolation.named(r) for r in far]
    return Trainings(copying=copying, others=others, reaches=reaches, far=far, marks=naming.marks(named))


def _of_heads(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.task == synthetic.INDUCTION_HEADS]


def sections(runs: Sequence[Run], logs: Sequence[TrainingRun]) -> list[Section]:
    """Table 1, other trainings, Table 2 and accuracies by length; the first has the legend, the others name it."""
    found = gather(runs, logs)
    parts = (_table1, _others, _table2, _by_length)
    first, *more = [section for part in parts for section in part(found)]
    pointer = f"Trained: as told under “{first.title}”."
    return [_with_notes(first, found.marks.legend), *(_with_notes(one, [pointer]) for one in more)]


def _with_notes(one: Section, more: Sequence[str]) -> Section:
    return replace(one, notes=[*one.notes, *more])


def _table1(found: Trainings) -> list[Section]:
    if not found.copying:
        return []
    table, notes = synthetic.table1(found.copying, found.marks)
    text = markdown.table(table, left=("Model", "Architecture", "Layer"))
    title = "Selective copying (Table 1)"
    return [Section(title=title, table=text, notes=notes, lines=training_lines(found.copying))]


def _others(found: Trainings) -> list[Section]:
    if not found.others:
        return []
    table, notes = training_table(found.others, found.marks)
    text = markdown.table(table, left=("Model", "Task"))
    return [Section(title="Training", table=text, notes=notes, lines=training_lines(found.others))]


def _table2(found: Trainings) -> list[Section]:
    """With the accuracies by length that its rows are made of."""
    heads = _of_heads(found.far)
    if not heads:
        return []
    table, notes = synthetic.table2(found.reaches, found.marks)
    text = markdown.table(table, left=("Model", "Measured"))
    read = markdown.bullets(extrapolation.notes(heads, found.marks))
    details = f"{extrapolation.tables(heads, found.marks)}\n\n{read}\n"
    title, numbers = "Induction heads (Table 2)", synthetic.reach_lines(found.reaches)
    return [Section(title=title, table=text, notes=notes, details=details, lines=numbers)]


def _by_length(found: Trainings) -> list[Section]:
    """Of tasks without a table of the paper's."""
    others = [r for r in found.far if r.task != synthetic.INDUCTION_HEADS]
    if not others:
        return []
    table, notes = extrapolation.tables(others, found.marks), extrapolation.notes(others, found.marks)
    return [Section(title="Accuracy by length", table=table, notes=notes, lines=plain_lines(others))]
