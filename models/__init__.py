"""What computes: the registry of published models, Mamba, and checkpoints. Importing it does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import load, save
    from .chunks import run_in_chunks
    from .mamba import Mamba, State
    from .packing import pack

_HOMES = {
    "Mamba": "mamba",
    "State": "mamba",
    "load": "checkpoint",
    "pack": "packing",
    "run_in_chunks": "chunks",
    "save": "checkpoint",
}

__all__ = ["Mamba", "State", "load", "pack", "run_in_chunks", "save"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
