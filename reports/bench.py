"""Speeds side by side: ours, each peer, the ratio to it, and the ratio to the physical floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import markdown, provenance
from .record import Record

if TYPE_CHECKING:
    import pandas as pd

OURS = "mambalab"


@dataclass(frozen=True)
class Measure:
    """What was timed: the same shape, dtype, metric and machine, so that its implementations can be compared."""

    task: str
    dtype: str
    metric: str
    machine: str


def bench_table(records: Sequence[Record], ours: str = OURS) -> pd.DataFrame:
    """A row a measure: our number, each peer's, how many times better ours is, and its ratio to the floor.

    The metric's unit says what is better: less of "ms", more of "requests/s". The floor (for rates, the ceiling) is
    `setting["floor"]` in the metric's unit. ValueError for an unknown unit or two records of one measure.
    """
    import pandas as pd

    measures = _measures(records)
    peers = sorted({r.model for r in records} - {ours})
    has_floor = any(r.setting.get("floor") is not None for r in records)
    several = len({measure.machine for measure in measures}) > 1
    table = []
    for measure, by_model in measures.items():
        line: dict[str, Any] = {"Shape": measure.task, "dtype": measure.dtype, "Measure": measure.metric}
        line |= {"Machine": measure.machine} if several else {}
        line |= {model: _value(by_model.get(model)) for model in (ours, *peers)}
        line |= {f"× {peer}": markdown.ratio(_gain(by_model.get(ours), by_model.get(peer))) for peer in peers}
        line |= _floor(by_model, ours) if has_floor else {}
        table.append(line)
    return pd.DataFrame(table)


def lines(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The bench records as numbers, for a CSV."""
    return [
        {
            "shape": r.task,
            "dtype": _dtype(r),
            "metric": r.metric,
            "implementation": r.model,
            "value": r.value,
            "stderr": r.stderr,
            "n": r.n,
            "floor": r.setting.get("floor"),
        }
        for r in records
    ]


def notes(records: Sequence[Record], ours: str = OURS) -> list[str]:
    """How to read the table, and what the records' settings say of themselves.

    what       what the measure is, where its name does not say it
    timed      what a call of the implementation is; error: its relative error against float64, before it was timed
    floor_is   what the floor counts; bytes_ms: how long a copy of as many bytes takes as must be moved
    left_out   peer -> why it was not timed
    """
    made = [f"× a peer: how many times better {ours} is in the same run on the same machine (above 1 is better)."]
    if any(r.setting.get("floor") is not None for r in records):
        made.append(f"× floor: how far {ours} is from the physical limit of this machine (1 is the limit).")
    made += [f"Floor: {what}." for what in _distinct(records, "floor_is")]
    copies = [f"{_place(r)} {markdown.significant(r.setting['bytes_ms'])} ms" for r in _with(records, "bytes_ms")]
    if copies:
        made.append(f"Moving the bytes alone, each once, as a copy does: {'; '.join(copies)}.")
    made += [f"{_place(r)}: {r.setting['what']}." for r in _with(records, "what")]
    made += [f"{r.model}: {r.setting['timed']}." for r in {r.model: r for r in _with(records, "timed")}.values()]
    errors = _largest_errors(records)
    if errors:
        said = ", ".join(f"{model} {error:.1e}" for model, error in errors.items())
        made.append(f"Checked before it was timed; largest relative error against float64: {said}.")
    reasons = [
        (peer, why, _place(r)) for r in _with(records, "left_out") for peer, why in r.setting["left_out"].items()
    ]
    return made + [f"{peer} left out at {place}: {why}." for peer, why, place in sorted(reasons)]


def _with(records: Sequence[Record], name: str) -> list[Record]:
    return [r for r in records if r.setting.get(name)]


def _distinct(records: Sequence[Record], name: str) -> list[str]:
    return list(dict.fromkeys(r.setting[name] for r in _with(records, name)))


def _place(r: Record) -> str:
    return f"{r.task} {r.metric.rsplit(' ', 1)[0]}"


def _largest_errors(records: Sequence[Record]) -> dict[str, float]:
    errors: dict[str, float] = {}
    for r in records:
        if r.setting.get("error") is not None:
            errors[r.model] = max(r.setting["error"], errors.get(r.model, 0.0))
    return errors


def _measures(records: Sequence[Record]) -> dict[Measure, dict[str, Record]]:
    measures: dict[Measure, dict[str, Record]] = {}
    for r in records:
        _less_is_better(r.metric)
        by_model = measures.setdefault(Measure(r.task, _dtype(r), r.metric, provenance.machine(r.provenance)), {})
        if r.model in by_model:
            raise ValueError(f"two records of {r.model} for {r.task}, {_dtype(r)}, {r.metric}")
        by_model[r.model] = r
    return measures


def _gain(ours: Record | None, peer: Record | None) -> float | None:
    if ours is None or peer is None:
        return None
    better, worse = (ours.value, peer.value) if _less_is_better(ours.metric) else (peer.value, ours.value)
    return worse / better if better else None


def _floor(by_model: dict[str, Record], ours: str) -> dict[str, str]:
    floor = next((r.setting["floor"] for r in by_model.values() if r.setting.get("floor") is not None), None)
    mine = by_model.get(ours)
    ratio = None
    if floor and mine and mine.value:
        ratio = mine.value / floor if _less_is_better(mine.metric) else floor / mine.value
    return {"Floor": markdown.significant(floor), "× floor": markdown.ratio(ratio)}


def _less_is_better(metric: str) -> bool:
    unit = metric.rsplit(" ", 1)[-1]
    if unit.endswith("/s"):
        return False
    if unit in ("s", "ms", "us", "ns", "GB", "MB"):
        return True
    raise ValueError(f"metric {metric!r} names no unit among s, ms, us, ns, GB, MB and .../s")


def _value(r: Record | None) -> str:
    if r is None:
        return markdown.BLANK
    error = f" ± {markdown.significant(r.stderr, 2)}" if r.stderr else ""
    return markdown.significant(r.value) + error


def _dtype(r: Record) -> str:
    return str(r.setting.get("dtype") or r.provenance.get("dtype") or "")
