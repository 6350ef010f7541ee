"""Grids hold the paper's cells, which differ in what is ablated alone, and each of them can be trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mambalab.models import build
from mambalab.tasks import AssociativeRecall, InductionHeads, SelectiveCopying
from mambalab.tasks.ablations import BASES, GRIDS, Cell, cells, grid, tasks
from mambalab.tasks.recipes import Recipe, to_json
from mambalab.tasks.step import Trainee

ABLATED = {
    "selectivity": {"model.selective_delta", "model.selective_B", "model.selective_C"},
    "state-size": {"model.d_state", "model.selective_B", "model.selective_C"},
    "delta-rank": {"model.selective_delta", "model.dt_rank"},
    "a-init": {"model.A_init"},
}
SMALL = {
    "induction-heads": InductionHeads(length=8),
    "selective-copying": SelectiveCopying(places=6, copies=2),
    "associative-recall": AssociativeRecall(vocab_size=256),
}
EACH = [cell for g in GRIDS.values() for cell in cells(g, [BASES[name] for name in g.tasks], (0,))]


def fields(recipe: Recipe) -> dict[str, object]:
    """What the recipe says, with the fields of its parts under dotted names."""
    content = to_json(recipe)
    parts = {name: content.pop(name) for name in ("task", "model", "optimiser")}
    return content | {f"{part}.{name}": value for part in parts for name, value in parts[part].items()}


def changed(cell: Cell) -> set[str]:
    mine, base = fields(cell.recipe), fields(BASES[cell.recipe.task.name])
    return {name for name in mine | base if mine.get(name) != base.get(name)}


def small(cell: Cell) -> Recipe:
    """The cell at a size at which it takes no time; only the task of recall must have room for its pairs."""
    base = BASES[cell.recipe.task.name]
    base = replace(base, task=SMALL[base.task.name], model=replace(base.model, d_model=16, n_layer=1), batch_size=1)
    return GRIDS[cell.grid].changes[cell.name].of(base)


def test_the_grids_have_the_cells_of_the_papers_tables():
    assert {name: len(g.changes) for name, g in GRIDS.items()} == {
        "selectivity": 8,
        "state-size": 10,
        "delta-rank": 8,
        "a-init": 4,
        "architecture": 10,
        "recall": 10,
    }
    assert set(GRIDS["selectivity"].changes) >= {"none", "B", "delta", "delta-B-C"}
    assert set(GRIDS["architecture"].changes) >= {"s4", "h3-hyena", "mamba-s6", "mamba-s4-real"}


@pytest.mark.parametrize("name", GRIDS)
def test_no_two_cells_of_a_grid_are_the_same(name):
    recipes = [cell.recipe for cell in EACH if cell.grid == name]
    assert all(recipes.index(recipe) == i for i, recipe in enumerate(recipes))


@pytest.mark.parametrize("name", ABLATED)
def test_cells_differ_from_their_base_only_in_what_is_ablated(name):
    of_grid = [changed(cell) for cell in EACH if cell.grid == name]
    assert set().union(*of_grid) == ABLATED[name]
    # One of them is the base itself; its rank is "auto", which is 4.
    assert ({"model.dt_rank"} if name == "delta-rank" else set()) in of_grid


@pytest.mark.parametrize("name", ["architecture", "recall"])
def test_cells_with_another_model_keep_its_shape_and_how_it_is_trained(name):
    for cell in (cell for cell in EACH if cell.grid == name):
        base = BASES[cell.recipe.task.name]
        assert {key for key in changed(cell) if not key.startswith("model.")} <= {"task.pairs"}
        for shape in ("d_model", "n_layer", "vocab_size"):
            assert getattr(cell.recipe.model, shape) == getattr(base.model, shape)


@pytest.mark.parametrize("task", ["induction-heads", "selective-copying"])
def test_every_cell_on_a_task_has_the_same_steps_at_length_256(task):
    recipes = [cell.recipe for cell in EACH if cell.recipe.task.name == task]
    assert len({(recipe.steps, recipe.batch_size, recipe.optimiser) for recipe in recipes}) == 1
    assert {getattr(recipe.task, recipe.task.sized_by) for recipe in recipes} == {256}


def test_seeds_change_the_seed_alone_and_come_one_after_the_other():
    made = cells(GRIDS["a-init"], [BASES["induction-heads"]], (3, 5), ["half", "complex"])
    assert [str(cell) for cell in made] == [
        f"induction-heads {c} seed {s}" for s in (3, 5) for c in ("half", "complex")
    ]
    assert replace(made[2].recipe, seed=3) == made[0].recipe
    assert made[0].folder.as_posix() == "induction-heads/half/seed-3"
    assert made[0].experiment == "ablation-a-init"


@pytest.mark.parametrize("cell", EACH, ids=lambda cell: f"{cell.grid}-{cell.name}-{cell.recipe.task.name}")
def test_every_cell_takes_a_step(cell, unchecked):
    recipe = small(cell)
    trainee = Trainee(
        recipe, build(recipe.model, backend="cpu" if recipe.task.length > 8 else "reference"), torch.device("cpu")
    )
    before = {name: parameter.detach().clone() for name, parameter in trainee.model.named_parameters()}
    trainee.advance(recipe.task)
    assert trainee.seen[0, 0].isfinite()
    assert not [name for name, after in trainee.model.named_parameters() if torch.equal(before[name], after)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: grid("selectivty"), "unknown ablation 'selectivty'; nearest: selectivity"),
        (lambda: tasks(GRIDS["recall"], ["induction-heads"]), "unknown task of recall 'induction-heads'; known: assoc"),
        (lambda: tasks(GRIDS["a-init"], ["induction-head"]), "unknown task of a-init 'induction-head'; nearest: induc"),
        (
            lambda: cells(GRIDS["delta-rank"], BASES.values(), (0,), ["rank-3"]),
            "unknown cell of delta-rank 'rank-3'; nearest: rank-",
        ),
    ],
)
def test_unknown_names_get_their_neighbours(wrong, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        wrong()
