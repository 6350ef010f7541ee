"""The campaign of bad input: how many distinct inputs of each sort were tried, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .record import Record

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "bad-input"
OUTCOMES = ("right answer", "one clear line", "defect")


def bad_input_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a sort of damage, under a row for all of its kind: distinct inputs and their outcomes."""
    import pandas as pd

    table: list[dict[str, Any]] = []
    for r in records:
        table.append(_row(r.task, "all", r.setting["outcomes"]))
        table += [_row("", sort, outcomes) for sort, outcomes in r.setting["sorts"].items()]
    return pd.DataFrame(table)


def _row(kind: str, sort: str, outcomes: dict[str, int]) -> dict[str, Any]:
    counts = {name.capitalize(): f"{outcomes[name]:,}" for name in OUTCOMES}
    return {"Kind": kind, "Damage": sort, "Distinct inputs": f"{sum(outcomes.values()):,}", **counts}


def notes(records: Sequence[Record]) -> list[str]:
    """What counts as what."""
    total = sum(int(r.value) for r in records)
    return [
        f"{total:,} inputs, distinct by content, drawn by hypothesis from seed {records[0].seed}.",
        "Right answer: the op agrees with its definition in float64 (NaN and infinities in the same places); the "
        "model, the tokenizer or the documents are what an independent reading of the files gives.",
        "One clear line: one ValueError, or exit status 2 with one line, and nothing half-written left behind.",
        "Defect: anything else, a crash or no answer in a minute among it.",
        "A changed byte in the data of a safetensors file is another valid number, which only a digest can tell: such "
        "a file counts as right where the model holds exactly what stands in it. A .bin has checksums, which are read.",
    ]
