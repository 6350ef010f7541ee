"""How far a trained model's accuracy reaches: a finished run, measured at one length after another, resumably."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..ext import backends
from ..models import restore, weight_files
from ..models.architectures import ModelConfig
from ..models.building import Model
from ..models.chunks import CHUNK
from ..models.synthetic import SYNTHETIC
from ..reports import record
from ..reports.record import LEFT_OUT, SEQUENCES, TOKENS, Record
from . import run_files
from .accuracy import standard_error
from .batch import MOST, Task
from .evaluate import LeftOut, Measured, evaluate, reads_in_pieces, seed_of
from .induction_heads import InductionHeads
from .outcome import model_name
from .progress import Say, now_and_then
from .recipes import Recipe, from_json, to_json

EXPERIMENT = "extrapolation"
# Of the settings, those that a length has for itself.
OWN = ("length", "sequences", "evaluation_seed")
# Seconds from one line about a length at work to the next.
PATIENCE = 10.0


def doublings(low: int, high: int) -> tuple[int, ...]:
    """low, 2 low, 4 low … up to `high`; ValueError where there is none, and for one that no task can have.

    >>> doublings(64, 300)
    (64, 128, 256)
    """
    if not 1 <= low <= high:
        raise ValueError(f"lengths must rise from at least 1: the least is {low:,}, the most {high:,}")
    if high > MOST:
        raise ValueError(f"lengths must be at most 2^31 - 1, to which tasks count, not {high:,}")
    return tuple(low << i for i in range((high // low).bit_length()))


def finished(folder: str | Path) -> Recipe:
    """The recipe of a finished run. FileNotFoundError where there is no run, ValueError for one at work."""
    settings = run_files.read_settings(Path(folder))
    if not (Path(folder) / run_files.RECORDS).is_file():
        raise ValueError(f"{folder}: this run is not finished (no {run_files.RECORDS}); train it to its end first")
    return from_json(settings["recipe"])


def extrapolate(
    folder: str | Path,
    out: str | Path,
    plan: Mapping[int, int],
    *,
    chunk: int = CHUNK,
    device: str = "cpu",
    backend: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
) -> list[Record]:
    """The records of a finished run at the lengths of the plan (length -> sequences); out/records.jsonl has them all.

    Lengths are sizes as the task's `sized_by` counts them, measured in the plan's order. A length's records are
    appended when it is measured, and what is there already is not measured again (a length left out is tried again).
    ValueError for a length that the task refuses, and for an `out` that holds records of other settings.
    """
    recipe = finished(folder)
    tasks = {length: recipe.task_of_size(length) for length in plan}
    place = torch.device(device)
    model = restore(folder, device=place, backend=backend)
    name = backends.pick(place, backend, recipe.model.is_complex).name
    run = _Run(Path(folder), recipe, model, place, name, chunk)
    with run_files.held(Path(out)), torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        file = _File(Path(out) / run_files.RECORDS, again=plan.keys())
        asked = {length: run.asked(task, length, plan[length]) for length, task in tasks.items()}
        file.check(asked)
        if todo := [length for length in plan if length not in file.done]:
            # Kernels are compiled by then, and the first length's time is its own.
            evaluate(model, recipe.task, seed=0, sequences=2, chunk=max(1, recipe.task.length // 2), device=place)
        for length in todo:
            found = run.measure(tasks[length], asked[length], say)
            file.append(run.records(asked[length], found, provenance or {}))
            say(_line(length, found))
    return [r for r in file.records if r.setting["length"] in plan]


@dataclass(frozen=True)
class _Run:
    folder: Path
    recipe: Recipe
    model: Model
    device: torch.device
    backend: str
    chunk: int

    def asked(self, task: Task, length: int, sequences: int) -> dict[str, Any]:
        """What decides the numbers of a length, as a record's setting has it."""
        own = {
            "length": length,
            "sequences": sequences,
            "chunk": self.chunk if reads_in_pieces(self.model, task) else None,
            "evaluation_seed": seed_of(self.recipe.evaluation_seed, length, self.recipe.seed),
            "chance": task.chance,
        }
        return own | self._shared

    @cached_property
    def _shared(self) -> dict[str, Any]:
        trained = record.read(self.folder / run_files.RECORDS)[0]
        return {
            "weights": run_files.digest_of(self.model),
            "trained_length": getattr(self.recipe.task, self.recipe.task.sized_by),
            "published": published_row(self.recipe),
            "training": to_json(self.recipe),
            "steps_done": trained.setting.get("steps_done"),
            "device": self.device.type,
            "backend": self.backend,
        }

    def measure(self, task: Task, asked: Mapping[str, Any], say: Say) -> Measured | LeftOut:
        return evaluate(
            self.model,
            task,
            seed=asked["evaluation_seed"],
            sequences=asked["sequences"],
            chunk=self.chunk,
            device=self.device,
            progress=_Progress(asked["length"], asked["sequences"] * task.length, say),
        )

    def records(
        self, asked: Mapping[str, Any], found: Measured | LeftOut, provenance: Mapping[str, Any]
    ) -> list[Record]:
        first = Record(
            experiment=EXPERIMENT,
            model=model_name(self.recipe.model),
            task=self.recipe.task.name,
            metric=LEFT_OUT,
            value=asked["length"],
            n=asked["sequences"],
            setting=asked,
            seed=self.recipe.seed,
            provenance={**provenance, "backend": self.backend},
        )
        if isinstance(found, LeftOut):
            return [replace(first, setting={**asked, "why": found.why})]
        setting = {
            **asked,
            "rows": found.rows,
            "seconds": round(found.seconds, 4),
            "tokens_per_second": round(found.tokens_per_second),
            "by_distance": [astuple(part) for part in found.by_distance],
        }
        whole = replace(first, metric=SEQUENCES, setting=setting, **_fraction(found.whole, found.sequences))
        if found.answers == found.sequences:
            return [whole]
        # SEQUENCES comes last: its presence says that the length is done.
        return [replace(whole, metric=TOKENS, **_fraction(found.right, found.answers)), whole]


