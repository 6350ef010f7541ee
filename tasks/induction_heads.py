"""Induction heads: recall what followed the one earlier occurrence of the last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from .batch import Batch, check_counts
from .randomness import Device, Step, bits, integers, rows

_PLACES, _SYMBOLS = 0, 1
EARLY = 10


@dataclass(frozen=True, kw_only=True)
class InductionHeads:
    """Among random symbols stands one trigger; the row ends with it again, and asks which symbol followed the first.

    With length 8 and vocabulary 16, whose last symbol, 15, is the trigger:

        inputs  12  15   8   3   3   8  11  15
        label                                8

    >>> row = InductionHeads(length=8).batch(seed=0, step=0, size=1)
    >>> row.tokens.tolist(), row.positions.tolist(), row.targets.tolist()
    ([[12, 15, 8, 3, 3, 8, 11, 15]], [[7]], [[8]])

    The first trigger stands at a uniformly random one of the length - 2 places that leave room for its follower, or
    with `trigger="early"` in the first 10 of them. All other tokens are drawn from the vocab_size - 1 ordinary symbols.
    The paper (Mamba, 4.1.2 and E.1) trains at length 256 with vocabulary 16 and tests at 2^6 .. 2^20; where it puts the
    trigger is not stated. `dataclasses.replace(task, length=…)` asks the same at another length.
    """

    name: ClassVar[str] = "induction-heads"
    sized_by: ClassVar[str] = "length"

    length: int = 256
    vocab_size: int = 16
    trigger: Literal["uniform", "early"] = "uniform"

    def __post_init__(self) -> None:
        check_counts(self, length=3, vocab_size=3)
        if self.trigger not in ("uniform", "early"):
            raise ValueError(f"trigger must be uniform or early, not {self.trigger!r}")

    @property
    def n_targets(self) -> int:
        """The last token's only."""
        return 1

    @property
    def chance(self) -> float:
        """One of the ordinary symbols."""
        return 1 / (self.vocab_size - 1)

    @property
    def trigger_token(self) -> int:
        """The symbol that stands twice in each row."""
        return self.vocab_size - 1

    def batch(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Batch:
        """See `Task.batch`."""
        start = rows(seed, step, size, device)
        places = self._places(start)
        tokens = self._tokens(start, places, torch.arange(self.length, device=device)[None])
        positions = torch.full_like(places, self.length - 1)
        return Batch(tokens=tokens, positions=positions, targets=tokens.gather(1, places + 1))

    def chunk(
        self, seed: int, step: Step, size: int, begin: int, end: int, device: Device = "cpu"
    ) -> Int64[Tensor, "b c"]:
        """`batch(…).tokens[:, begin:end]`, in memory that grows with the chunk and not with the length."""
        if not 0 <= begin <= end <= self.length:
            raise ValueError(f"a chunk must lie within 0 .. {self.length}, not {begin} .. {end}")
        start = rows(seed, step, size, device)
        return self._tokens(start, self._places(start), torch.arange(begin, end, device=device)[None])

    def targets(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Int64[Tensor, "b 1"]:
        """`batch(…).targets`, without its tokens."""
        start = rows(seed, step, size, device)
        return self._symbols(start, self._places(start) + 1)

    def places(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Int64[Tensor, "b 1"]:
        """Where the first trigger of each row stands; the query is `length - 1 - places` tokens behind it."""
        return self._places(rows(seed, step, size, device))

    def oracle(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b 1"]:
        """The token after the first that equals the last."""
        first = self.length - 1 - self.distance(tokens)
        return tokens.gather(1, first[:, None] + 1)

    def distance(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, " b"]:
        """How many tokens the query, which is the last, stands behind the first trigger."""
        return self.length - 1 - (tokens == tokens[:, -1:]).int().argmax(1)

    def _places(self, start: Tensor) -> Tensor:
        room = self.length - 2 if self.trigger == "uniform" else min(EARLY, self.length - 2)
        return integers(bits(start, _PLACES, torch.zeros_like(start)), room)

    def _tokens(self, start: Tensor, places: Tensor, columns: Tensor) -> Tensor:
        is_trigger = (columns == places) | (columns == self.length - 1)
        return self._symbols(start, columns).masked_fill(is_trigger, self.trigger_token)

    def _symbols(self, start: Tensor, columns: Tensor) -> Tensor:
        return integers(bits(start, _SYMBOLS, columns), self.vocab_size - 1)
