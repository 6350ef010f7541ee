"""Selective copying: remember the data tokens among the noise, and give them back in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from .batch import Batch, check_counts
from .randomness import Device, Step, bits, distinct, integers, rows

_PLACES, _SYMBOLS = 0, 1
NOISE = 0


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying:
    """Scatter `copies` data tokens over `places` places of noise, then ask for them in order.

    With places 6, copies 2 and vocabulary 16, where 0 is noise and 15 the marker:

        inputs   0   4   0   0  14   0  15  15
        labels                           4  14

    >>> row = SelectiveCopying(places=6, copies=2).batch(seed=0, step=0, size=1)
    >>> row.tokens.tolist(), row.positions.tolist(), row.targets.tolist()
    ([[0, 4, 0, 0, 14, 0, 15, 15]], [[6, 7]], [[4, 14]])

    Each set of `copies` places is equally likely, each data token uniform on the vocab_size - 2 symbols between noise
    and marker. At the i-th marker the i-th data token is asked for; no answer is ever fed in. `variable=False` is plain
    copying: the data tokens stand first.

    The paper (Mamba, 3.1, figure 2, and E.1) has length 4096, 16 data tokens and vocabulary 16 with the noise; whether
    the 4096 count the data tokens and the markers is not stated. The default follows the generator of S4
    (github.com/state-spaces/s4, copying.py): 4096 of noise, 16 of data and 16 markers, 4128 tokens in all.
    """

    name: ClassVar[str] = "selective-copying"
    sized_by: ClassVar[str] = "places"

    places: int = 4096 + 16
    copies: int = 16
    vocab_size: int = 16
    variable: bool = True

    def __post_init__(self) -> None:
        check_counts(self, places=1, copies=1, vocab_size=3)
        if not isinstance(self.variable, bool):
            raise ValueError(f"variable must be true or false, not {self.variable!r}")
        if self.copies > self.places:
            raise ValueError(f"copies must be at most places, not {self.copies} data tokens in {self.places} places")

    @property
    def length(self) -> int:
        """Places and markers together."""
        return self.places + self.copies

    @property
    def n_targets(self) -> int:
        """One at each marker."""
        return self.copies

    @property
    def chance(self) -> float:
        """One of the data symbols."""
        return 1 / (self.vocab_size - 2)

    @property
    def marker(self) -> int:
        """The symbol at which a data token is asked for."""
        return self.vocab_size - 1

    def batch(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Batch:
        """See `Task.batch`."""
        start = rows(seed, step, size, device)
        columns = torch.arange(self.length, device=device).expand(len(start), -1)
        places = columns[:, : self.copies]
        data = 1 + integers(bits(start, _SYMBOLS, places), self.vocab_size - 2)
        if self.variable:
            places = distinct(bits(start, _PLACES, columns[:, : self.places]), self.copies).sort(1).values
        blank = torch.where(columns < self.places, NOISE, self.marker)
        return Batch(tokens=blank.scatter(1, places, data), positions=columns[:, self.places :], targets=data)

    def oracle(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b q"]:
        """What is neither noise nor marker, in order."""
        return tokens[(tokens != NOISE) & (tokens != self.marker)].view(len(tokens), -1)
