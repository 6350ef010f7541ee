"""The paper's ablations as grids: every cell a recipe that differs from its base in what is ablated, and in no more.

Architectures are the rows of Table 1 as they are: S4 has 64 states a channel, S6 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..models.registry import nearest
from ..models.synthetic import SYNTHETIC, synthetic
from .associative_recall import AssociativeRecall
from .induction_heads import InductionHeads
from .recipes import Optimiser, Recipe, with_model
from .selective_copying import SelectiveCopying

EXPERIMENT = "ablation-"
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a cell has in the place of its base's: a model by name, fields of the model, fields of the task.

    A model by name keeps the base's width, depth and vocabulary.
    """

    name: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)

    def of(self, base: Recipe) -> Recipe:
        """The recipe of the cell."""
        model = base.model
        if self.name is not None:
            model = replace(with_model(base, self.name).model, d_model=model.d_model, n_layer=model.n_layer)
        return replace(base, model=replace(model, **self.model), task=replace(base.task, **self.task))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is varied: the cells by name, and the tasks on which each is trained."""

    name: str
    tasks: tuple[str, ...]
    changes: Mapping[str, Change]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a grid: its recipe says the task and the seed."""

    grid: str
    name: str
    recipe: Recipe

    @property
    def experiment(self) -> str:
        """What its records are filed under."""
        return EXPERIMENT + self.grid

    @property
    def folder(self) -> Path:
        """Where it is trained, below the folder of the ablation."""
        return Path(self.recipe.task.name, self.name, f"seed-{self.recipe.seed}")

    def __str__(self) -> str:
        return f"{self.recipe.task.name} {self.name} seed {self.recipe.seed}"


def grid(name: str) -> Grid:
    """The grid called `name`; a ValueError that gives the nearest names when there is none."""
    return nearest(name, GRIDS, "ablation")


def tasks(grid: Grid, names: Iterable[str] = ()) -> list[str]:
    """These tasks of a grid, all of them for none; a ValueError that gives the nearest names for one that is none."""
    known = {name: name for name in grid.tasks}
    return [nearest(name, known, f"task of {grid.name}") for name in dict.fromkeys(names)] or list(grid.tasks)


def cells(grid: Grid, bases: Iterable[Recipe], seeds: Sequence[int] = SEEDS, only: Iterable[str] = ()) -> list[Cell]:
    """A grid's cells on each base: all with the first seed, then all with the next.

    only  names of cells; none: all of them. ValueError, with the nearest names, for one that is none.
    """
    kept = {name: nearest(name, grid.changes, f"cell of {grid.name}") for name in only} or grid.changes
    return [
        Cell(grid=grid.name, name=name, recipe=replace(change.of(base), seed=seed))
        for seed, base, (name, change) in product(dict.fromkeys(seeds), list(bases), kept.items())
    ]


def _base(task: InductionHeads | SelectiveCopying | AssociativeRecall, **settings: Any) -> Recipe:
    """The Mamba of tables 1 and 2 with the released Δ rank, d_model / 16, as the paper's ablations have it."""
    model = replace(synthetic("mamba-s6").config, vocab_size=task.vocab_size)
    optimiser = Optimiser(learning_rate=1e-3, warmup=200, decay="cosine", final=0.01)
    return Recipe(task=task, model=model, optimiser=optimiser, batch_size=64, matmul="tf32", solved_after=5, **settings)


BASES: Mapping[str, Recipe] = MappingProxyType(
    {
        base.task.name: base
        for base in (
            _base(InductionHeads(), steps=10_000, evaluate_every=200, checkpoint_every=2000),
            _base(SelectiveCopying(places=256), steps=12_000, evaluate_every=500, checkpoint_every=2000),
            _base(AssociativeRecall(), steps=12_000, evaluate_every=500, checkpoint_every=2000),
        )
    }
)
"""What a grid's cells on a task are made from: so many steps for each of them, or until it has long been solved."""

_BOTH = (InductionHeads.name, SelectiveCopying.name)
_SUBSETS = [dict(zip(("delta", "B", "C"), flags, strict=True)) for flags in product((False, True), repeat=3)]


def _selective(**flags: bool) -> Change:
    return Change(model={f"selective_{name}": value for name, value in flags.items()})


def _state_size(n: int, selective: bool) -> Change:
    return Change(model={"d_state": n, "selective_B": selective, "selective_C": selective})


def _architecture(name: str, **settings: Any) -> Change:
    """A row of table 1, but Hyena's window, as in table 2, does not fall within the rows of the base."""
    is_hyena = name.endswith("hyena")
    return Change(name=name, model={"filter_length": 2**20} | settings if is_hyena else settings)


def _grid(name: str, changes: Mapping[str, Change], tasks: tuple[str, ...] = _BOTH) -> Grid:
    return Grid(name=name, tasks=tasks, changes=MappingProxyType(dict(changes)))


_INITS = {"n-plus-1": "-(n+1)", "half": "-1/2", "random": "random", "complex": "complex"}
_TABLE_1 = [row.name for row in SYNTHETIC.values() if row.table == "table1"]
_MIXERS = {"mamba": "mamba-s6", "attention": "mha-rope"}

GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        grid.name: grid
        for grid in (
            _grid(
                "selectivity",
                {"-".join(n for n in subset if subset[n]) or "none": _selective(**subset) for subset in _SUBSETS},
            ),
            _grid(
                "state-size",
                {
                    f"n-{n}-{'selective' if selective else 'static'}": _state_size(n, selective)
                    for selective in (False, True)
                    for n in (1, 2, 4, 8, 16)
                },
            ),
            _grid(
                "delta-rank",
                {"static": _selective(delta=False)}
                | {f"rank-{rank}": Change(model={"dt_rank": rank}) for rank in (1, 2, 4, 8, 16, 32, 64)},
            ),
            _grid("a-init", {name: Change(model={"A_init": init}) for name, init in _INITS.items()}),
            _grid(
                "architecture",
                {name: _architecture(name) for name in _TABLE_1}
                | {f"{name}-real": _architecture(name, s4_init="s4d-real") for name in ("h3-s4", "mamba-s4")},
            ),
            _grid(
                "recall",
                {
                    f"{mixer}-{pairs}": Change(name=name, task={"pairs": pairs})
                    for mixer, name in _MIXERS.items()
                    for pairs in (4, 8, 16, 32, 64)
                },
                (AssociativeRecall.name,),
            ),
        )
    }
)
"""Tables 7, 10, 9, 8 and 6 (with 1) of the paper, and associative recall by the number of pairs."""
