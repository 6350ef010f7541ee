"""Recipes: everything that decides what a training run learns, as frozen values; the paper's, and quicker ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from ..models import architectures
from ..models.architectures import ModelConfig
from ..models.registry import nearest
from ..models.synthetic import SYNTHETIC, synthetic
from .associative_recall import AssociativeRecall
from .batch import Task, check_counts
from .induction_heads import InductionHeads
from .randomness import ROWS
from .selective_copying import SelectiveCopying

TASKS: Mapping[str, type[Any]] = {task.name: task for task in (InductionHeads, SelectiveCopying, AssociativeRecall)}
DECAYS = ("constant", "linear", "cosine")
PRECISIONS = MappingProxyType({"float32": "ieee", "tf32": "tf32", "bfloat16": "tf32"})
"""What `matmul` may be, with torch's word for products of float32 matrices."""


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Adam, its weight decay decoupled (AdamW) where there is any, and its learning rate step by step.

    The rate rises linearly over the first `warmup` steps, and over the last `decay_steps` (None: over all that follow)
    it falls to `final` times the full one. `clip` bounds the norm of the gradient.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_steps: int | None = None
    final: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, warmup=0)
        if self.decay_steps is not None:
            check_counts(self, decay_steps=1)
        if self.clip == 0:
            raise ValueError("clip must be above 0, which would let nothing be learnt, or none")
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, not {self.decay!r}")
        for name, low, high in (
            ("learning_rate", 0, math.inf),
            ("epsilon", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("clip", 0, math.inf),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("final", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and low <= value < high):
                raise ValueError(f"{name} must be a number from {low} to below {high}, not {value!r}")

    def misfit(self, steps: int) -> str | None:
        """Why so many steps have no room for the schedule; None where they have."""
        if self.warmup > steps:
            return f"optimiser.warmup must be at most steps, {steps}, not {self.warmup}"
        if self.decay != "constant" and self.warmup + (self.decay_steps or 0) > steps:
            return (
                f"optimiser.warmup and decay_steps must be at most steps, {steps}, together, not "
                f"{self.warmup} + {self.decay_steps}"
            )
        return None

    def rate(self, step: Tensor, steps: int) -> Tensor | float:
        """The learning rate of the update that follows `step` others, of `steps` in all."""
        rate: Tensor | float = self.learning_rate
        if self.warmup:
            rate = rate * ((step + 1) / self.warmup).clamp(max=1)
        if self.decay != "constant":
            falling = self.decay_steps or max(1, steps - self.warmup)
            fallen = ((step - (steps - falling)) / falling).clamp(0, 1)
            left = 1 - fallen if self.decay == "linear" else (1 + torch.cos(math.pi * fallen)) / 2
            rate = rate * (self.final + (1 - self.final) * left)
        return rate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run: the task, the model, how it is optimised, and how often it is looked at.

    seed            of the initial weights and of the data
    curriculum      (steps, length) pairs: the task is first trained at these lengths, one after the other
    matmul          how matrices are multiplied in training: float32; tf32, on a GPU (10 bits of mantissa, twice as fast
                    and more); or bfloat16, by autocast, with what lies between products in bfloat16 too. Parameters,
                    residual stream and states are float32 in all, and so is the model whose accuracy is measured
    log_every       steps from one line of the log to the next; all other numbers of steps are multiples of it
    sequences       rows of the fixed set on which accuracy is measured; it is drawn from `evaluation_seed`
    solved_after    stop when that many measurements in a row found every answer right; 0: never
    """

    task: Task
    model: ModelConfig
    optimiser: Optimiser = field(default_factory=Optimiser)
    steps: int
    batch_size: int
    seed: int = 0
    curriculum: tuple[tuple[int, int], ...] = ()
    matmul: Literal["float32", "tf32", "bfloat16"] = "float32"
    log_every: int = 100
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    sequences: int = 256
    evaluation_seed: int = 2**62
    solved_after: int = 0

    def __post_init__(self) -> None:
        check_counts(self, steps=1, batch_size=1, log_every=1, evaluate_every=1, checkpoint_every=1, sequences=1)
        check_counts(self, solved_after=0)
        for name in ("seed", "evaluation_seed"):
            if not isinstance(getattr(self, name), int) or not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must be an integer from 0 to 2^63 - 1, not {getattr(self, name)!r}")
        if self.seed == self.evaluation_seed:
            raise ValueError(f"evaluation_seed must not be the seed of the training data, {self.seed}")
        for name in ("batch_size", "sequences"):
            if getattr(self, name) > ROWS:
                raise ValueError(f"{name} must be at most 2^24, not {getattr(self, name)}")
        if self.matmul not in PRECISIONS:
            raise ValueError(f"matmul must be one of {', '.join(PRECISIONS)}, not {self.matmul!r}")
        if self.model.vocab_size < self.task.vocab_size:
            raise ValueError(
                f"model.vocab_size must be at least task.vocab_size, not {self.model.vocab_size} < "
                f"{self.task.vocab_size}"
            )
        self._check_steps()

    def _check_steps(self) -> None:
        # All at once: whoever makes a run small has to change several of them.
        if wrong := list(self._wrong_steps()):
            raise ValueError("; ".join(wrong))
        for _, length in self.curriculum:
            self.task_of_size(length)

    def _wrong_steps(self) -> Iterator[str]:
        named = {name: getattr(self, name) for name in ("steps", "evaluate_every", "checkpoint_every")}
        named |= {f"curriculum[{i}]": stage[0] for i, stage in enumerate(self.curriculum)}
        for name, count in named.items():
            if count < 1 or count % self.log_every:
                yield f"{name} must be a multiple of log_every, {self.log_every}, not {count}"
        staged = sum(count for count, _ in self.curriculum)
        if staged > self.steps:
            yield f"the curriculum has more steps than the recipe, {staged} > {self.steps}"
        if misfit := self.optimiser.misfit(self.steps):
            yield misfit

    def task_of_size(self, size: int) -> Task:
        """The task with rows of this size, counted as its `sized_by` field counts."""
        return replace(self.task, **{self.task.sized_by: size})  # pyright: ignore[reportArgumentType]

    def stage(self, step: int) -> tuple[Task, int]:
        """What is trained after `step` steps, and up to which step."""
        until = 0
        for count, size in self.curriculum:
            until += count
            if step < until:
                return self.task_of_size(size), until
        return self.task, self.steps

    def is_measured(self, step: int) -> bool:
        """Whether accuracy is measured after so many steps."""
        return step % self.evaluate_every == 0 or step == self.steps

    def stages_after(self, step: int) -> Iterator[tuple[int, int]]:
        """(steps, tokens of a row) of all that is left to train after `step` steps."""
        while step < self.steps:
            task, until = self.stage(step)
            yield until - step, task.length
            step = until


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON, from which `from_json` makes it again."""
    content = asdict(recipe)
    content["task"] = {"name": recipe.task.name} | content["task"]
    content["model"] = architectures.to_json(recipe.model)
    content["curriculum"] = [list(stage) for stage in recipe.curriculum]
    return content


def from_json(content: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote, be it before some setting was there; ValueError for what is none."""
    try:
        task = dict(content["task"])
        return Recipe(
            task=TASKS[task.pop("name")](**task),
            model=architectures.from_json(content["model"]),
            optimiser=Optimiser(**content["optimiser"]),
            curriculum=tuple((steps, length) for steps, length in content["curriculum"]),
            **{f.name: content[f.name] for f in fields(Recipe) if f.name not in _NESTED and f.name in content},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a recipe: {error}") from None


_NESTED = ("task", "model", "optimiser", "curriculum")


def recipe(name: str) -> Recipe:
    """The recipe called `name`; a ValueError that gives the nearest names when there is none."""
    return nearest(name, RECIPES, "task")


def with_model(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the model called `name` in its place, which gets an embedding of the task's symbols.

    ValueError, with the nearest names, when there is none.
    """
    return replace(recipe, model=replace(synthetic(name).config, vocab_size=recipe.task.vocab_size))


def _table1(name: str) -> Recipe:
    """A row of table 1, trained as all of them are."""
    return with_model(_copying, name)


def _table2(name: str) -> Recipe:
    """A row of table 2, trained for as many epochs, and at the learning rate, as the paper has for it."""
    rate, epochs = _TABLE2[name]
    return replace(with_model(_induction, name), optimiser=Optimiser(learning_rate=rate), steps=epochs * _EPOCH)


# Mamba, E.1: an epoch is 8192 steps; the better of two learning rates, and the epoch after which a row is reported.
_EPOCH = 8192
_TABLE2 = {
    "mha-abs": (2e-4, 25),
    "mha-rope": (2e-4, 50),
    "mha-xpos": (2e-4, 50),
    "h3": (2e-4, 10),
    "hyena": (2e-4, 10),
    "mamba": (1e-3, 25),
}

_induction = Recipe(
    task=InductionHeads(),
    model=synthetic("mamba").config,
    optimiser=Optimiser(learning_rate=1e-3),
    steps=25 * _EPOCH,
    batch_size=8,
    log_every=128,
    evaluate_every=_EPOCH // 4,
    checkpoint_every=_EPOCH // 4,
)
_copying = Recipe(
    task=SelectiveCopying(),
    model=synthetic("mamba-s6").config,
    optimiser=Optimiser(learning_rate=1e-4),
    steps=400_000,
    batch_size=64,
    evaluate_every=5000,
    checkpoint_every=5000,
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "induction-heads": _induction,
        "induction-heads-early": replace(_induction, task=InductionHeads(trigger="early")),
        # Short rows first, for the cliff; then a rate that stays high, until a million decays in a row are still 1.
        "induction-heads-far": replace(
            _induction,
            optimiser=Optimiser(learning_rate=2e-3),
            steps=8 * _EPOCH,
            curriculum=((1024, 16), (1024, 64)),
            evaluate_every=1024,
            checkpoint_every=_EPOCH,
        ),
        "induction-heads-quick": replace(
            _induction,
            optimiser=Optimiser(learning_rate=4e-3, decay="linear", decay_steps=1000),
            steps=2500,
            batch_size=16,
            curriculum=((1000, 16), (500, 64)),
            log_every=50,
            evaluate_every=100,
            checkpoint_every=500,
        ),
        "selective-copying": _copying,
        # An eighth of the paper's steps, for all rows of Table 1: at ten times its rate, which falls.
        "selective-copying-short": replace(
            _copying,
            optimiser=Optimiser(learning_rate=1e-3, warmup=1000, decay="cosine"),
            steps=50_000,
            matmul="tf32",
        ),
        "copying": replace(_copying, task=SelectiveCopying(variable=False)),
        "selective-copying-quick": replace(
            _copying,
            task=SelectiveCopying(places=256),
            optimiser=Optimiser(learning_rate=2e-3, decay="linear", decay_steps=3000),
            steps=8500,
            batch_size=16,
            curriculum=((1000, 20), (1500, 32), (2000, 64)),
            evaluate_every=500,
            checkpoint_every=500,
        ),
        "associative-recall": Recipe(
            task=AssociativeRecall(),
            model=replace(synthetic("mamba-s6").config, vocab_size=8192),
            optimiser=Optimiser(learning_rate=1e-3, decay="cosine", final=0.01),
            steps=50_000,
            batch_size=64,
        ),
    }
    | {f"table1-{row.name}": _table1(row.name) for row in SYNTHETIC.values() if row.table == "table1"}
    | {f"table2-{row.name}": _table2(row.name) for row in SYNTHETIC.values() if row.table == "table2"}
)
