"""Records in, tables out: which experiment makes which table, and the report over any number of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import (
    ablations,
    bad_input,
    bench,
    markdown,
    paired,
    parity,
    provenance,
    training_runs,
    training_sections,
    zero_shot,
)
from .bench import bench_table
from .jsonl import write_whole
from .published import scale
from .record import Record
from .runs import ZERO_SHOT, Run, folders, labels, load_all, records_of
from .section import Section, plain_lines
from .trained import EXPERIMENT as TRAINING
from .training_runs import TrainingRun
from .zero_shot import zero_shot_long, zero_shot_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report", "bench_table", "paired_table", "plain_table", "report", "zero_shot_long", "zero_shot_table"]

# Of experiments without a table of their own, what n counts.
COUNTED = {
    experiment: f"n: {what}, each started again until it ended, then compared with one that nothing disturbed; the "
    "columns after it count over all of them."
    for experiment, what in (("kill-training", "trainings"), ("kill-campaign", "evaluations"))
}
Pairs = Sequence[tuple[str, str]]
Named = tuple[str, Run]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, to read and to compute with.

    markdown     everything: tables, notes, paired comparisons, what ran
    table        only each experiment's main table and its notes, for a README
    csv          every number of the main tables, all digits
    paired_csv   the paired comparisons, all digits; empty without any
    """

    markdown: str
    table: str
    csv: str
    paired_csv: str = ""

    def write(self, directory: Path | str) -> None:
        """report.md, report.csv and, where models were compared, paired.csv; each whole or not at all."""
        files = {"report.md": self.markdown, "report.csv": self.csv, "paired.csv": self.paired_csv}
        for name, text in files.items():
            if text:
                write_whole(Path(directory) / name, text)


def report(paths: Sequence[Path | str], *, pairs: Pairs = ()) -> Report:
    """The report over every run at the given paths.

    pairs   models to compare on the same documents, by name or label; without any, two models are compared with each
            other, more are not
    FileNotFoundError or a one-line ValueError for a path that is no run, a pair that is not there, and documents that
    differ in a pair that was asked for (where nobody asked, a note says so).
    """
    if not paths:
        raise ValueError("no runs given")
    runs = load_all(paths)
    logs = training_runs.find(map(Path, paths))
    experiments = dict.fromkeys(r.experiment for run in runs for r in run.records)
    if training_runs.so_far(logs, ()):
        experiments |= {TRAINING: None}
    together = training_sections.EXPERIMENTS
    asked = dict.fromkeys(training_sections.TOGETHER if name in together else name for name in experiments)
    sections = [section for experiment in asked for section in _whole_sections(experiment, runs, logs)]
    sections += _unfinished_sections(logs)
    compared, paired_lines = _comparisons(runs, pairs)
    return Report(
        markdown="\n".join([*(s.full() for s in sections), *compared, *([_what_ran(runs)] if runs else [])]),
        table="\n".join(s.short() for s in sections),
        csv=markdown.to_csv([line for s in sections for line in s.lines]),
        paired_csv=markdown.to_csv(paired_lines),
    )


