"""`mambalab bench train`: the trainer's steps a second, checked, then timed beside the same steps without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..ext import backends
from ..models import build
from ..reports.record import Record
from ..tasks.recipes import Recipe, to_json
from . import bench, bench_train_shared
from .bench import OURS, LeftOut, RedCheck, Times
from .bench_peers import Peer
from .bench_train_loop import METRIC, STEPS, Loop, ended, in_calls
from .bench_train_peers import MAMBA_SSM, PLAIN
from .provenance import provenance

WHAT = "data, forward, cross-entropy at the answers, backward, and torch's fused AdamW, on every side"
# Largest difference of the losses of the first steps, where rounding may differ.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured: each recipe as it is trained, on `device`; `repeats` rounds, None adapts, at least 3.

    at_once   and so many of it at the same time, for each number
    """

    recipes: tuple[tuple[str, Recipe], ...]
    device: str = "cpu"
    peers: bool = False
    at_once: tuple[int, ...] = ()
    repeats: int | None = None
    call_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ValueError("no recipe is named")
        if self.repeats is not None and self.repeats < 3:
            raise ValueError(f"repeats must be at least 3, not {self.repeats}")


def run(settings: Settings, *, command: str = "", say: Callable[[str], object] = lambda line: None) -> list[Record]:
    """Check and time every recipe; the records of all. RedCheck, before its speed is known, where ours is wrong."""
    records: list[Record] = []
    for name, recipe in settings.recipes:
        measured = measure(name, recipe, settings)
        say(measured.line())
        backend = backends.pick(settings.device, None, recipe.model.is_complex).name
        origin = provenance(
            backend=backend, kernel=backends.kernel_digest(backend), device=settings.device, dtype=recipe.matmul,
            command=command,
        )  # fmt: skip
        records += measured.records(origin)
        for count in settings.at_once:
            shared = bench_train_shared.measure(measured.shape(), recipe, settings.device, count, origin)
            say(f"{shared.task} {recipe.matmul}: {shared.value:,.4g} steps/s")
            records.append(shared)
    return records


def measure(name: str, recipe: Recipe, settings: Settings) -> Measured:
    """One recipe: checks first, then every candidate in turn."""
    device, short = torch.device(settings.device), in_calls(recipe)
    us = Loop(short, build(short.model, seed=short.seed), device)
    wanted = us.plainly()
    # Without graphs there is nothing that the plain loop would be beside.
    rows = {row.name: row for row in [MAMBA_SSM] * settings.peers + [PLAIN] * (device.type == "cuda")}
    loops, absent = _loops(rows.values(), short, device)
    errors, left_out = bench.admit(
        {candidate: partial(check, candidate, loop, wanted) for candidate, loop in ({OURS: us} | loops).items()},
        limits={},
        call_seconds=settings.call_seconds,
        place=name,
    )
    calls = {candidate: (us.graphs if candidate == OURS else loops[candidate].plain_steps) for candidate in errors}
    return Measured(
        name=name,
        recipe=recipe,
        rows=tuple(row for row in rows.values() if row.name in errors),
        errors=errors,
        absent=absent | left_out,
        times=bench.interleave(
            {candidate: ended(call, device) for candidate, call in calls.items()}, repeats=settings.repeats
        ),
    )


def _loops(rows: Iterable[Peer], recipe: Recipe, device: torch.device) -> tuple[dict[str, Loop], dict[str, str]]:
    """Each row's model at training, and why each other has none."""
    loops, absent = {}, {}
    for row in rows:
        if reason := row.missing():
            absent[row.name] = reason
            continue
        try:
            loops[row.name] = Loop(recipe, row.load()(recipe), device)
        except LeftOut as why:
            absent[row.name] = str(why)
    return loops, absent


def check(name: str, loop: Loop, wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of a loss; RedCheck for one that is too large, or for ours in any bit of any tensor."""
    found = loop.in_graphs() if name == OURS else loop.plainly()
    if name == OURS:
        for tensor, value in wanted.items():
            if not torch.equal(found[tensor], value):
                raise RedCheck(f"{name}: {tensor} is not what the same steps make of it without a graph")
    size = float((found["seen"][0] - wanted["seen"][0]).abs().max())
    allowed = TOLERANCES[loop.recipe.matmul]
    if not size <= allowed:
        raise RedCheck(f"{name}: a loss differs by {size:.1e}, at most {allowed:g} is allowed")
    return size


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one recipe gave: the largest difference of a loss, and why each other peer was left out."""

    name: str
    recipe: Recipe
    rows: tuple[Peer, ...]
    errors: dict[str, float]
    absent: dict[str, str]
    times: dict[str, Times]

    def line(self) -> str:
        """One line for a person."""
        mine = self.times[OURS].median
        ratios = bench.ratios(self.times, (row.name for row in self.rows))
        return f"{self.shape()} {self.recipe.matmul}: {', '.join([f'{STEPS / mine:,.4g} steps/s', *ratios])}"

    def shape(self) -> str:
        """The task and the batch."""
        return f"{self.name}, {self.recipe.batch_size} x {self.recipe.task.length}"

    def records(self, origin: dict[str, Any]) -> Iterator[Record]:
        """One for each that was timed."""
        timed = {OURS: "tasks.train's own steps, on a GPU replayed as CUDA graphs; its last layer stops at the answers"}
        timed |= {row.name: row.timed for row in self.rows}
        others = {row.name: row.provenance(origin) for row in self.rows}
        for name, times in self.times.items():
            setting = {
                "recipe": to_json(self.recipe),
                "dtype": self.recipe.matmul,
                "timed": timed[name],
                "best": STEPS / times.best,
                "loss_difference": self.errors[name],
            }
            yield Record(
                experiment="bench-train",
                model=name,
                task=self.shape(),
                metric=METRIC,
                setting=setting | ({"what": WHAT, "left_out": self.absent} if name == OURS else {}),
                seed=self.recipe.seed,
                value=STEPS / times.median,
                n=len(times.seconds),
                provenance=others.get(name, origin),
            )
