"""A training that is timed: steps as the trainer takes them, and the same steps launched from Python."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial

import torch

from ..models.building import Model
from ..tasks.recipes import Recipe
from ..tasks.step import Trainee, matrix_products, stepper
from .bench import Call

STEPS = 10  # of a call, and of one CUDA graph
METRIC = "training steps/s"


def in_calls(recipe: Recipe) -> Recipe:
    """The recipe without its curriculum, to be trained STEPS steps at a time."""
    every = dict.fromkeys(("log_every", "evaluate_every", "checkpoint_every"), STEPS)
    return replace(recipe, curriculum=(), steps=-(-recipe.steps // STEPS) * STEPS, **every)


def ended(call: Call, device: torch.device) -> Call:
    """The call, to the end of what it gives the device to do."""

    def whole() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


class Loop:
    """A model at training: the same rows, loss and optimiser whosever it is."""

    def __init__(self, recipe: Recipe, model: Model, device: torch.device) -> None:
        self.recipe = recipe
        self.trainee = Trainee(recipe, model, device)
        self.begun = {name: tensor.clone() for name, tensor in self.trainee.tensors().items()}

    def plain_steps(self) -> None:
        """STEPS steps, each of them launched from Python."""
        with matrix_products(self.recipe.matmul):
            for _ in range(STEPS):
                self.trainee.advance(self.recipe.task)

    @cached_property
    def graphs(self) -> Call:
        """STEPS steps as the trainer takes them, captured once."""
        return partial(stepper(self.trainee, self.recipe.task, STEPS), STEPS)

    def plainly(self) -> dict[str, torch.Tensor]:
        """The tensors after `plain_steps`, and what was seen of them; then it begins anew."""
        self.plain_steps()
        return self._taken_back()

    def in_graphs(self) -> dict[str, torch.Tensor]:
        """The same of `graphs`."""
        self.graphs()
        return self._taken_back()

    def _taken_back(self) -> dict[str, torch.Tensor]:
        found = {**self.trainee.tensors(), "seen": self.trainee.seen}
        found = {name: tensor.clone() for name, tensor in found.items()}
        self.trainee.restore(self.begun)
        return found
