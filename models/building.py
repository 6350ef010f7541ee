"""Any model of ours from its config, and how many parameters it has."""

from __future__ import annotations

from torch import nn

from .architectures import ModelConfig
from .mamba import Mamba
from .registry import MambaConfig
from .sequence import SequenceModel

Model = Mamba | SequenceModel


def build(config: ModelConfig, *, seed: int | None = 0, backend: str | None = None) -> Model:
    """The model of this config, drawn on the CPU from `seed`; None leaves the parameters on the meta device."""
    if isinstance(config, MambaConfig):
        return Mamba(config, seed=seed, backend=backend)
    return SequenceModel(config, seed=seed, backend=backend)


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, a tied one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
