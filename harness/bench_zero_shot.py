"""`mambalab bench zero-shot`: our adapter and lm-eval's own `hf` adapter score the same documents, side by side."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..reports.record import Record
from . import parity
from .bench import RedCheck
from .lm_eval_host import Host, as_it_is, done_once
from .task_files import TASKS, load_tasks
from .zero_shot import Settings, check_data, open_model, run_provenance

OURS, STOCK = "mambalab", "lm-eval hf"
TIMED = {
    OURS: "our adapter, under lm-eval's evaluator with its repeated work done once",
    STOCK: "lm-eval's hf adapter on transformers' MambaForCausalLM with the same weights, under lm-eval's evaluator as "
    "it is, which is what its user has; the adapters alone are compared in the row that says so",
}
HOSTS: dict[str, Host] = {OURS: done_once, STOCK: as_it_is}
FRESH: dict[str, Any] = {"d_model": 256, "n_layer": 4, "vocab_size": 50277}
SEED = 0
CHECKED = 5  # documents of each task that both adapters score before any clock starts


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One task scored once.

    seconds     of lm-eval's whole evaluation, its own host work included; reading the data set is not in it
    answering   of it, seconds in the adapter: tokenising and computing log-likelihoods
    """

    documents: tuple[parity.Document, ...]
    seconds: float
    answering: float

    @property
    def requests(self) -> int:
        return sum(len(document.scores) for document in self.documents)


Passes = Mapping[str, Sequence[Pass]]  # by task, in the order run


