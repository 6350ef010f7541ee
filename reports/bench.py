"""Speeds side by side: ours, each peer, the ratio to it, and the ratio to the physical floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import markdown, provenance, published
from .record import Record, settings

if TYPE_CHECKING:
    import pandas as pd

OURS = "mambalab"
ELSEWHERE = "× mamba_ssm, another run"
RATES = {"GB/s": ("bytes", 1e9), "Tops/s": ("special_functions", 1e12)}  # column -> what of the setting, and its unit


@dataclass(frozen=True)
class Measure:
    """What was timed: all that must be the same for its implementations to be compared."""

    task: str
    dtype: str
    metric: str
    machine: str
    inputs: str


def bench_table(records: Sequence[Record], ours: str = OURS) -> pd.DataFrame:
    """A row a measure: our number, each peer's, how many times better ours is, and its ratio to the floor.

    The metric's unit says what is better: less of "ms", more of "requests/s". The floor (for rates, the ceiling) is
    `setting["floor"]` in the metric's unit. ValueError for an unknown unit or two records of one measure.
    """
    import pandas as pd

    measures = _measures(records)
    peers = sorted({r.model for r in records} - {ours})
    has_floor = any(r.setting.get("floor") is not None for r in records)
    has_rates = any(r.setting.get(what) for r in records for what, _ in RATES.values())
    elsewhere = {measure: _elsewhere(measure, by_model, ours) for measure, by_model in measures.items()}
    table = []
    for measure, by_model in measures.items():
        line: dict[str, Any] = {"Shape": measure.task, "dtype": measure.dtype, "Measure": measure.metric}
        line |= {"Machine": measure.machine} if len({m.machine for m in measures}) > 1 else {}
        line |= {"Inputs": measure.inputs} if len({m.inputs for m in measures}) > 1 else {}
        line |= {model: _value(by_model.get(model)) for model in (ours, *peers)}
        line |= {f"× {peer}": markdown.ratio(_gain(by_model.get(ours), by_model.get(peer))) for peer in peers}
        line |= {ELSEWHERE: markdown.ratio(elsewhere[measure])} if any(elsewhere.values()) else {}
        line |= _floor(by_model, ours) if has_floor else {}
        line |= _rates(by_model.get(ours)) if has_rates else {}
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
    timed      what a call of the implementation is; error, gradient_error: of its results, against float64
    floor_is   what the floor counts; bytes_ms: how long a copy of as many bytes takes as must be moved
    bytes, special_functions   how many must be moved and computed
    inputs_are what the values are
    left_out   peer -> why it was not timed
    """
    made = [f"× a peer: how many times better {ours} is in the same run on the same machine (above 1 is better)."]
    if any(_elsewhere(measure, by_model, ours) for measure, by_model in _measures(records).items()):
        made.append(f"{ELSEWHERE}: {published.rows(published.MAMBA_SSM)[0]['source']}; not in this run.")
    if any(r.setting.get("floor") is not None for r in records):
        made.append(f"× floor: how far {ours} is from the physical limit of this machine (1 is the limit).")
    made += [f"Floor: {what}." for what in settings(records, "floor_is")]
    if any(r.setting.get(what) for r in records for what, _ in RATES.values()):
        made.append(f"GB/s and Tops/s: the bytes and the special functions of the floor, by the time of {ours}.")
    place = _places(records)
    copies = [f"{place(r)} {markdown.significant(r.setting['bytes_ms'])} ms" for r in _with(records, "bytes_ms")]
    if copies:
        made.append(f"Moving the bytes alone, each once, as a copy does: {'; '.join(copies)}.")
    made += _what_it_is(records, place)
    made += [f"{r.model}: {r.setting['timed']}." for r in {r.model: r for r in _with(records, "timed")}.values()]
    made += [f"Inputs: {what}." for what in settings(records, "inputs_are")]
    if errors := _largest_errors(records):
        made.append(f"Checked before it was timed; largest relative error against float64: {', '.join(errors)}.")
    return made + _left_out(records, place)


def _what_it_is(records: Sequence[Record], place: Callable[[Record], str]) -> list[str]:
    """What each measure is: of its name alone, where it is the same wherever that name stands."""
    told = _with(records, "what")
    by_metric = {metric: [r for r in told if r.metric == metric] for metric in dict.fromkeys(r.metric for r in told)}
    made = []
    for metric, group in by_metric.items():
        texts = settings(group, "what")
        if len(texts) == 1 and len(group) > 1:
            made.append(f"{metric.rsplit(' ', 1)[0]}: {texts[0]}.")
        else:
            made += [f"{place(r)}: {r.setting['what']}." for r in group]
    return made


