"""Accuracy by length and by distance: tables of the records of `mambalab extrapolate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import markdown, naming, published
from .binomial import at_least
from .naming import Marks, Named
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
    """The tables of these records alone with their notes, as Markdown."""
    marks = naming.marks(map(named, of_lengths(records)))
    return f"{tables(records, marks)}\n\n{markdown.bullets([*notes(records, marks), *marks.legend])}\n"


def tables(records: Sequence[Record], marks: Marks) -> str:
    """The table by length and, where distances are counted, the one by distance, as Markdown."""
    made = [by_length(records, marks), by_distance(records, marks)]
    return "\n\n".join(markdown.table(table, left=["Model", "Length"]) for table in made if len(table))


def by_length(records: Sequence[Record], marks: Marks) -> pd.DataFrame:
    """A row a length: rows answered without an error, their fraction and its lower bound, speed; Table 2 beside it.

    Columns for the model, the seed and how it was trained, and for single answers, where there are several of each.
    """
    import pandas as pd

    found = of_lengths(records)
    name = _namer(found, marks)
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


def by_distance(records: Sequence[Record], marks: Marks) -> pd.DataFrame:
    """A row a training and length, a column a distance: right answers of all whose query stands so far behind.

    Of each training the shortest length with an error and the longest, and no row of one without errors.
    """
    import pandas as pd

    found = with_distances(records)
    name = _namer(of_lengths(records), marks)
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
        groups.setdefault((*_training(r), *naming.way_of(named(r))), []).append(r)
    return list(groups.values())


def _ends(group: Sequence[Record]) -> list[Record]:
    """The shortest length with an error and the longest; none where there is no error."""
    wrong = [r for r in group if r.value < 1]
    return list({r.setting["length"]: r for r in (wrong[0], group[-1])}.values()) if wrong else []


def notes(records: Sequence[Record], marks: Marks) -> list[str]:
    """How to read the tables, and how long was trained; what the marks stand for is not among them."""
    found = of_lengths(records)
    made = ["Right: sequences with every answer right, of all that were read; at least: exact one-sided 95 % bound."]
    made += [f"A guess among the symbols that can be asked for is right in {c:.1%}." for c in settings(found, "chance")]
    made += [f"Rows were read {power(n)} tokens at a time, with carried state." for n in settings(found, "chunk")]
    made += _about_distances(_by_training(with_distances(records)), marks)
    made += _trained(found, marks)
    rows = sorted({r.setting["published"] for r in found} - {None})
    if rows:
        made.append(f"Published: {', '.join(rows)} in the Mamba paper's Table 2 (its numbers: Table 11), % to 2^20.")
    return made


def _about_distances(trainings: Sequence[Sequence[Record]], marks: Marks) -> Iterator[str]:
    """What the table by distance counts, and the trainings that need no row in it."""
    if any(map(_ends, trainings)):
        yield (
            "Columns 2^k: right answers of all whose query stands 2^k to 2^(k+1) tokens behind its trigger; of each "
            "training the shortest length with an error, and the longest."
        )
    without = [group[0] for group in trainings if not _ends(group)]
    if without:
        yield f"Right at every length that was read, whatever the distance: {'; '.join(_by_seed(without, marks))}."


def _trained(found: Sequence[Record], marks: Marks) -> Iterator[str]:
    """How many steps were done, and at which length."""
    for steps, length in dict.fromkeys(map(_budget, found)):
        trainings = [r for r in found if _budget(r) == (steps, length)]
        yield f"Trained for {steps:,} steps at length {power(length)}: {'; '.join(_by_seed(trainings, marks))}."


def _budget(r: Record) -> tuple[int, int]:
    return (r.setting["steps_done"] or r.setting["training"]["steps"], r.setting["trained_length"])


def _by_seed(trainings: Sequence[Record], marks: Marks) -> list[str]:
    """A name for each model and way to train it, with its seeds."""
    groups: dict[str, dict[int | None, None]] = {}
    for r in trainings:
        groups.setdefault(f"{r.model} {marks.of(named(r))}".strip(), {})[r.seed] = None
    return [f"{name}, {seeds(list(group))}" for name, group in groups.items()]


def seeds(found: Sequence[int | None]) -> str:
    """How seeds are named.

    >>> seeds([0]), seeds([0, 2])
    ('seed 0', 'seeds 0, 2')
    """
    return f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


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


def named(r: Record) -> Named:
    """The model that was measured, and the setting of its training."""
    return (r.model, r.setting["training"])


def _namer(found: Sequence[Record], marks: Marks) -> Callable[[Record], dict[str, Any]]:
    """The cells that tell trainings apart: model, seed and how it was trained, where there are several of each."""
    several = [name for name in ("model", "seed") if len({getattr(r, name) for r in found}) > 1]

    def cells(r: Record) -> dict[str, Any]:
        mark = marks.of(named(r))
        return {name.capitalize(): getattr(r, name) for name in several} | ({"Trained": mark} if mark else {})

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
