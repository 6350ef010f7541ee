"""What a synthetic task is, and what one batch of it holds.

The axes: b rows of a batch, l tokens of a row, q scored predictions of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from .randomness import Device, Step

# To which tasks and recipes count.
MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens, and where in them which token is to be predicted.

    The prediction for `targets[i, j]` is read after token `positions[i, j]` of row i, that one included.
    """

    tokens: Int64[Tensor, "b l"]
    positions: Int64[Tensor, "b q"]
    targets: Int64[Tensor, "b q"]

    @property
    def logits_at(self) -> Int64[Tensor, " p"]:
        """The positions in `tokens.reshape(-1)`, row after row: what a model's forward takes."""
        rows, length = self.tokens.shape
        first = torch.arange(rows, device=self.tokens.device)[:, None] * length
        return (self.positions + first).reshape(-1)

    def split(self, size: int) -> list[Batch]:
        """The rows in parts of `size`, the last of which may be smaller."""
        parts = zip(self.tokens.split(size), self.positions.split(size), self.targets.split(size), strict=True)
        return [Batch(tokens=tokens, positions=positions, targets=targets) for tokens, positions, targets in parts]


@runtime_checkable
class Task(Protocol):
    """A frozen value that makes batches: each a pure function of (seed, step), the same bits on every device.

    length      tokens of a row
    vocab_size  all symbols, special ones included
    n_targets   scored predictions of a row
    chance      accuracy expected of a guess among the symbols that can be targets
    sized_by    the field that makes rows longer
    """

    name: ClassVar[str]
    sized_by: ClassVar[str]

    @property
    def length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def n_targets(self) -> int: ...
    @property
    def chance(self) -> float: ...

    def batch(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Batch:
        """`size` rows, none of which depends on the size; of several steps, `size` rows of each, one after the other.

        With `step` a tensor on the device, making the batch can be captured in a graph.
        """
        ...

    def oracle(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b q"]:
        """The targets as the tokens alone tell them."""
        ...


def check_counts(task: Any, **least: int) -> None:
    """ValueError for a field of `task` that is no integer, or is below the least it may be, or too large to count."""
    for name, bound in least.items():
        value = getattr(task, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be an integer, not {value!r}")
        if not bound <= value <= MOST:
            raise ValueError(f"{name} must be from {bound} to 2^31 - 1, not {value}")
