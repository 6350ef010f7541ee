"""Accuracy at any length, to 2^24 tokens and beyond, in memory that does not grow with it where a model has a state.

The rows of a length are fixed: row i is row i % b of step i // b of a seed that is the length's own, and b is 256, or
fewer for long rows of a task that can't be read in pieces. How they are read changes rounding, and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..models.chunks import CHUNK
from .batch import Task
from .memory import GENERATED, is_shortage, total
from .randomness import Device, Step

SEQUENCES = 256
# Rows made at once, and the most tokens of rows that can only be made whole.
BLOCK, BLOCK_TOKENS = 256, 2**22
# Tokens of one forward pass: enough to keep a GPU busy (some 10 GB at width 64), few enough for a CPU's cache.
PASS_TOKENS: Mapping[str, int] = MappingProxyType({"cuda": 2**21, "cpu": 2**13})


@runtime_checkable
class Reader(Protocol):
    """A model: from tokens, `state` and `logits_at` to logits and the state after the tokens, as `models` have it."""

    @property
    def carries_state(self) -> bool: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Streamed(Task, Protocol):
    """A task whose rows come in pieces and are asked one thing, at their end, about one place: its distance counts."""

    def chunk(
        self, seed: int, step: Step, size: int, begin: int, end: int, device: Device = "cpu"
    ) -> Int64[Tensor, "b c"]: ...
    def targets(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Int64[Tensor, "b 1"]: ...
    def places(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Int64[Tensor, "b 1"]: ...


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The answers whose query stands `nearest` to 2 `nearest` - 1 tokens behind what it asks for; a power of two."""

    nearest: int
    right: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model got right at one length.

    right, answers    right answers, and how many were asked for
    whole, sequences  rows with every answer right, and how many were read
    chunk, rows       tokens of a row, and rows, in one forward pass
    seconds           wall clock, the making of the rows included
    by_distance       the answers by distance, near ones first; empty for a task that is not Streamed
    """

    length: int
    right: int
    answers: int
    whole: int
    sequences: int
    chunk: int
    rows: int
    seconds: float
    by_distance: tuple[Bin, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.sequences * self.length / self.seconds


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A length at which nothing was measured, and why: "out of memory", or "not possible" and the rule."""

    length: int
    sequences: int
    why: str


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How rows are read: tokens of a row, and rows, in one pass; told after each pass how many tokens it had."""

    chunk: int
    rows: int
    device: torch.device
    progress: Callable[[int], object]


def seed_of(base: int, length: int, training: int) -> int:
    """The seed of a length's rows, counted from `base` past the one of the training data: lengths share none with it.

    >>> [seed_of(100, length, training=102) for length in (1, 2, 3)]
    [101, 103, 104]
    """
    return (base + length + ((training - base) % 2**63 <= length)) % 2**63


@torch.no_grad()
def evaluate(
    model: Reader,
    task: Task,
    *,
    seed: int,
    sequences: int = SEQUENCES,
    chunk: int = CHUNK,
    pass_tokens: int | None = None,
    device: Device = "cpu",
    progress: Callable[[int], object] = lambda tokens: None,
) -> Measured | LeftOut:
    """What the model gets right of so many rows of `seed`; it and the rows are on `device`.

    A model with a state reads a Streamed task `chunk` tokens at a time, any other model or task whole rows; one pass
    has at most `pass_tokens` tokens (default: `PASS_TOKENS`), or one row. Where that is too much for the memory it
    takes half as many rows, and what fails with one is left out. ValueError for numbers that are not positive.
    """
    for name, count in (("sequences", sequences), ("chunk", chunk)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    place = torch.device(device)
    in_pieces = reads_in_pieces(model, task)
    width = min(chunk, task.length) if in_pieces else task.length
    rows = max(1, min(BLOCK, sequences, (pass_tokens or PASS_TOKENS[place.type]) // width))
    read = _read_in_pieces if in_pieces else _read_whole
    there = total(place)
    if not in_pieces and there is not None and task.length * GENERATED > there:
        return LeftOut(length=task.length, sequences=sequences, why="out of memory")
    while True:
        try:
            reading = _Reading(chunk=width, rows=rows, device=place, progress=progress)
            return _measure(read, model, task, seed, sequences, reading)
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            if rows == 1:
                return LeftOut(length=task.length, sequences=sequences, why="out of memory")
        except _NotPossibleError as error:
            return LeftOut(length=task.length, sequences=sequences, why=f"not possible: {error}")
        rows //= 2


def reads_in_pieces(model: Reader, task: Task) -> bool:
    """Whether the memory that `evaluate` takes is the same at every length."""
    return model.carries_state and isinstance(task, Streamed)


class _NotPossibleError(Exception):
    """A row longer than the model reads."""


Read = Callable[..., Bool[Tensor, "b q"]]


def _measure(read: Read, model: Reader, task: Task, seed: int, sequences: int, reading: _Reading) -> Measured:
    started = time.perf_counter()
    right, distances = [], Counter()
    for step, size in _blocks(task, sequences):
        found = read(model, task, seed, step, size, reading).cpu()
        right.append(found)
        if isinstance(task, Streamed):
            distance = task.length - 1 - task.places(seed, step, size, reading.device)
            # Exact, where a float's logarithm would round up.
            bins = [value.bit_length() - 1 for value in distance[:, 0].tolist()]
            distances.update(zip(bins, found[:, 0].tolist(), strict=True))
    answers = torch.cat(right)
    return Measured(
        length=task.length,
        right=int(answers.sum()),
        answers=answers.numel(),
        whole=int(answers.all(1).sum()),
        sequences=sequences,
        chunk=reading.chunk,
        rows=reading.rows,
        seconds=time.perf_counter() - started,
        by_distance=_bins(distances),
    )


def _blocks(task: Task, sequences: int) -> Iterator[tuple[int, int]]:
    """Steps of the task and rows of each, `sequences` in all."""
    block = BLOCK if isinstance(task, Streamed) else max(1, min(BLOCK, BLOCK_TOKENS // task.length))
    for step, first in enumerate(range(0, sequences, block)):
        yield step, min(block, sequences - first)


def _bins(distances: Counter[tuple[int, bool]]) -> tuple[Bin, ...]:
    exponents = sorted({exponent for exponent, _ in distances})
    return tuple(
        Bin(nearest=2**e, right=distances[e, True], of=distances[e, True] + distances[e, False]) for e in exponents
    )


def _read_in_pieces(model: Reader, task: Streamed, seed: int, step: int, size: int, reading: _Reading) -> Tensor:
    """Which rows were answered right: every row has a state, and a piece of all rows is made at a time."""
    states = [None] * -(-size // reading.rows)
    logits = []
    for begin in range(0, task.length, reading.chunk):
        end = min(begin + reading.chunk, task.length)
        tokens = task.chunk(seed, step, size, begin, end, reading.device)
        for i, part in enumerate(tokens.split(reading.rows)):
            last = torch.arange(part.shape[1] - 1, part.numel(), part.shape[1], device=reading.device)
            found, states[i] = model(part, state=states[i], logits_at=last if end == task.length else last[:0])
            logits.append(found)
            reading.progress(part.numel())
    return torch.cat(logits).argmax(-1, keepdim=True) == task.targets(seed, step, size, reading.device)


def _read_whole(model: Reader, task: Task, seed: int, step: int, size: int, reading: _Reading) -> Tensor:
    """Which answers were right, whole rows in a pass."""
    batch = task.batch(seed, step, size, reading.device)
    right = []
    for part in batch.split(reading.rows):
        try:
            logits, _ = model(part.tokens, logits_at=part.logits_at)
        except ValueError as error:
            raise _NotPossibleError(error) from error
        right.append(logits.argmax(-1).view(part.targets.shape) == part.targets)
        reading.progress(part.tokens.numel())
    return torch.cat(right)
