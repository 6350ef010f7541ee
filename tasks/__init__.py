"""What is asked and learnt: the synthetic tasks, their recipes and the trainer. Importing it does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .associative_recall import AssociativeRecall
    from .batch import Batch, Task
    from .induction_heads import InductionHeads
    from .recipes import Optimiser, Recipe
    from .selective_copying import SelectiveCopying

_HOMES = {
    "AssociativeRecall": "associative_recall",
    "Batch": "batch",
    "InductionHeads": "induction_heads",
    "Optimiser": "recipes",
    "Recipe": "recipes",
    "SelectiveCopying": "selective_copying",
    "Task": "batch",
}

__all__ = ["AssociativeRecall", "Batch", "InductionHeads", "Optimiser", "Recipe", "SelectiveCopying", "Task"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
