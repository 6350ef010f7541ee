"""The paper's tables 1 and 2 by our records: selective copying, and induction heads at every length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import markdown, published
from .extrapolation import power
from .naming import Marks, Named, key
from .record import LEFT_OUT, PARAMETERS, SEQUENCES, SOLVED, SPEED, TOKENS, Record
from .trained import Trained, solved, without_empty

if TYPE_CHECKING:
    import pandas as pd

INDUCTION_HEADS = "induction-heads"
NOT_RUN = "not run"
TABLE1, TABLE2 = "table1.csv", "table2_long.csv"
# Selective copying as the paper has it (appendix E.1), which does not say whether the 4096 count the data tokens.
PAPER_TASK = {"copies": 16, "vocab_size": 16, "variable": True}
PAPER_MODEL = {"n_layer": 2, "d_model": 64}
PAPER_PLACES = (4096, 4096 + 16)


def is_table1(run: Trained) -> bool:
    """Whether a training is of a row of table 1, at the paper's size."""
    task, model = run.setting["task"], run.setting["model"]
    is_papers = task.get("places") in PAPER_PLACES and PAPER_TASK.items() <= task.items()
    return is_papers and PAPER_MODEL.items() <= model.items() and run.model in map(_name, published.rows(TABLE1))


def _name(row: Mapping[str, str]) -> str:
    """What our records call a row of table 1: "s4", "h3-hyena"."""
    return published.mixer(row["arch"], row["layer"])


def of_table1(runs: Iterable[Trained]) -> list[Trained]:
    """Those of table 1, in the order of its rows."""
    rows = [_name(row) for row in published.rows(TABLE1)]
    found = [run for run in runs if is_table1(run)]
    return sorted(found, key=lambda run: (rows.index(run.model), run.steps, run.seed or 0))


def table1(runs: Sequence[Trained], marks: Marks) -> tuple[pd.DataFrame, list[str]]:
    """Every row of table 1 with each of our trainings of it, and the accuracy that the paper prints; and its notes."""
    import pandas as pd

    cells = [(run.model, _table1_cells(run, marks.of(run.named))) for run in runs]
    table = []
    for row in published.rows(TABLE1):
        name = _name(row)
        names = {"Model": row["model"] or "-", "Architecture": row["arch"], "Layer": row["layer"]}
        printed = {"Published %": markdown.fixed(float(row["accuracy_pct"]), 1)}
        ours = [own for model, own in cells if model == name] or [{"Answers right %": NOT_RUN, "Trained": None}]
        table += [names | printed | own for own in ours]
    columns = ["Model", "Architecture", "Layer", "Answers right %", "Sequences right %", "Published %", "Trained"]
    columns += ["Seed", "Steps", "Steps to solved", "Minutes", "Steps/s", "Parameters"]
    return without_empty(pd.DataFrame(table, columns=columns, dtype=object), "Trained"), [
        *_table1_notes(runs),
        *solved(runs, marks),
    ]


def _table1_cells(run: Trained, mark: str) -> dict[str, str]:
    return {
        "Answers right %": run.percent(TOKENS),
        "Sequences right %": run.percent(SEQUENCES),
        "Trained": mark,
        "Seed": str(run.seed),
        "Steps": run.done,
        "Steps to solved": run.count(SOLVED),
        "Minutes": run.minutes,
        "Steps/s": run.significant(SPEED),
        "Parameters": run.count(PARAMETERS),
    }


