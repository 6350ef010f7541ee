"""A part of a report: an experiment's tables, its notes and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import markdown
from .record import Record


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment's part of a report; `lines` are its numbers for the CSV."""

    title: str
    table: str = ""
    notes: Sequence[str] = ()
    details: str = ""
    lines: Sequence[Mapping[str, Any]] = ()

    def short(self) -> str:
        parts = [self.table, markdown.bullets(self.notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def full(self) -> str:
        parts = [f"## {self.title}", self.short().strip(), self.details]
        return "\n\n".join(part for part in parts if part) + "\n"


def plain_lines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A line a record, for experiments whose numbers need no other words."""
    kept = ("model", "task", "metric", "value", "stderr", "n")
    return [{name: getattr(r, name) for name in kept} for r in records]
