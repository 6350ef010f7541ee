"""What a training needs is refused before anything is made where it isn't there, and never where it might be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mambalab.models import build
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import SYNTHETIC, synthetic
from mambalab.tasks import AssociativeRecall, InductionHeads, Recipe, memory
from mambalab.tasks.recipes import RECIPES, with_model

CPU = torch.device("cpu")
BASE = Recipe(
    task=InductionHeads(),
    model=MambaConfig(d_model=64, n_layer=2, vocab_size=16, tie_embeddings=False),
    steps=1000,
    batch_size=8,
    checkpoint_every=1000,
)


LEAN = (
    {"selective_delta": False, "selective_B": False, "selective_C": False},
    {"d_state": 1, "dt_rank": 1},
    {"dt_rank": 64},
)


def refused_by(monkeypatch, gibibytes: float, recipe: Recipe) -> str | None:
    """What a machine with so much memory says to a recipe."""
    monkeypatch.setattr(memory, "total", lambda device: int(gibibytes * 2**30))
    try:
        memory.check(recipe, CPU)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_as_it_stands_fits_two_gibibytes(monkeypatch, recipe):
    assert refused_by(monkeypatch, 2, recipe) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": InductionHeads(length=2**20)}, "train on 8 rows of 1,048,576 tokens"),
        ({"curriculum": ((100, 64), (100, 2**20))}, "train on 8 rows of 1,048,576 tokens"),
        ({"batch_size": 2**15}, "train on 32768 rows of 256 tokens"),
        ({"model": replace(BASE.model, dt_rank=2**20)}, "train on 8 rows of 256 tokens"),
        ({"model": replace(BASE.model, vocab_size=2**24)}, "train 2,147,5"),
        ({"model": replace(synthetic("mha-abs").config, max_length=2**24)}, "train 2,147,6"),
        ({"model": replace(BASE.model, expand=2**10)}, "train on 8 rows of 256 tokens"),
        ({"sequences": 2**24}, "measure on 16777216 sequences of 256 tokens"),
    ],
    ids=str,
)
def test_what_no_memory_can_hold_is_named(monkeypatch, changes, says):
    recipe = replace(BASE, **changes)
    said = refused_by(monkeypatch, 4, recipe)
    assert said is not None
    assert said.startswith(f"no memory to {says}")
    assert said.endswith(" GiB or more, and cpu has 4")
    assert refused_by(monkeypatch, 2**14, recipe) is None


def test_logits_of_many_answers_count(monkeypatch):
    task = AssociativeRecall(vocab_size=2**16, pairs=64, length=256)
    recipe = replace(BASE, task=task, model=replace(BASE.model, vocab_size=2**16, d_model=8), sequences=1024)
    assert "measure on 1024 sequences" in (refused_by(monkeypatch, 8, replace(recipe, batch_size=1)) or "")
    assert "train on 1024 rows" in (refused_by(monkeypatch, 8, replace(recipe, batch_size=1024)) or "")


@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in SYNTHETIC), *(("s6", lean) for lean in LEAN)])
def test_no_more_is_counted_than_a_layer_keeps(name, changes, matmul):
    """Against the tensors that autograd holds for the backward pass of two layers beyond the first."""
    recipe = replace(with_model(BASE, name), matmul=matmul)
    one, three = (replace(recipe, model=replace(recipe.model, n_layer=n, **changes)) for n in (1, 3))
    counted = memory._kept(three) - memory._kept(one)
    assert 0 < counted <= (_held(three) - _held(one)) / (2 * 256)


def _held(recipe: Recipe) -> int:
    model, held = build(recipe.model, backend="cpu"), {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Kept, so that no other storage takes its place.
        held[storage.data_ptr()] = storage
        return tensor

    batch = replace(recipe.task, length=256).batch(0, 0, 2)  # pyright: ignore[reportArgumentType]
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=recipe.matmul == "bfloat16"),
    ):
        model(batch.tokens, logits_at=batch.logits_at)
    return sum(storage.nbytes() for pointer, storage in held.items() if pointer not in weights)
