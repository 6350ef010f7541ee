"""`mambalab bench host`: how long lm-eval's own part of an evaluation takes, as it is and as it runs here."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from ..reports.record import Record
from . import parity, task_files
from .bench import RedCheck
from .bench_zero_shot import fresh, inside, made_for_the_run
from .lm_eval_host import as_it_is, done_once
from .task_files import TASKS, load_tasks, reading_from, task_digest
from .zero_shot import Settings, check_data, open_model, run_provenance, run_tasks

OURS, STOCK = "mambalab", "lm-eval"
TIMED = {
    OURS: "lm-eval with its repeated work done once, an index of the six tasks' folders alone, our adapter's way of "
    "tokenising; an evaluation goes from loaded tasks to lm-eval's results and samples, which are the same to the "
    "byte, with a model that answers at once",
    STOCK: "lm-eval as its own command runs it: its evaluator, its index of all tasks, its hf adapter's tokenising; "
    "neither side bootstraps standard errors, which would only add to it",
}
EVALUATION, LOADING, TOKENISING = "evaluation s", "loading tasks s", "tokenising s"
Clock = Callable[[], float]
Timed = tuple[float, Any]  # seconds, and what came out, to be compared


class Instant(LM):
    """A model that answers at once: minus the length of what is asked, never greedy."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [-float(len(request.args[0])) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [""] * len(requests)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: seconds of each run by side, and how much they were about."""

    task: str
    metric: str
    seconds: Mapping[str, Sequence[float]]
    counts: Mapping[str, int]


