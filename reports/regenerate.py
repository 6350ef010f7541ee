"""Rewrites the measured tables of a Markdown file from the records that each names, and checks that nobody edited one.

A table stands between two comments; the first names its records, relative to the file, and how much of them to show:

    <!-- table from results/scan/records.jsonl -->      or     <!-- report from results/scan -->
    ...
    <!-- end -->

`python -m mambalab.reports.regenerate FILE...` writes what stands between them; `check` says whether it still does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from .jsonl import read_bytes, write_whole
from .tables import report

BLOCK = re.compile(r"^(<!-- (table|report) from (\S+) -->\n)(.*?)^(<!-- end -->)$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^<!-- (?:table|report) from ", re.MULTILINE)
ROW = re.compile(r"^\s*\|.*\d", re.MULTILINE)


def regenerate(file: Path) -> str:
    """The file's text with each table made anew from its records. ValueError for a block that does not end."""
    text = read_bytes(file).decode("utf-8")
    if len(BLOCK.findall(text)) != len(OPENING.findall(text)):
        raise ValueError(f"{file}: a table from records has no <!-- end -->")
    return BLOCK.sub(lambda block: _render(file, block), text)


def check(file: Path) -> None:
    """ValueError naming the first line of a table that its records do not give."""
    found, made = read_bytes(file).decode("utf-8").split("\n"), regenerate(file).split("\n")
    for number, (there, wanted) in enumerate(zip_longest(found, made), start=1):
        if there != wanted:
            raise ValueError(f"{file}:{number}: {there!r} is not what the records give: {wanted!r}")


def unexplained(file: Path) -> list[str]:
    """Table rows with numbers that stand outside the blocks: no record is behind them."""
    return ROW.findall(BLOCK.sub("", read_bytes(file).decode("utf-8")))


def _render(file: Path, block: re.Match[str]) -> str:
    opening, kind, source, _, end = block.groups()
    made = report([file.parent / source])
    return f"{opening}\n{made.table if kind == 'table' else made.markdown}\n{end}"


def main(names: Sequence[str]) -> None:
    """Rewrite each file's tables in place."""
    for file in map(Path, names):
        write_whole(file, regenerate(file))


if __name__ == "__main__":
    main(sys.argv[1:])
