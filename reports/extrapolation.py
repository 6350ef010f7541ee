"""Accuracy by length and by distance: tables of the records of `mambalab extrapolate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import markdown, naming, published
from .binomial import at_least
from .record import LEFT_OUT, SEQUENCES, TOKENS, Record, settings

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "extrapolation"
NUMBERS = ("Right", "Accuracy %", "At least %", "Tokens/s", "Seconds")


def power(length: int) -> str:
    """A length as tables and axes have it: 2^10, or 1,000.

    >>> power(1024), power(1000)
    ('2^10', '1,000')
    """
    is_power = length > 0 and length & (length - 1) == 0
    return f"2^{length.bit_length() - 1}" if is_power else markdown.count(length)


def report(records: Sequence[Record]) -> str:
    """The tables by length and, where distances are counted, by distance, with their notes, as Markdown."""
    parts = [markdown.table(by_length(records), left=["Model", "Length"])]
    distances = by_distance(records)
    if len(distances):
        parts.append(markdown.table(distances, left=["Model", "Length"]))
    return "\n\n".join([*parts, markdown.bullets(notes(records))]) + "\n"


def by_length(records: Sequence[Record]) -> pd.DataFrame:
    """A row a length: rows answered without an error, their fraction and its lower bound, speed; Table 2 beside it.

    Columns for the model, the seed and how it was trained, and for single answers, where there are several of each.
    """
    import pandas as pd

    found = of_lengths(records)
    name = _namer(found)
    answers = {_place(r): r for r in records if r.metric == TOKENS}
    table = []
    for r in found:
        line = name(r) | {"Length": power(r.setting["length"])} | _numbers(r)
        if answers:
            line["Answers right %"] = markdown.fixed(100 * answers[_place(r)].value if _place(r) in answers else None)
        if any(other.setting["published"] for other in found):
            line["Published %"] = _published(r)
        table.append(line)
    return pd.DataFrame(table)


def by_distance(records: Sequence[Record]) -> pd.DataFrame:
    """A row a training and length, a column a distance: right answers of all whose query stands so far behind.

    Of each training the shortest length with an error and the longest, and no row of one without errors.
    """
    import pandas as pd

    found = with_distances(records)
    name = _namer(of_lengths(records))
    shown = [r for group in _by_training(found) for r in _ends(group)]
    lows = sorted({low for r in shown for low, _, _ in r.setting["by_distance"]})
    lines = []
    for r in shown:
        counts = {low: f"{right:,}/{of:,}" for low, right, of in r.setting["by_distance"]}
        cells = {power(low): counts.get(low, markdown.BLANK) for low in lows}
        lines.append(name(r) | {"Length": power(r.setting["length"])} | cells)
    return pd.DataFrame(lines)


def with_distances(records: Sequence[Record]) -> list[Record]:
    """The records, one a length, that say how far behind queries were answered."""
    return [r for r in of_lengths(records) if r.metric == SEQUENCES and r.setting["by_distance"]]


def _by_training(found: Sequence[Record]) -> list[list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in found:
        groups.setdefault((*_training(r), *way_of(r)), []).append(r)
    return list(groups.values())


def _ends(group: Sequence[Record]) -> list[Record]:
    """The shortest length with an error and the longest; none where there is no error."""
    wrong = [r for r in group if r.value < 1]
    return list({r.setting["length"]: r for r in (wrong[0], group[-1])}.values()) if wrong else []


def notes(records: Sequence[Record]) -> list[str]:
    """How to read the tables, and what was trained."""
    found = of_lengths(records)
    made = ["Right: sequences with every answer right, of all that were read; at least: exact one-sided 95 % bound."]
    made += [f"A guess among the symbols that can be asked for is right in {c:.1%}." for c in settings(found, "chance")]
    made += [f"Rows were read {power(n)} tokens at a time, with carried state." for n in settings(found, "chunk")]
    marks = _marks(found)
    made += _about_distances(_by_training(with_distances(records)), marks)
    made += dict.fromkeys(f"{marks[way_of(r)]} {_trained(r)}".strip() for r in found)
    rows = sorted({r.setting["published"] for r in found} - {None})
    if rows:
        made.append(f"Published: {', '.join(rows)} in the Mamba paper's Table 2 (its numbers: Table 11), % to 2^20.")
    return made


def _about_distances(trainings: Sequence[Sequence[Record]], marks: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """What the table by distance counts, and the trainings that need no row in it."""
    if any(map(_ends, trainings)):
        yield (
            "Columns 2^k: right answers of all whose query stands 2^k to 2^(k+1) tokens behind its trigger; of each "
            "training the shortest length with an error, and the longest."
        )
    without = [group[0] for group in trainings if not _ends(group)]
    if without:
        names = dict.fromkeys(f"{r.model}, seed {r.seed} {marks[way_of(r)]}".strip() for r in without)
        yield f"Right at every length that was read, whatever the distance: {'; '.join(names)}."


def of_lengths(records: Sequence[Record]) -> list[Record]:
    """One record a length, measured or left out, in the order of models, seeds and lengths."""
    found = [r for r in records if r.experiment == EXPERIMENT and r.metric in (SEQUENCES, LEFT_OUT)]
    if not found:
        raise ValueError("no records of accuracy by length")
    return sorted(found, key=lambda r: (*_training(r), r.setting["length"]))


def _training(r: Record) -> tuple[str, int, str]:
    return (r.model, r.seed or 0, r.setting.get("weights", ""))


def _place(r: Record) -> tuple[Any, ...]:
    return (r.task, *_training(r), r.setting["length"])


def way_of(r: Record) -> tuple[str, str]:
    """Equal for records of models of one name that were trained in one way, whatever their seed."""
    return (r.model, naming.key(r.setting["training"]))


def _marks(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """A mark for each way in which a model was trained; empty where there is one way alone."""
    ways = list(dict.fromkeys(map(way_of, records)))
    marks, _ = naming.marks([(model, json.loads(way)) for model, way in ways])
    return dict(zip(ways, marks, strict=True))


def _namer(found: Sequence[Record]) -> Callable[[Record], dict[str, Any]]:
    """The cells that tell trainings apart: model, seed and how it was trained, where there are several of each."""
    several = [name for name in ("model", "seed") if len({getattr(r, name) for r in found}) > 1]
    marks = _marks(found)

    def cells(r: Record) -> dict[str, Any]:
        mark = {"Trained": marks[way_of(r)]} if any(marks.values()) else {}
        return {name.capitalize(): getattr(r, name) for name in several} | mark

    return cells


def _numbers(r: Record) -> dict[str, Any]:
    if r.metric == LEFT_OUT:
        return dict.fromkeys(NUMBERS, markdown.BLANK) | {"Accuracy %": r.setting["why"]}
    right = round(r.value * r.n)
    cells = (
        f"{right:,} of {r.n:,}",
        markdown.fixed(100 * r.value),
        markdown.fixed(100 * at_least(right, r.n)),
        markdown.significant(r.setting["tokens_per_second"]),
        markdown.significant(r.setting["seconds"]),
    )
    return dict(zip(NUMBERS, cells, strict=True))


def _published(r: Record) -> str:
    row = published.table2(r.setting["published"]) if r.setting["published"] else {}
    if r.setting["length"] not in row:
        return markdown.BLANK
    value = row[r.setting["length"]]
    return "out of memory" if value is None else markdown.fixed(value, 1)


def _trained(r: Record) -> str:
    training = r.setting["training"]
    steps = r.setting["steps_done"] or training["steps"]
    return (
        f"{r.model}, seed {r.seed}: trained at length {power(r.setting['trained_length'])} for {steps:,} steps of "
        f"{training['batch_size']} rows, learning rate {training['optimiser']['learning_rate']:g} "
        f"({training['optimiser']['decay']})."
    )