def published_row(recipe: Recipe) -> str | None:
    """The row of Table 2 beside which a run stands: a model of its kind, width and depth, trained at its length.

    State size, Δ, initialisation and where the trigger stands (which the paper does not state) may differ: what was
    trained stands in the record.
    """
    task = recipe.task
    if not isinstance(task, InductionHeads) or replace(task, trigger="uniform") != InductionHeads():
        return None
    rows = (row for row in SYNTHETIC.values() if row.table == "table2")
    return next((row.row["model"] for row in rows if _kind(row.config) == _kind(recipe.model)), None)


def _kind(config: ModelConfig) -> tuple[object, ...]:
    names = ("mixer", "positions", "d_model", "n_layer", "vocab_size")
    return (type(config), *(getattr(config, name, None) for name in names))


def _fraction(right: int, of: int) -> dict[str, Any]:
    value = right / of
    return {"value": value, "n": of, "stderr": standard_error(value, of)}


_OPENING = b'{"experiment"'


class _File:
    """The records measured so far, of which a killed process leaves whole lengths."""

    def __init__(self, path: Path, again: Container[int]) -> None:
        """Of the lengths in `again`, those that were left out are forgotten."""
        self.path = path
        run_files.remove_unfinished(path.parent)
        content = path.read_bytes() if path.is_file() else b""
        there = list(self._parsed(content))
        self.done = {r.setting["length"] for r in there if r.metric == SEQUENCES}
        self.records = [r for r in there if (length := r.setting["length"]) in self.done or length not in again]
        if (whole := record.to_lines(self.records).encode()) != content:
            with weight_files.atomic(path) as part:
                part.write_bytes(whole)

    def _parsed(self, content: bytes) -> Iterator[Record]:
        # What follows the last end of a line was cut short, if it is of a record at all.
        *lines, last = content.split(b"\n")
        if last and not (last.startswith(_OPENING) or _OPENING.startswith(last)):
            raise ValueError(f"{self.path}: its end is not of a record")
        for number, line in enumerate(lines, start=1):
            try:
                found = record.from_json(json.loads(line))
                found.setting["length"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}:{number}: not a record of this experiment ({error})") from None
            yield found

    def check(self, asked: Mapping[int, Mapping[str, Any]]) -> None:
        """ValueError where what is there was measured with other settings, or of another run."""
        shared = {k: v for k, v in next(iter(asked.values())).items() if k not in OWN}
        for theirs in (found.setting for found in self.records):
            mine = asked.get(theirs["length"], shared)
            if (other := next((name for name in mine if mine[name] != theirs.get(name)), None)) is not None:
                raise ValueError(
                    f"{self.path} has length {theirs['length']} with other settings: {other} is not the same "
                    f"({_short(theirs.get(other))} there, {_short(mine[other])} now); name another folder"
                )

    def append(self, records: list[Record]) -> None:
        with run_files.appending(self.path) as file:
            file.write(record.to_lines(records).encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += records


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]} …"


class _Progress:
    """Says how far a length is, every so often."""

    def __init__(self, length: int, tokens: int, say: Say) -> None:
        self.length, self.tokens, self.say = length, tokens, now_and_then(say, PATIENCE)
        self.read = 0
        self.started = time.perf_counter()

    def __call__(self, tokens: int) -> None:
        self.read += tokens
        left = (time.perf_counter() - self.started) * (self.tokens / self.read - 1)
        self.say(f"length {self.length:,}: {self.read / self.tokens:.0%} read, {left:,.0f} s left")


def _line(length: int, found: Measured | LeftOut) -> str:
    if isinstance(found, LeftOut):
        return f"length {length:,}: {found.why}"
    return (
        f"length {length:,}: {found.whole} of {found.sequences} without an error  {found.seconds:.4g} s  "
        f"{found.tokens_per_second:.3g} tokens/s"
    )