def run(
    settings: Settings,
    *,
    repeats: int = 3,
    split: int = 100,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Time loading, evaluating with `Instant`, and tokenising on both sides, in turn; RedCheck where they differ.

    Then our own evaluation of the first `split` documents of each task with a real model, part by part (0: not).
    An empty `model` makes a fresh one.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, not {repeats}")
    if split < 0:
        raise ValueError(f"split must be at least 0, not {split}")
    if others := [name for name in settings.tasks if name not in TASKS]:
        raise ValueError(f"task {others[0]!r} can't be timed; known: {', '.join(TASKS)}")
    digests = check_data(settings)
    with tempfile.TemporaryDirectory(prefix="mambalab-") as folder:
        chosen = settings if settings.model else replace(settings, model=str(fresh(Path(folder) / "mamba")))
        lm = open_model(chosen)
        tasks = load_tasks(chosen.tasks, _directory(chosen))
        origin = run_provenance(chosen, lm, tasks, digests, command)
        if not settings.model:
            origin["checkpoint"] |= made_for_the_run()
        rows = [*_both_sides(chosen, lm, tasks, repeats, say)]
        if split:
            rows += _parts(chosen, lm, tasks, min(split, chosen.limit or split), repeats)
    return list(records(settings, rows, origin))


def _directory(settings: Settings) -> Path | None:
    return Path(settings.data).resolve() if settings.data else None


def _both_sides(
    settings: Settings, lm: Any, tasks: dict[str, Any], repeats: int, say: Callable[[str], None]
) -> Iterator[Row]:
    names = settings.tasks[0] if len(settings.tasks) == 1 else f"all {len(settings.tasks)} tasks"
    requests: list[Any] = []
    for name, task in tasks["tasks"].items():
        calls = {
            OURS: lambda task=task: _evaluated(settings, task, done_once),
            STOCK: lambda task=task: _evaluated(settings, task, as_it_is),
        }
        seconds = in_turn(name, EVALUATION, calls, repeats, say)
        requests += task.instances
        documents = len({request.doc_id for request in task.instances})
        counts = {"documents": documents, "requests": len(task.instances)}
        yield Row(task=f"{name}, {documents} documents", metric=EVALUATION, seconds=seconds, counts=counts)
    calls = {OURS: lambda: _loaded(settings), STOCK: lambda: _loaded_by_stock(settings)}
    yield Row(task=names, metric=LOADING, seconds=in_turn(names, LOADING, calls, repeats, say), counts={})
    stock = parity.stock_adapter(lm)
    calls = {OURS: lambda: tokenised(lm, requests), STOCK: lambda: tokenised(stock, requests)}
    seconds = in_turn(names, TOKENISING, calls, repeats, say)
    yield Row(task=names, metric=TOKENISING, seconds=seconds, counts={"requests": len(requests)})


def in_turn(
    task: str, metric: str, calls: Mapping[str, Callable[[], Timed]], repeats: int, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of each side's runs, the first of them changing each time; RedCheck where what came out differs."""
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for turn in range(repeats):
        outcomes = []
        for side in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            # What another side left is not this one's to clear away.
            gc.collect()
            taken, outcome = calls[side]()
            seconds[side].append(taken)
            outcomes.append(outcome)
        if outcomes[0] != outcomes[1]:
            raise RedCheck(f"{task}, {metric}: the two sides differ in what they made; no speed is printed")
        say(f"{task}, {metric}: " + ", ".join(f"{side} {runs[-1]:.3f}" for side, runs in seconds.items()))
    return seconds


def _evaluated(settings: Settings, task: Any, host: Any, clock: Clock = time.perf_counter) -> Timed:
    """One task with the instant model; comes out: the whole results as JSON, samples included."""
    tasks = {"tasks": {task.config.task: task}, "groups": {}, "group_map": {}}
    started = clock()
    results = run_tasks(
        Instant(), tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, seed=settings.seed, host=host
    )
    seconds = clock() - started
    return seconds, json.dumps(results, default=repr)


def _loaded(settings: Settings, clock: Clock = time.perf_counter) -> Timed:
    # Each run starts as a new process does.
    task_files.index.cache_clear()
    started = clock()
    loaded = load_tasks(settings.tasks, _directory(settings))
    return clock() - started, _asked(loaded)


def _loaded_by_stock(settings: Settings, clock: Clock = time.perf_counter) -> Timed:
    from lm_eval.tasks import TaskManager

    with reading_from(_directory(settings)):
        started = clock()
        loaded = TaskManager().load(list(settings.tasks))
        return clock() - started, _asked(loaded)


def _asked(loaded: Mapping[str, Any]) -> dict[str, str]:
    """The settings and documents of loaded tasks, by their digest."""
    return {name: task_digest(task, limit=None, num_fewshot=None) for name, task in loaded["tasks"].items()}


def tokenised(adapter: Any, requests: Sequence[Any], clock: Clock = time.perf_counter) -> Timed:
    """An adapter's way from requests to token ids, its model left out; comes out: context and continuation of each."""
    made: list[Any] = []

    def keep(work: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        made.extend((context, continuation) for _, context, continuation in work)
        return [(0.0, False)] * len(work)

    adapter._loglikelihood_tokens = keep
    try:
        started = clock()
        adapter.loglikelihood(requests, disable_tqdm=True)
        return clock() - started, made
    finally:
        del adapter._loglikelihood_tokens


def _parts(settings: Settings, lm: Any, tasks: dict[str, Any], documents: int, repeats: int) -> Iterator[Row]:
    """Where the time of our own evaluation goes, with a real model."""
    warm = replace(settings, limit=1)
    for name, task in tasks["tasks"].items():
        one = {"tasks": {name: task}, "groups": {}, "group_map": {}}
        parted(warm, lm, one)
        runs = [parted(replace(settings, limit=documents), lm, one) for _ in range(repeats)]
        for part in runs[0]:
            seconds = {OURS: [found[part] for found in runs]}
            yield Row(
                task=f"{name}, first {documents} documents, a real model",
                metric=part,
                seconds=seconds,
                counts={"documents": documents},
            )


def parted(settings: Settings, lm: Any, tasks: dict[str, Any], clock: Clock = time.perf_counter) -> dict[str, float]:
    """Seconds of one evaluation in lm-eval, in the adapter's tokenising and in its model."""
    with inside(lm, "loglikelihood", clock) as answering, inside(lm, "_loglikelihood_tokens", clock) as computing:
        started = clock()
        run_tasks(lm, tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, seed=settings.seed)
        whole = clock() - started
    return {
        "in lm-eval s": whole - sum(answering),
        TOKENISING: sum(answering) - sum(computing),
        "in the model s": sum(computing),
    }


def records(settings: Settings, rows: Sequence[Row], origin: dict[str, Any]) -> Iterator[Record]:
    """A record of each side of each row: the median of its runs."""
    shared = {name: value for name, value in origin.items() if name not in ("task_version", "asked", "documents")}
    for row in rows:
        real = STOCK not in row.seconds
        for side, runs in row.seconds.items():
            own = {} if real else {"backend": "none (no model)", "kernel": None}
            yield Record(
                experiment="bench-host",
                model=side,
                task=row.task,
                metric=row.metric,
                setting={"limit": settings.limit, "timed": TIMED[side], "runs": list(runs)} | dict(row.counts),
                seed=settings.seed,
                value=statistics.median(runs),
                n=len(runs),
                provenance=shared | own,
            )
