"""One measured number with its provenance: the Record, and JSON lines in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from . import jsonl

# Metrics of the synthetic tasks, both fractions: right answers, and sequences with no answer wrong.
TOKENS, SEQUENCES = "token accuracy", "sequence accuracy"
# Of their trainings.
PARAMETERS, SECONDS, SPEED = "parameters", "training seconds", "steps per second"
SOLVED, SOLVED_SECONDS, DIVERGED = "steps to solved", "seconds to solved", "diverged after step"
# By its log: the step since which every measurement found every sequence right.
STEADY = "right since step"
# In the place of SEQUENCES, of a length at which nothing was measured.
LEFT_OUT = "length left out"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number.

    value       finite, in the metric's own unit (accuracies are fractions); an infinite perplexity is refused:
                a model that gives the truth no probability is broken, and JSON has no infinity
    stderr      standard error of `value`, >= 0, or None where there is none
    n           how many documents (or repeats) stand behind `value`, >= 1
    setting     what was asked for, plain JSON
    provenance  what ran, plain JSON; holds at least a non-empty "backend"
    """

    experiment: str
    model: str
    task: str
    metric: str
    value: float
    n: int
    provenance: Mapping[str, Any]
    stderr: float | None = None
    setting: Mapping[str, Any]
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("experiment", "model", "task", "metric"):
            _check_text(name, getattr(self, name))
        checked = {
            "value": _real("value", self.value),
            "stderr": None if self.stderr is None else _real("stderr", self.stderr),
            "n": _integer("n", self.n),
            "seed": None if self.seed is None else _integer("seed", self.seed),
            "setting": _plain("setting", self.setting),
            "provenance": _plain("provenance", self.provenance),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.metric in (TOKENS, SEQUENCES) and not 0 <= self.value <= 1:
            raise ValueError(f"{self.metric} must be a fraction from 0 to 1, not {self.value}")
        if self.stderr is not None and self.stderr < 0:
            raise ValueError(f"stderr must be at least 0, not {self.stderr}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, not {self.n}")
        backend = self.provenance.get("backend")
        if not isinstance(backend, str) or not backend:
            raise ValueError(f"provenance must name the backend that computed the number, not {backend!r}")


def to_lines(records: Iterable[Record]) -> str:
    """The records as JSON lines in their order: keys sorted, floats by repr, so equal records give equal bytes."""
    lines = (json.dumps(asdict(record), sort_keys=True, ensure_ascii=False, allow_nan=False) for record in records)
    return "".join(f"{line}\n" for line in lines)


def identity(record: Record) -> str:
    """The same for equal records, which are copies of one number."""
    return to_lines([record])


def distinct(records: Iterable[Record]) -> list[Record]:
    """The records in their order, equal ones once."""
    return list({identity(record): record for record in records}.values())


def settings(records: Iterable[Record], name: str) -> list[Any]:
    """What the records' settings hold under this name, in their order, once each; not what is empty, 0 or None."""
    return list(dict.fromkeys(r.setting[name] for r in records if r.setting.get(name)))


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records to a JSON-lines file, whole or not at all; ValueError when there are none."""
    text = to_lines(records)
    if not text:
        raise ValueError(f"no records to write to {path}")
    jsonl.write_whole(Path(path), text)


def read(path: Path) -> list[Record]:
    """Read what `write` wrote. FileNotFoundError, or a ValueError that names the file and the line."""
    records = []
    for number, line in jsonl.read_lines(Path(path)):
        try:
            records.append(from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return records


def from_json(line: Mapping[str, Any]) -> Record:
    """The record of one parsed line; a missing or unknown key is a ValueError that names it."""
    unknown = sorted(set(line) - {f.name for f in fields(Record)})
    missing = [f.name for f in fields(Record) if f.name not in line and f.default is MISSING]
    if unknown or missing:
        raise ValueError(f"not a record: {_list('unknown', unknown)}{_list('missing', missing)}".rstrip("; "))
    return Record(**line)


def _list(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names)}; " if names else ""


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a non-empty string, not {value!r}")


def _real(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, not {value!r}")
    return int(value)


def _plain(name: str, value: Any) -> dict[str, Any]:
    """The value as JSON would give it back: a copy that nobody else holds, tuples as lists."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict, not {value!r}")
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be plain JSON: {error}") from None