def _left_out(records: Sequence[Record], place: Callable[[Record], str]) -> list[str]:
    """Why each peer was not timed, and where; in one line where it is the same throughout."""
    asked = [r for r in records if r.setting.get("left_out") is not None]
    reasons: dict[tuple[str, str], list[str]] = {}
    for r in asked:
        for peer, why in r.setting["left_out"].items():
            reasons.setdefault((peer, why), []).append(place(r))
    made = []
    for (peer, why), places in sorted(reasons.items()):
        throughout = len(asked) > 1 and len(places) == len(asked)
        made += [f"{peer} left out{where}: {why}." for where in ([""] if throughout else [f" at {p}" for p in places])]
    return made


def _with(records: Sequence[Record], name: str) -> list[Record]:
    return [r for r in records if r.setting.get(name)]


def _places(records: Sequence[Record]) -> Callable[[Record], str]:
    """How a note names what was measured: with its dtype where there are several."""
    several = len({_dtype(r) for r in records}) > 1

    def place(r: Record) -> str:
        return " ".join([r.task, *[_dtype(r)] * several, r.metric.rsplit(" ", 1)[0]])

    return place


def _largest_errors(records: Sequence[Record]) -> list[str]:
    """For each implementation, and each dtype where there are several: of the output, and of the gradients."""
    errors: dict[str, dict[str, float]] = {}
    several = len({_dtype(r) for r in records}) > 1
    for r in records:
        largest = errors.setdefault(f"{r.model} {_dtype(r)}" if several else r.model, {})
        for what in ("error", "gradient_error"):
            if r.setting.get(what) is not None:
                largest[what] = max(r.setting[what], largest.get(what, 0.0))
    return [f"{name} {_errors(largest)}" for name, largest in errors.items() if largest]


def _errors(largest: Mapping[str, float]) -> str:
    gradients = f" (gradients {largest['gradient_error']:.1e})" if "gradient_error" in largest else ""
    return f"{largest['error']:.1e}{gradients}"


def _measures(records: Sequence[Record]) -> dict[Measure, dict[str, Record]]:
    measures: dict[Measure, dict[str, Record]] = {}
    for r in records:
        _less_is_better(r.metric)
        machine, inputs = provenance.machine(r.provenance), str(r.setting.get("inputs") or "")
        by_model = measures.setdefault(Measure(r.task, _dtype(r), r.metric, machine, inputs), {})
        if r.model in by_model:
            raise ValueError(f"two records of {r.model} for {r.task}, {_dtype(r)}, {r.metric}")
        by_model[r.model] = r
    return measures


def _gain(ours: Record | None, peer: Record | None) -> float | None:
    if ours is None or peer is None:
        return None
    better, worse = (ours.value, peer.value) if _less_is_better(ours.metric) else (peer.value, ours.value)
    return worse / better if better else None


def _elsewhere(measure: Measure, by_model: Mapping[str, Record], ours: str) -> float | None:
    """How many times faster ours is than mamba_ssm's scan in somebody else's run, where it is not in this one."""
    mine = by_model.get(ours)
    if mine is None or mine.experiment != "bench-scan" or "mamba_ssm" in by_model or measure.inputs != "normal":
        return None
    hardware = str(mine.provenance.get("device_name"))
    theirs = published.mamba_ssm_ms(hardware, measure.task, measure.dtype, measure.metric)
    return theirs and theirs / mine.value


def _rates(mine: Record | None) -> dict[str, str]:
    """What must be moved and computed, by the milliseconds that ours takes."""
    amounts = {column: mine.setting.get(what) if mine else None for column, (what, _) in RATES.items()}
    seconds = 1e-3 * mine.value if mine else 1.0
    return {
        column: markdown.significant(amount / RATES[column][1] / seconds if amount else None)
        for column, amount in amounts.items()
    }


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
    return markdown.BLANK if r is None else markdown.significant(r.value) + markdown.plus_minus(r.stderr)


def _dtype(r: Record) -> str:
    return str(r.setting.get("dtype") or r.provenance.get("dtype") or "")
