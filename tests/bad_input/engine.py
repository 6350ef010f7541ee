"""A campaign: cases drawn by sort of damage, each judged where a crash or a hang of the judge is seen, and counted."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

RIGHT, CLEAR, DEFECT = "right answer", "one clear line", "defect"
OUTCOMES = (RIGHT, CLEAR, DEFECT)
SECONDS = 60.0  # that one case may take
# What Python says of its own insides: no user can act on it.
UNCLEAR = re.compile(
    r"'\w+' object|NoneType|not subscriptable|unsupported operand|positional argument|embedded null|0x[0-9a-f]{6}|"
    r"index out of range|Traceback|has no attribute|unhashable|not iterable|INTERNAL ASSERT|C\+\+"
)
# A phrase of ours around whatever another library said of the file or folder that it names.
FOREIGN = re.compile(
    r"transformers can't load /|task file \S+ can't be read: |"
    r"task \S+( or its documents .* can't be loaded)?: \w+(Error|Invalid|Exception): "
)


@dataclass(frozen=True)
class Verdict:
    """What came of one case; `content` is what was tried, so that the same bytes count once."""

    outcome: str
    detail: str
    content: bytes = b""


def _nothing(folder: Path) -> None:
    """A kind that needs no files."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of bad input.

    sorts    the damages, each with the strategy that draws its cases (picklable values)
    judge    tries a case and says what came of it; the folder holds what `prepare` left there
    draws    how many cases of each sort a whole campaign draws
    """

    name: str
    sorts: Mapping[str, SearchStrategy[Any]]
    judge: Callable[[Any, Path], Verdict]
    draws: int
    prepare: Callable[[Path], object] = _nothing


@dataclass(frozen=True)
class Try:
    """One distinct bad input, by the damage it stands for."""

    sort: str
    case: Any
    verdict: Verdict


def campaign(kind: Kind, judge: Callable[[Any], Verdict], *, seed: int, draws: int) -> list[Try]:
    """Draw `draws` cases of each sort from the seed and judge each; what is the same content counts once."""
    tries: dict[str, Try] = {}
    for number, (sort, cases) in enumerate(kind.sorts.items()):
        for case in _drawn(cases, seed=seed * 1000 + number, draws=draws):
            verdict = judge(case)
            content = verdict.content or repr(case).encode()
            tries.setdefault(hashlib.sha256(content).hexdigest(), Try(sort, case, replace(verdict, content=b"")))
    return list(tries.values())


def _drawn(cases: SearchStrategy[Any], *, seed: int, draws: int) -> list[Any]:
    """The same cases for the same seed; equal ones once."""
    found: dict[str, Any] = {}

    @hypothesis.seed(seed)
    @settings(
        max_examples=draws,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # type: ignore[reportArgumentType]
    )
    @given(cases)
    def draw(case: Any) -> None:
        found.setdefault(repr(case), case)

    draw()
    return list(found.values())


def count(tries: list[Try]) -> dict[str, dict[str, int]]:
    """How many distinct inputs of each sort came to each outcome."""
    counts: dict[str, Counter[str]] = {}
    for one in tries:
        counts.setdefault(one.sort, Counter())[one.verdict.outcome] += 1
    return {sort: {outcome: found[outcome] for outcome in OUTCOMES} for sort, found in counts.items()}


def said(message: str, *names: str, content: bytes = b"") -> Verdict:
    """The verdict on a refusal: one clear line, which holds one of the names where any are asked for."""
    why = None
    if not message.strip() or "\n" in message.strip():
        why = f"{len(message.strip().splitlines())} lines"
    elif (found := UNCLEAR.search(message)) and not FOREIGN.match(message):
        why = f"says {found[0]!r}"
    elif len(message) > 1500:
        why = f"{len(message)} characters"
    elif names and not any(name in message for name in names):
        why = f"names none of {names}"
    detail = message if why is None else f"no clear line ({why}): {message[:800]}"
    return Verdict(CLEAR if why is None else DEFECT, detail, content)


@contextmanager
def watched(kind: Kind) -> Iterator[Callable[[Any], Verdict]]:
    """A judge in a process of its own, started anew when a case kills it or takes too long: both are defects."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
        worker = _Worker(kind, Path(folder))
        try:
            yield worker
        finally:
            worker.stop()


class _Worker:
    """The process that judges, for as long as it lives."""

    def __init__(self, kind: Kind, folder: Path):
        self.kind, self.folder, self.starts = kind, folder, 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        own = self.folder / str(self.starts)
        own.mkdir()
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(self.kind.judge, self.kind.prepare, own, theirs), daemon=True
        )
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def __call__(self, case: Any) -> Verdict:
        self.pipe.send(case)
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            why = f"no answer in {SECONDS:g} s"
            self.process.kill()
        except EOFError:
            why = ""
        self.process.join()
        verdict = Verdict(DEFECT, why or f"the process died with exit code {self.process.exitcode}")
        self._start()
        return verdict

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(10)
        self.process.kill()


def _serve(judge: Callable[..., Verdict], prepare: Callable[..., object], folder: Path, pipe: Connection) -> None:
    prepare(folder)
    pipe.send("ready")
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        pipe.send(judged(judge, case, folder))


def judged(judge: Callable[[Any, Path], Verdict], case: Any, folder: Path) -> Verdict:
    """The judge's verdict, or the defect of an exception that is no refusal."""
    try:
        return judge(case, folder)
    except (Exception, SystemExit) as error:
        return Verdict(DEFECT, f"{type(error).__name__}: {error}"[:1500])
    except BaseException as error:
        # A panic of a Rust library is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        return Verdict(DEFECT, f"panic: {error}"[:1500])
