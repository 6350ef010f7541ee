"""How numbers and frames become Markdown and CSV: the one place where a number gets its digits."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

BLANK = "—"
SCALARS = (str, int, float)


def fixed(value: float | None, digits: int = 2) -> str:
    """Percentages and perplexities: two decimals, none from a thousand on; a dash for None."""
    if value is None or math.isnan(value):
        return BLANK
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def printed(value: float | None, metric: str) -> str:
    """A published number with the decimals of Table 3: one for percentages, two for perplexities."""
    return fixed(value, 2 if metric == "perplexity" else 1)


def measured(value: float | None, stderr: float | None) -> str:
    """A value with its standard error: 44.17 ± 0.69."""
    return fixed(value) if stderr is None else f"{fixed(value)} ± {fixed(stderr)}"


def signed(value: float | None, bold_beyond: float = math.inf) -> str:
    """A difference or a z with its sign; bold beyond the given size."""
    if value is None or math.isnan(value):
        return BLANK
    text = f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.2f}"
    return f"**{text}**" if abs(value) > bold_beyond else text


def interval(low: float, high: float) -> str:
    """A range of signed numbers: "-1.20 to +0.40"."""
    return f"{signed(low)} to {signed(high)}"


def probability(p: float | None) -> str:
    """A p-value with two significant digits; in powers of ten below 0.001."""
    if p is None:
        return BLANK
    return f"{p:.1e}" if p < 1e-3 else f"{p:.2g}"


def significant(value: float | None, digits: int = 3) -> str:
    """Times, rates and their ratios: three significant digits, but never fewer than the integer part has."""
    if value is None or math.isnan(value):
        return BLANK
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def number(value: float) -> str:
    """A number of no known kind: a count as it is, anything else with three significant digits."""
    return count(int(value)) if value.is_integer() else significant(value)


def ratio(value: float | None) -> str:
    """How many times: "12.5×"."""
    return BLANK if value is None else f"{significant(value)}×"


def count(value: int | None) -> str:
    """A whole number with its thousands set apart."""
    return BLANK if value is None else f"{value:,}"


def plus_minus(stderr: float | None) -> str:
    """What follows a number that has a standard error: " ± 0.012"."""
    return f" ± {significant(stderr, 2)}" if stderr else ""


def either(values: Iterable[int]) -> str:
    """Whole numbers, one of which holds: "64 or 1,024"; nothing for none."""
    return " or ".join(map(count, values))


def span(values: Collection[int]) -> str:
    """From the least of these whole numbers to the greatest: "64 to 1,024", or "64"."""
    low, high = count(min(values)), count(max(values))
    return low if low == high else f"{low} to {high}"


def table(frame: pd.DataFrame, left: Sequence[str] = ()) -> str:
    """A pipe table of a frame of strings and integers; columns named in `left` are left-aligned, the others right."""
    from tabulate import tabulate

    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    align = ["left" if name in left else "right" for name in frame.columns]
    headers = [_cell(name) for name in frame.columns]
    return tabulate(cells, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list, a line an item."""
    return "\n".join(f"- {line}" for line in lines)


def to_csv(lines: Sequence[Mapping[str, object]]) -> str:
    """The lines as CSV with every digit (repr), columns as they turn up, cells empty where nothing is. No lines: ""."""
    if not lines:
        return ""
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def compact(setting: Mapping[str, object]) -> str:
    """A setting in one cell: the numbers and strings of it as key=value, sorted."""
    return ", ".join(f"{name}={setting[name]}" for name in sorted(setting) if isinstance(setting[name], SCALARS))


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return BLANK
    text = count(value) if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
