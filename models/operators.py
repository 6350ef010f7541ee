"""What stands inside a block: S4, S6 or Hyena on (b l d), made from the names in the table of mixers."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from torch import Generator, Tensor, nn

from .architectures import SequenceConfig, mixer


class Operator(Protocol):
    """A map of sequences, channel-last, that may carry a state from one chunk to the next."""

    def __call__(self, u: Tensor, state: Tensor | None, backend: str | None) -> tuple[Tensor, Tensor | None]:
        """The outputs (b l d) of a chunk from this state (zeros for None), and the state (b d n) after it."""
        ...

    def initialise(self, generator: Generator) -> None:
        """Draw every parameter from `generator`."""
        ...

    def empty_state(self, batch: int) -> Tensor:
        """The state of `batch` rows that have read nothing, of an operator that carries one."""
        ...


def make_operator(config: SequenceConfig, d: int) -> Any:
    """The operator of `config.mixer` on `d` channels: a module that is an Operator."""
    name = mixer(config.mixer).operator
    assert name is not None
    return _class(name)(config, d)


def make_block(config: SequenceConfig) -> nn.Module:
    """The block of `config.mixer`, with its operator in it."""
    return _class(mixer(config.mixer).block)(config)


def _class(where: str) -> Any:
    module, name = where.split(".")
    return getattr(import_module(f".{module}", __package__), name)
