"""What every benchmark shares: who is let in, interleaved timing, the refusal of a red check, records and table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..reports.record import Record, to_lines
from ..reports.tables import report
from .errors import one_line
from .store import write_text

OURS = "mambalab"
Call = Callable[[], object]
Timer = Callable[[Call, int], list[float]]  # a call and how often to make it -> seconds of each
Error = TypeVar("Error")

ROUNDS = (3, 20)  # at least, at most
ROUND_SECONDS = 0.2  # one candidate's share of a round, where one call is shorter
ENOUGH_SECONDS = 1.0  # of each candidate, after which more rounds say little
PATIENCE_SECONDS = 90.0  # of all candidates together, after the least number of rounds
CALLS = 10  # of one candidate in a round, at most


class RedCheck(ValueError):
    """A result is wrong, so its speed means nothing and is not printed."""


class LeftOut(Exception):
    """Why a peer can't be timed here, in one line."""


def allow(seconds: float, limit: float) -> None:
    """Raise LeftOut where one call takes, or is going to take, more than `limit` seconds."""
    if seconds > limit:
        raise LeftOut(f"one call would take about {seconds:.0f} s, over the limit of {limit:g} s")


def admit(
    checks: Mapping[str, Callable[[], Error]],
    *,
    limits: Mapping[str, Callable[[], None]],
    call_seconds: float,
    place: str,
) -> tuple[dict[str, Error], dict[str, str]]:
    """Who is right and quick enough to be timed, with what its check gave; and why each other is left out.

    A peer's `limits` may raise LeftOut before its check, which makes one whole call; a check raises RedCheck, and
    that of ours at `place` ends everything.
    """
    errors, absent = {}, {}
    for name, check in checks.items():
        try:
            limits.get(name, lambda: None)()
            started = time.perf_counter()
            error = check()
            if name != OURS:
                allow(time.perf_counter() - started, call_seconds)
            errors[name] = error
        except LeftOut as reason:
            absent[name] = str(reason)
        except (RedCheck, RuntimeError) as error:
            if name == OURS:
                raise RedCheck(f"{place}: {error}; no speed is printed") from error
            absent[name] = f"it fails its check ({one_line(error)})"
    return errors, absent


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each measured call of one candidate."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("no call was timed")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def ratios(times: Mapping[str, Times], names: Iterable[str]) -> list[str]:
    """How many times ours each of these takes, for a line to a person; ours itself is left out."""
    return [f"{name} {times[name].median / times[OURS].median:.3g}x" for name in names if name != OURS]


def interleave(
    calls: Mapping[str, Call],
    *,
    repeats: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    timer: Timer | None = None,
) -> dict[str, Times]:
    """Time every candidate in turn, round after round, so that a disturbance of the machine meets all of them.

    A round gives a candidate one call, or as many as fit its share. The order turns round each time. Without
    `repeats` the number of rounds adapts: at least 3, more while some candidate has too little time to its name.
    `timer` stands for the clock where that can't see the work, as on a GPU.
    """
    timed = timer or (lambda call, count: [seconds(call, clock) for _ in range(count)])
    burst = {name: _burst(timed(call, 1)[0]) for name, call in calls.items()}
    measured: dict[str, list[float]] = {name: [] for name in calls}
    rounds = 0
    while not _enough(rounds, repeats, measured):
        for name in list(calls)[:: 1 if rounds % 2 == 0 else -1]:
            if burst[name] > 1:
                # Unmeasured: the candidate before has had the caches and the threads.
                calls[name]()
            measured[name] += timed(calls[name], burst[name])
        rounds += 1
    return {name: Times(seconds=tuple(found)) for name, found in measured.items()}


def seconds(call: Call, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes."""
    started = clock()
    call()
    return clock() - started


def _burst(length: float) -> int:
    """How many calls of this length, in seconds, make a round's share."""
    return CALLS if length * CALLS <= ROUND_SECONDS else max(1, int(ROUND_SECONDS / length))


def _enough(rounds: int, repeats: int | None, measured: Mapping[str, list[float]]) -> bool:
    if repeats is not None:
        return rounds >= repeats
    least, most = ROUNDS
    totals = [sum(found) for found in measured.values()]
    settled = min(totals) >= ENOUGH_SECONDS or sum(totals) >= PATIENCE_SECONDS
    return rounds >= most or (rounds >= least and settled)


def write(out: Path, title: str, records: Iterable[Record]) -> str:
    """Write `out`/records.jsonl and, made from it alone, `out`/table.md; returns the table's text."""
    source = out / "records.jsonl"
    write_text(source, to_lines(records))
    made = report([source]).markdown
    # The comments let reports.regenerate make the table anew and see a hand-edited one.
    write_text(out / "table.md", f"# {title}\n\n<!-- report from {source.name} -->\n\n{made}\n<!-- end -->\n")
    return made