def plain_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a task and setting, a column a metric, for experiments without a table of their own."""
    import pandas as pd

    grouped: dict[tuple[str, ...], dict[str, str]] = {}
    for r in records:
        key = (r.model, r.task, markdown.compact(r.setting), r.provenance["backend"], str(r.n))
        grouped.setdefault(key, {})[r.metric] = markdown.number(r.value) + markdown.plus_minus(r.stderr)
    names = ("Model", "Task", "Setting", "Backend", "n")
    return pd.DataFrame(dict(zip(names, key, strict=True)) | values for key, values in grouped.items())


def paired_table(results: Sequence[paired.Comparison], a: str, b: str) -> pd.DataFrame:
    """The comparison of A with B, formatted; accuracies and their differences in percent."""
    import pandas as pd

    return pd.DataFrame(_paired_line(result, a, b) for result in results)


def _paired_line(result: paired.Comparison, a: str, b: str) -> dict[str, object]:
    outcome, percent = result.outcome, scale(result.metric)
    return {
        "Task": result.task,
        "Metric": result.metric + (" %" if percent != 1 else ""),
        "n": outcome.n,
        a: markdown.fixed(outcome.a * percent),
        b: markdown.fixed(outcome.b * percent),
        "Difference": markdown.signed(result.difference * percent),
        "95 % interval": markdown.interval(outcome.low * percent, outcome.high * percent),
        "Only first right": markdown.count(outcome.only_a),
        "Only second right": markdown.count(outcome.only_b),
        "p": markdown.probability(outcome.p),
        "p (Holm)": markdown.probability(result.p_holm),
    }


def _whole_sections(experiment: str, runs: Sequence[Run], logs: Sequence[TrainingRun]) -> list[Section]:
    try:
        return _sections(experiment, runs, logs)
    except KeyError as error:
        # A setting that our own commands write is not there.
        raise ValueError(f"a record of {experiment!r} was not written by mambalab: it has no {error}") from None


def _sections(experiment: str, runs: Sequence[Run], logs: Sequence[TrainingRun]) -> list[Section]:
    if experiment == ZERO_SHOT:
        return [_zero_shot_section(runs)]
    if experiment == training_sections.TOGETHER:
        return training_sections.sections(runs, logs)
    records = records_of(runs, experiment)
    if ablation := ablations.name_of(experiment):
        return [_ablation_section(one) for one in ablations.found(ablation, records, folders(runs))]
    if experiment == parity.EXPERIMENT:
        return [_parity_section(records)]
    if experiment == bad_input.EXPERIMENT:
        return [_bad_input_section(records)]
    make = _bench_section if experiment.startswith("bench") else _plain_section
    return [make(experiment, records)]


def _zero_shot_section(runs: Sequence[Run]) -> Section:
    wide = zero_shot_table(runs)
    details = markdown.table(zero_shot.detail_table(runs), left=("Model", "Task", "Metric", "Source"))
    # Runs of other tasks only have no row in the wide table.
    has_wide = len(wide) > 0
    return Section(
        title="Zero-shot",
        table=markdown.table(wide, left=("Model",)) if has_wide else details,
        notes=zero_shot.notes(runs),
        details=f"### Each measure\n\n{details}" if has_wide else "",
        lines=zero_shot.lines(runs),
    )


def _bench_section(experiment: str, records: Sequence[Record]) -> Section:
    return Section(
        title=f"Speed: {experiment.removeprefix('bench-')}",
        table=markdown.table(bench_table(records), left=("Shape", "dtype", "Measure", "Machine")),
        notes=bench.notes(records),
        lines=bench.lines(records),
    )


def _parity_section(records: Sequence[Record]) -> Section:
    return Section(
        title="Agreement with the stock adapter",
        table=markdown.table(parity.parity_table(records), left=("Model", "Task", "Near ties")),
        notes=parity.notes(records),
        lines=plain_lines(records),
    )


def _bad_input_section(records: Sequence[Record]) -> Section:
    return Section(
        title="Bad input",
        table=markdown.table(bad_input.bad_input_table(records), left=("Kind", "Damage")),
        notes=bad_input.notes(records),
        lines=plain_lines(records),
    )


def _ablation_section(one: ablations.Found) -> Section:
    return Section(
        title=f"Ablation: {one.title}",
        table=markdown.table(ablations.ablation_table(one), left=list(one.ablation.lines[0].labels)),
        notes=ablations.notes(one),
        lines=ablations.lines(one),
    )


def _unfinished_sections(logs: Sequence[TrainingRun]) -> list[Section]:
    """What has no records yet is said, whether it is a row of a table or not."""
    notes = training_runs.unfinished(logs)
    return [Section(title="Not finished", notes=notes)] if notes else []


def _plain_section(experiment: str, records: Sequence[Record]) -> Section:
    return Section(
        title=experiment.capitalize(),
        table=markdown.table(plain_table(records), left=("Model", "Task", "Setting", "Backend")),
        notes=[COUNTED[experiment]] if experiment in COUNTED else [],
        lines=plain_lines(records),
    )


def _comparisons(runs: Sequence[Run], pairs: Pairs) -> tuple[list[str], list[dict[str, Any]]]:
    """The paired comparisons as Markdown sections, and their numbers."""
    named = [(name, run) for run, name in zero_shot.ordered(runs)]
    chosen = [(_named(named, first), _named(named, second)) for first, second in pairs]
    if not pairs and len(named) == 2:
        # Mamba against the Pythia before it.
        chosen = [(named[1], named[0])]
    sections, lines = [], []
    for (a, run_a), (b, run_b) in chosen:
        title = f"## {a} against {b}, document by document\n\n"
        try:
            results = paired.compare(run_a, run_b)
        except ValueError as error:
            if pairs:
                raise ValueError(f"{a} against {b}: {error}") from None
            sections.append(f"{title}Not compared: {error}.\n")
            continue
        sections.append(title + _paired_text(results, a, b))
        lines += [_paired_numbers(result, a, b) for result in results]
    return sections, lines


def _paired_text(results: Sequence[paired.Comparison], a: str, b: str) -> str:
    notes = [
        paired.verdict(results, a, b),
        "Accuracies: exact McNemar test on the documents that one model alone got right; Agresti-Min interval.",
        f"Log-likelihoods: paired bootstrap, {paired.RESAMPLES:,} resamples of the documents, percentile interval.",
    ]
    return f"{markdown.table(paired_table(results, a, b), left=('Task', 'Metric'))}\n\n{markdown.bullets(notes)}\n"


def _paired_numbers(result: paired.Comparison, a: str, b: str) -> dict[str, Any]:
    measure = {"first": a, "second": b, "task": result.task, "metric": result.metric}
    return measure | vars(result.outcome) | {"p_holm": result.p_holm}


def _named(named: Sequence[Named], wanted: str) -> Named:
    """The run with this label, model name, or last part of a model name. ValueError if there is none, or several."""
    spellings = (lambda pair: pair[0], lambda pair: pair[1].model, lambda pair: Path(pair[1].model).name)
    for spelling in spellings:
        matches = [pair for pair in named if spelling(pair) == wanted]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"{wanted!r} names {len(matches)} runs: {', '.join(label for label, _ in matches)}")
    raise ValueError(f"no run of {wanted!r}; there are {', '.join(label for label, _ in named) or 'none'}")


def _what_ran(runs: Sequence[Run]) -> str:
    # Of many trainings of a model, only how they differ is said.
    named = [
        (run.model if "steps_done" in run.records[0].setting else name, run.records)
        for run, name in zip(runs, labels(runs), strict=True)
    ]
    return f"## What ran\n\n{markdown.bullets(provenance.lines(named))}\n"
