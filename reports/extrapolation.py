"""Accuracy by length and by distance: tables of the records of `mambalab extrapolate`."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from . import markdown, naming, published
from .binomial import at_least
from .record import SEQUENCES, TOKENS, Record

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "extrapolation"
# As tasks.extrapolate writes it.
LEFT_OUT = "length left out"
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
        parts.append(markdown.table(distances, left=["Distance"]))
    return "\n\n".join([*parts, markdown.bullets(notes(records))]) + "\n"


def by_length(records: Sequence[Record]) -> pd.DataFrame:
    """A row a length: rows answered without an error, their fraction and its lower bound, speed; Table 2 beside it.

    Columns for the model, the seed and how it was trained, and for single answers, where there are several of each.
    """
    import pandas as pd

    found = of_lengths(records)
    several = {name: len({getattr(r, name) for r in found}) > 1 for name in ("model", "seed")}
    answers = {_place(r): r for r in records if r.metric == TOKENS}
    marks = _marks(found)
    table = []
    for r in found:
        line: dict[str, Any] = {
            name.capitalize(): getattr(r, name) for name, is_several in several.items() if is_several
        }
        if any(marks.values()):
            line["Trained"] = marks[_way(r)]
        line |= {"Length": power(r.setting["length"])} | _numbers(r)
        if answers:
            line["Answers right %"] = markdown.fixed(100 * answers[_place(r)].value if _place(r) in answers else None)
        if any(other.setting["published"] for other in found):
            line["Published %"] = _published(r)
        table.append(line)
    return pd.DataFrame(table)


def by_distance(records: Sequence[Record]) -> pd.DataFrame:
    """A row a distance, a column a length: right answers of all whose query stands so far behind what it asks for.

    Only lengths with an error, and the longest; several models or seeds are told apart in the heading.
    """
    import pandas as pd

    found = [r for r in of_lengths(records) if r.metric == SEQUENCES and r.setting["by_distance"]]
    longest = max((r.setting["length"] for r in found), default=0)
    shown = [r for r in found if r.value < 1 or r.setting["length"] == longest]
    is_one = len({(r.model, r.seed, r.setting.get("weights")) for r in shown}) == 1
    marks = _marks(found)
    columns: dict[str, dict[int, tuple[int, int]]] = {}
    for r in shown:
        name = f"right at {power(r.setting['length'])}" if is_one else _heading(r, marks[_way(r)])
        columns[_unused(name, columns)] = {low: (right, of) for low, right, of in r.setting["by_distance"]}
    lows = sorted({low for counts in columns.values() for low in counts})
    lines = [
        {"Distance": f"{power(low)} to {power(2 * low)}"}
        | {
            name: "{} of {}".format(*counts[low]) if low in counts else markdown.BLANK
            for name, counts in columns.items()
        }
        for low in lows
    ]
    return pd.DataFrame(lines)


def notes(records: Sequence[Record]) -> list[str]:
    """How to read the tables, and what was trained."""
    found = of_lengths(records)
    made = ["Right: sequences with every answer right, of all that were read; at least: exact one-sided 95 % bound."]
    made += [
        f"A guess among the symbols that can be asked for is right in {c:.1%}." for c in _distinct(found, "chance")
    ]
    made += [f"{what} tokens at a time, with carried state." for what in _chunks(found)]
    marks = _marks(found)
    made += dict.fromkeys(f"{marks[_way(r)]} {_trained(r)}".strip() for r in found)
    rows = sorted({r.setting["published"] for r in found} - {None})
    if rows:
        made.append(f"Published: {', '.join(rows)} in the Mamba paper's Table 2 (its numbers: Table 11), % to 2^20.")
    return made


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


def _way(r: Record) -> tuple[str, str]:
    return (r.model, naming.key(r.setting["training"]))


def _marks(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """A mark for each way in which a model was trained; empty where there is one way alone."""
    ways = list(dict.fromkeys(map(_way, records)))
    marks, _ = naming.marks([(model, json.loads(way)) for model, way in ways])
    return dict(zip(ways, marks, strict=True))


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


def _unused(name: str, taken: Container[str]) -> str:
    """The name, numbered where it is taken: trainings of one model and seed may differ in anything else."""
    numbered = (f"{name} ({i})" for i in count(2))
    return next(n for n in chain([name], numbered) if n not in taken)


def _heading(r: Record, mark: str) -> str:
    return f"{r.model}, seed {r.seed}{' ' * bool(mark)}{mark}, at {power(r.setting['length'])}"


def _distinct(records: Sequence[Record], name: str) -> list[Any]:
    return list(dict.fromkeys(r.setting[name] for r in records if r.setting.get(name)))


def _chunks(records: Sequence[Record]) -> Iterator[str]:
    for chunk in _distinct(records, "chunk"):
        yield f"Rows were read {power(chunk)}"


def _trained(r: Record) -> str:
    training = r.setting["training"]
    steps = r.setting["steps_done"] or training["steps"]
    return (
        f"{r.model}, seed {r.seed}: trained at length {power(r.setting['trained_length'])} for {steps:,} steps of "
        f"{training['batch_size']} rows, learning rate {training['optimiser']['learning_rate']:g} "
        f"({training['optimiser']['decay']})."
    )