def run(
    settings: Settings | None = None,
    *,
    peers: bool = False,
    repeats: int = 2,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Time both adapters (without `peers`, only ours) on a checkpoint; an empty `model` makes a fresh one.

    Every document that is timed is also compared, in float32, by the rule of `parity`: RedCheck, and no speed, where
    one differs. Without `peers` the first documents of each task are.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    if settings and (others := [name for name in settings.tasks if name not in TASKS]):
        raise ValueError(f"task {others[0]!r} can't be timed; known: {', '.join(TASKS)}")
    settings = replace(settings or Settings(model=""), dtype="float32", parity=None)
    digests = check_data(settings)
    with tempfile.TemporaryDirectory(prefix="mambalab-") as folder:
        chosen = settings if settings.model else replace(settings, model=str(fresh(Path(folder) / "mamba")))
        lm = open_model(chosen)
        tasks = {name: load_tasks((name,), Path(chosen.data) if chosen.data else None) for name in chosen.tasks}
        whole = {
            part: {k: v for task in tasks.values() for k, v in task[part].items()} for part in tasks[chosen.tasks[0]]
        }
        origin = run_provenance(chosen, lm, whole, digests, command)
        if not settings.model:
            origin["checkpoint"] |= made_for_the_run()
        sides = {OURS: lm, STOCK: parity.stock_adapter(lm)}
        measured = _measure(chosen, tasks, sides, repeats if peers else 0, say)
        if not peers:
            measured = _measure(chosen, tasks, {OURS: lm}, repeats, say)
    return list(records(settings, measured, origin, batch_size=sides[STOCK].batch_size))


def fresh(folder: Path) -> Path:
    """An untrained Mamba of 4 layers and d_model 256 with the GPT-NeoX-20B tokenizer's vocabulary, seed 0."""
    from ..models import Mamba, checkpoint
    from ..models.registry import MambaConfig

    return checkpoint.save(Mamba(MambaConfig(**FRESH), seed=SEED), folder)


def made_for_the_run() -> dict[str, str]:
    """What the records say of a `fresh` checkpoint, whose folder is gone after the run."""
    shape = ", ".join(f"{name} {value}" for name, value in FRESH.items())
    return {"source": "made for the run", "note": f"random weights, {shape}, seed {SEED}"}


def _measure(
    settings: Settings, tasks: Mapping[str, Any], sides: Mapping[str, Any], repeats: int, say: Callable[[str], None]
) -> dict[str, Passes]:
    """Passes by side and task. The sides take turns within each task, the first of them changing each time."""
    few = replace(settings, limit=min(CHECKED, settings.limit or CHECKED))
    for name, task in tasks.items():
        agree(name, {side: [score(few, lm, task, HOSTS[side])] for side, lm in sides.items()})
    measured: dict[str, dict[str, list[Pass]]] = {side: {name: [] for name in tasks} for side in sides}
    for turn in range(repeats):
        for name, task in tasks.items():
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                measured[side][name].append(score(settings, sides[side], task, HOSTS[side]))
            agree(name, {side: passes[name] for side, passes in measured.items()})
            times = ", ".join(f"{side} {passes[name][-1].seconds:.2f} s" for side, passes in measured.items())
            say(f"run {turn + 1} of {repeats}, {name}: {times}")
    return {side: dict(passes) for side, passes in measured.items()}


def score(
    settings: Settings, lm: Any, task: dict[str, Any], host: Host, clock: Callable[[], float] = time.perf_counter
) -> Pass:
    """One evaluation of one task, timed as a whole and inside the adapter."""
    with inside(lm, "loglikelihood", clock) as answering:
        started = clock()
        documents = parity.score_documents(settings, lm, task, host=host)
        seconds = clock() - started
    return Pass(documents=tuple(documents), seconds=seconds, answering=sum(answering))


@contextlib.contextmanager
def inside(lm: Any, method: str, clock: Callable[[], float]) -> Iterator[list[float]]:
    """Collect the seconds that calls of one of the adapter's methods take."""
    seconds: list[float] = []
    stock = getattr(lm, method)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = clock()
        try:
            return stock(*arguments, **options)
        finally:
            seconds.append(clock() - started)

    setattr(lm, method, timed)
    try:
        yield seconds
    finally:
        delattr(lm, method)


def agree(task: str, passes: Passes) -> None:
    """RedCheck where the last passes of the two sides differ beyond parity's tolerance."""
    if STOCK not in passes:
        return
    found = parity.compare(task, passes[OURS][-1].documents, passes[STOCK][-1].documents)
    if not found.holds:
        raise RedCheck(f"{parity.describe(found, None)}; no speed is printed")


def records(
    settings: Settings, measured: Mapping[str, Passes], origin: dict[str, Any], *, batch_size: int
) -> Iterator[Record]:
    """For each side a record a task (whole seconds), and over all tasks four: whole, adapter, the rest, requests/s."""
    shared = {name: value for name, value in origin.items() if name not in ("task_version", "asked", "documents")}
    for side, by_task in measured.items():
        own = {} if side == OURS else {"backend": f"transformers {origin['versions']['transformers']}", "kernel": None}
        options = {} if side == OURS else {"batch_size": batch_size}
        for task, metric, values, counted in _rows(by_task):
            yield Record(
                experiment="bench-zero-shot",
                model=side,
                task=task,
                metric=metric,
                setting={"dtype": "float32", "limit": settings.limit, "timed": TIMED[side], "runs": values}
                | counted
                | options,
                seed=settings.seed,
                value=statistics.median(values),
                n=len(values),
                provenance=shared | own,
            )


def _rows(by_task: Passes) -> Iterator[tuple[str, str, list[float], dict[str, int]]]:
    """Task, metric, its value in each run, and the counts behind it."""
    for task, passes in by_task.items():
        yield (
            f"{task}, {len(passes[0].documents)} documents",
            "evaluation s",
            [p.seconds for p in passes],
            _counts(passes[:1]),
        )
    runs = list(zip(*by_task.values(), strict=True))
    whole = [math.fsum(p.seconds for p in passes) for passes in runs]
    inside = [math.fsum(p.answering for p in passes) for passes in runs]
    counts = _counts(runs[0])
    name = f"all {len(by_task)} tasks, {counts['documents']} documents"
    yield name, "evaluation s", whole, counts
    yield name, "in the adapter s", inside, counts
    yield name, "in lm-eval s", [a - b for a, b in zip(whole, inside, strict=True)], counts
    yield name, "requests/s", [counts["requests"] / seconds for seconds in whole], counts


def _counts(passes: Sequence[Pass]) -> dict[str, int]:
    return {"documents": sum(len(p.documents) for p in passes), "requests": sum(p.requests for p in passes)}
