"""Our scores against another adapter's: how far apart, and whether the comparison can fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .record import Record

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "parity"
COUNTS = {"requests": "Requests", "outside": "Outside", "differing documents": "Documents that differ"}


def parity_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row a task: requests, the largest difference, what is outside the tolerance, near ties, and the control."""
    import pandas as pd

    table: dict[tuple[str, str], dict[str, Any]] = {}
    for r in records:
        line = table.setdefault((r.model, r.task), {"Model": r.model, "Task": r.task, "Documents": f"{r.n:,}"})
        control = r.setting["control"]
        if control:
            if r.metric == "outside":
                line[f"Outside, {control}"] = f"{r.value:,.0f}"
        elif r.metric in COUNTS:
            line[COUNTS[r.metric]] = f"{r.value:,.0f}"
        elif r.metric == "near ties":
            listed = ", ".join(map(str, r.setting["documents"]))
            line["Near ties"] = f"{r.value:,.0f}" + (f" ({listed})" if listed else "")
        else:
            line["Largest difference"] = f"{r.value:.1e}"
    return pd.DataFrame(table.values())


def notes(records: Sequence[Record]) -> list[str]:
    """What is compared with what, and the rule."""
    s = records[0].setting
    return [
        f"Log-likelihoods in nats against {s['peer']}, the same weights in float32, every request.",
        f"Outside: further apart than {s['absolute']:g} + {s['relative']:g} of the value.",
        "Near ties: documents (by number) whose two best choices are closer than that; either answer is right there.",
    ]
