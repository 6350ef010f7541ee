"""An ablation at work: its cells trained in folders of their own, several at once, one that fails losing no other."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from ..ext import backends
from ..reports.jsonl import read_object
from ..tasks import memory, run_files
from ..tasks.ablations import Cell
from ..tasks.claim import differences
from ..tasks.progress import now_and_then
from ..tasks.recipes import Recipe, to_json
from ..tasks.train import damage, train
from .allocator import keep_freed_memory
from .errors import one_line
from .spawned import Spawned
from .train_cli import origin, summary

SETTINGS = "ablation.json"
# Seconds from one line about a cell at work to the next.
PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell to be trained: where, and by when (`time.time()`) to stop with a checkpoint."""

    cell: Cell
    folder: Path
    backend: str | None = None
    until: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether the whole training of this very recipe lies in the folder.

        What can't be read is not: to train it says what is wrong, and is one cell's failure only.
        """
        try:
            if not (self.folder / run_files.RECORDS).is_file() or damage(self.folder):
                return False
            return run_files.read_settings(self.folder)["recipe"] == to_json(self.cell.recipe)
        except (ValueError, OSError):
            return False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a job, in one line; a stopped one goes on with the next command."""

    cell: Cell
    state: Literal["done", "stopped", "failed"]
    text: str
    seconds: float


def check_kept(values: Mapping[str, Any], bases: Iterable[Recipe], cells: Iterable[Cell]) -> None:
    """ValueError for a setting that was given but is not what a cell has: its grid, or its seed, decides that."""
    given = {base.task.name: base for base in bases}
    for cell in cells:
        for key in values:
            if _value(cell.recipe, key) != _value(given[cell.recipe.task.name], key):
                cure = "give --seeds" if key == "seed" else f"the grid {cell.grid} decides it (cell {cell.name!r})"
                raise ValueError(f"--set {key} would be overwritten: {cure}")


def _value(recipe: Recipe, path: str) -> object:
    try:
        return reduce(getattr, path.split("."), recipe)
    except AttributeError:
        return None


def claim(folder: Path, grid: str, base: Recipe, device: str, backend: str | None) -> None:
    """Write what is ablated in a folder, or hold it against what is there.

    ValueError where that is another ablation or none, and for a base that can't be trained on this device.
    """
    place = torch.device(device)
    memory.check(base, place)
    backends.pick(place, backend, base.model.is_complex)
    settings = {"grid": grid, "base": to_json(base), "device": place.type, "backend": backend}
    path = folder / SETTINGS
    if path.is_file():
        if differing := differences(settings, read_object(path)):
            name, (mine, there) = next(iter(differing.items()))
            raise ValueError(
                f"{folder} is an ablation of other settings: {name} is {there!r} there, not {mine!r}; "
                "name another folder"
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something, but no ablation; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    run_files.write_json(path, settings)


def run(jobs: Sequence[Job], at_once: int, devices: Sequence[str]) -> Iterator[Outcome]:
    """What comes of each job, as it comes, from so many processes; none is begun when the time is up for one.

    Each process has a device of its own or shares it, as evenly as may be, and is used for one job after the other,
    until one fails. All of them end with the iteration, and with this process.
    """
    waiting, idle = deque(jobs), list[_Worker]()
    busy: dict[Connection, tuple[_Worker, Job]] = {}
    threads = max(1, torch.get_num_threads() // at_once)
    try:
        while waiting or busy:
            while waiting and len(busy) < at_once:
                job = waiting.popleft()
                if job.until is None or time.time() < job.until:
                    worker = idle.pop() if idle else _Worker(threads, _least_used(devices, busy.values()))
                    worker.pipe.send(job)
                    busy[worker.pipe] = worker, job
            # Without a process at work there is nothing to wait for, ever.
            for pipe in wait(list(busy)) if busy else ():
                worker, job = busy.pop(pipe)  # pyright: ignore[reportArgumentType]
                outcome = worker.outcome(job)
                if outcome.state == "failed":
                    # A device that failed once may fail for all that follows in the process.
                    worker.end()
                else:
                    idle.append(worker)
                if outcome.state == "stopped":
                    # In what is left of the time no line of its log came to an end: nor would one of the others.
                    waiting.clear()
                yield outcome
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.end()


def _least_used(devices: Sequence[str], busy: Iterable[tuple[_Worker, Job]]) -> str:
    used = Counter(worker.device for worker, _ in busy)
    return min(devices, key=lambda device: used[device])


class _Worker(Spawned):
    """A process of its own that trains what it is sent, on its device."""

    def __init__(self, threads: int, device: str) -> None:
        super().__init__(_serve, threads, device)
        self.device = device

    def outcome(self, job: Job) -> Outcome:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            text = f"its process ended ({_how(self.process.exitcode or 0)})"
            return Outcome(cell=job.cell, state="failed", text=text, seconds=0.0)


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _serve(pipe: Connection, device: str) -> None:
    keep_freed_memory()
    while True:
        pipe.send(work(pipe.recv(), device))
        # Other processes want the memory.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def work(job: Job, device: str) -> Outcome:
    """Train one cell in this process, on this device; whatever goes wrong is told and raises nothing."""
    begun = time.time()
    recipe = job.cell.recipe
    say = now_and_then(lambda line: print(f"{job.cell}: {line}", file=sys.stderr, flush=True), PATIENCE)
    try:
        result = train(
            recipe,
            job.folder,
            device=device,
            backend=job.backend,
            provenance=origin(recipe, device, job.backend),
            experiment=job.cell.experiment,
            seconds=None if job.until is None else max(0.0, job.until - begun),
            say=say,
        )
        state, text = ("done" if result.done else "stopped"), summary(result)
    except (ValueError, OSError) as error:
        state, text = "failed", one_line(error)
    except Exception as error:
        if os.environ.get("MAMBALAB_TRACEBACK"):
            traceback.print_exc()
        state, text = "failed", f"{type(error).__name__}: {one_line(error)}"
    return Outcome(cell=job.cell, state=state, text=text, seconds=time.time() - begun)
