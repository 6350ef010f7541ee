"""What computes: the registry of published models, Mamba, its baselines, checkpoints. Importing it imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .building import build, parameter_count
    from .checkpoint import load, save
    from .chunks import run_in_chunks
    from .mamba import Mamba, State
    from .packing import pack
    from .sequence import SequenceModel
    from .storage import restore, store

_HOMES = {
    "Mamba": "mamba",
    "SequenceModel": "sequence",
    "State": "mamba",
    "build": "building",
    "load": "checkpoint",
    "pack": "packing",
    "parameter_count": "building",
    "restore": "storage",
    "run_in_chunks": "chunks",
    "save": "checkpoint",
    "store": "storage",
}

__all__ = [
    "Mamba",
    "SequenceModel",
    "State",
    "build",
    "load",
    "pack",
    "parameter_count",
    "restore",
    "run_in_chunks",
    "save",
    "store",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
