"""The face of mambalab: command line, lm-eval adapter, runs and benchmarks. Names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lm import MambaLM as MambaLM
    from .zero_shot import Settings as Settings
    from .zero_shot import evaluate as evaluate

__all__ = ["MambaLM", "Settings", "evaluate"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    homes = {"MambaLM": ".lm", "Settings": ".zero_shot", "evaluate": ".zero_shot"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(homes[name], __name__), name)