def _table1_notes(runs: Sequence[Trained]) -> list[str]:
    """What is counted."""
    places, sequences = (sorted({run.asked(name) for run in runs}) for name in ("task.places", "sequences"))
    return [
        f"Selective copying of 16 tokens among {_listed(places)} places, 16 markers after them: the share of answers "
        f"that are right, and of sequences with no answer wrong, on {_listed(sequences)} sequences.",
        "Published: Mamba paper, arXiv:2312.00752v2, Table 1, after 400,000 steps; it does not say whether of answers "
        "or of sequences.",
    ]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A trained model's accuracy by length; `cells` holds fractions, or why nothing was measured.

    `training` is the training that its setting names; None where its records are not among those given, or several are.
    """

    model: str
    published: str | None
    variant: str
    seed: int | None
    steps: int
    setting: Mapping[str, Any]
    training: Trained | None
    sequences: Mapping[int, int]
    cells: Mapping[int, float | str]

    @property
    def named(self) -> Named:
        return (self.model, self.setting)


Trainings = Mapping[tuple[Any, ...], Sequence[Trained]]


def _by_what_is_told(trainings: Iterable[Trained]) -> Trainings:
    """The trainings by all that a record of extrapolation says of the one behind it."""
    found: dict[tuple[Any, ...], list[Trained]] = {}
    for run in trainings:
        found.setdefault((run.model, run.seed, run.steps, key(run.setting)), []).append(run)
    return found


def _training_of(r: Record, trainings: Trainings) -> Trained | None:
    found = trainings.get((r.model, r.seed, r.setting["steps_done"], key(r.setting["training"])), ())
    return found[0] if len(found) == 1 else None


def as_done(records: Iterable[Record], trainings: Iterable[Trained]) -> list[Record]:
    """Records of extrapolation, each with the setting of its training as it took effect where that was done.

    Where a model was trained, only its own records know.
    """
    told = _by_what_is_told(trainings)
    found = [(r, _training_of(r, told)) for r in records]
    return [replace(r, setting={**r.setting, "training": run.done_as}) if run else r for r, run in found]


def reaches(records: Iterable[Record], trainings: Sequence[Trained] = ()) -> list[Reach]:
    """The models behind records of extrapolation: in the order of the paper's table, then others, by name and seed.

    ValueError for a length measured twice.
    """
    told = _by_what_is_told(trainings)
    found: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        if r.metric in (SEQUENCES, LEFT_OUT):
            own = (r.model, r.seed, r.setting["steps_done"], r.setting["weights"], r.provenance["backend"])
            found.setdefault(own, []).append(r)
    place = {row["model"]: i for i, row in enumerate(published.rows(TABLE2))}
    made = [_reach(group, told) for group in found.values()]
    return sorted(made, key=lambda one: (place.get(one.published or "", len(place)), one.model, one.seed or 0))


def _reach(group: Sequence[Record], trainings: Trainings) -> Reach:
    first = group[0]
    setting = first.setting["training"]
    training = _training_of(first, trainings)
    measured = [r for r in group if r.metric == SEQUENCES]
    values = {r.setting["length"]: r.value for r in measured}
    if len(values) < len(measured):
        raise ValueError(f"two records of {first.model}, seed {first.seed}, at one length")
    left_out = {r.setting["length"]: r.setting["why"].partition(":")[0] for r in group if r.metric == LEFT_OUT}
    return Reach(
        model=first.model,
        published=first.setting.get("published"),
        variant=", early trigger" if setting.get("task", {}).get("trigger") == "early" else "",
        seed=first.seed,
        steps=first.setting["steps_done"],
        setting=training.done_as if training else setting,
        training=training,
        sequences={r.setting["length"]: r.n for r in measured},
        cells={**left_out, **values},
    )


def table2(found: Sequence[Reach], marks: Marks) -> tuple[pd.DataFrame, list[str]]:
    """Every model of table 2, ours by seed over the paper's line; then models that the paper has not; and its notes."""
    import pandas as pd

    printed = _table2_published()
    lengths = sorted({n for one in found for n in one.cells} | {n for row in printed.values() for n in row})
    ours = [(one, _table2_line(one, marks.of(one.named), lengths)) for one in found]
    table = []
    for name, row in printed.items():
        table += [line for one, line in ours if one.published == name] or [_line(name, NOT_RUN, {}, {}, lengths)]
        parameters = {"Parameters": published.table2_parameters(name)}
        table.append(_line(name, "paper", parameters, row, lengths))
    table += [line for one, line in ours if one.published not in printed]
    return without_empty(pd.DataFrame(table, dtype=object), "Trained"), _table2_notes(found)


def _table2_published() -> dict[str, dict[int, str]]:
    names = dict.fromkeys(row["model"] for row in published.rows(TABLE2))
    return {name: {length: _printed(cell) for length, cell in published.table2(name).items()} for name in names}


def _printed(percent: float | None) -> str:
    return "oom" if percent is None else markdown.fixed(percent, 1)


def _table2_line(one: Reach, mark: str, lengths: Sequence[int]) -> dict[str, str | None]:
    own = {"Trained": mark, "Steps": markdown.count(one.steps)}
    if one.sequences:
        own["n"] = markdown.span(one.sequences.values())
    if one.training:
        own |= {"Parameters": one.training.count(PARAMETERS), "Minutes": one.training.minutes}
    cells = {length: _accuracy(cell) for length, cell in one.cells.items()}
    return _line(one.published or one.model, f"seed {one.seed}{one.variant}", own, cells, lengths)


def _line(
    model: str, who: str, own: Mapping[str, str], cells: Mapping[int, str], lengths: Sequence[int]
) -> dict[str, str | None]:
    """A row; None where nothing is known or was not run."""
    names = ("Trained", "Parameters", "Steps", "Minutes", "n")
    named = {name: own.get(name) for name in names} | {power(length): cells.get(length) for length in lengths}
    return {"Model": model, "Measured": who} | named


def _accuracy(cell: float | str) -> str:
    return {"out of memory": "oom"}.get(cell, cell) if isinstance(cell, str) else markdown.fixed(100 * cell, 1)


def _table2_notes(found: Sequence[Reach]) -> list[str]:
    """What is counted, and on how many sequences."""
    numbers = sorted({n for one in found for n in one.sequences.values()})
    return [
        f"Induction heads: % of sequences whose last token is right, on {_listed(numbers)} sequences a length (n). "
        f"{markdown.BLANK}: not run, or not known from these records.",
        "Paper: arXiv:2312.00752v2, Table 11 (the numbers of Table 2), trained at length 256; its parameters as "
        "printed. oom: out of memory.",
    ]


def reach_lines(found: Iterable[Reach]) -> list[dict[str, Any]]:
    """A line a number, for a CSV."""
    return [
        {"model": one.model, "seed": one.seed, "steps": one.steps, "length": length}
        | {"sequences": one.sequences.get(length), SEQUENCES: cell}
        for one in found
        for length, cell in sorted(one.cells.items())
    ]


def _listed(numbers: Sequence[int]) -> str:
    return markdown.either(numbers) or "no"
