"""Associative recall with many queries (MQAR): key-value pairs, then each key again, asking for its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .batch import Batch, check_counts
from .randomness import Device, Step, bits, distinct, integers, rows

_KEYS, _VALUES, _SLOTS = 0, 1, 2
FILLER = 0


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall:
    """`pairs` keys each with its value, then filler, in which every key comes once more: there its value is asked for.

    With length 16, pairs 2 and vocabulary 12, where 0 is filler, 1 .. 5 are keys and 6 .. 11 values:

        inputs   5  11   2  10   2   0   0   0   0   0   0   0   0   0   5   0
        labels                  10                                      11

    >>> row = AssociativeRecall(length=16, pairs=2, vocab_size=12).batch(seed=0, step=0, size=1)
    >>> row.tokens.tolist(), row.positions.tolist(), row.targets.tolist()
    ([[5, 11, 2, 10, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0]], [[4, 14]], [[10, 11]])

    As in Zoology (Arora et al., 2023, arXiv:2312.04927; github.com/HazyResearch/zoology, multiquery_ar): keys differ
    within a row and so do values, and a query may stand at every other token after the pairs, in slots 1, 2, 3 … which
    are drawn one by one, without repeats, slot g with a weight of 1/g (there g^-0.99: a power law, so most queries
    follow the pairs closely). `queries="uniform"` gives all slots the same weight.
    Two things differ: filler is never anything else (there random tokens replace it by default, keys among them, so
    that a key can be asked for where nothing is scored), and nothing but one settings' rows is in a batch.
    """

    name: ClassVar[str] = "associative-recall"
    sized_by: ClassVar[str] = "length"

    length: int = 256
    pairs: int = 16
    vocab_size: int = 8192
    queries: Literal["power", "uniform"] = "power"

    def __post_init__(self) -> None:
        check_counts(self, length=4, pairs=1, vocab_size=4)
        if self.queries not in ("power", "uniform"):
            raise ValueError(f"queries must be power or uniform, not {self.queries!r}")
        if 4 * self.pairs > self.length:
            raise ValueError(f"length must be at least 4 tokens a pair, not {self.length} for {self.pairs} pairs")
        if self.pairs > self.n_keys:
            raise ValueError(f"vocab_size {self.vocab_size} has {self.n_keys} keys, too few for {self.pairs} pairs")

    @property
    def n_keys(self) -> int:
        """Symbols 1 .. n_keys are keys; those above are values."""
        return self.vocab_size // 2 - 1

    @property
    def n_values(self) -> int:
        """Symbols that can be targets."""
        return self.vocab_size - self.n_keys - 1

    @property
    def n_targets(self) -> int:
        """One a pair."""
        return self.pairs

    @property
    def chance(self) -> float:
        """One of the values; a guess among those that the row shows is right once in `pairs`."""
        return 1 / self.n_values

    @property
    def n_slots(self) -> int:
        """Places where a query may stand."""
        return (self.length - 2 * self.pairs) // 2

    def batch(self, seed: int, step: Step, size: int, device: Device = "cpu") -> Batch:
        """See `Task.batch`; targets are in the order of their positions."""
        start = rows(seed, step, size, device)
        columns = torch.arange(max(self.vocab_size, self.length), device=device)[None]
        keys = 1 + distinct(bits(start, _KEYS, columns[:, : self.n_keys]), self.pairs)
        values = 1 + self.n_keys + distinct(bits(start, _VALUES, columns[:, : self.n_values]), self.pairs)
        slots = self._slots(bits(start, _SLOTS, columns[:, : self.n_slots]))
        positions, order = (2 * (self.pairs + slots)).sort(1)
        shown = torch.stack((keys, values), 2).flatten(1)
        filler = torch.full((len(start), self.length - 2 * self.pairs), FILLER, dtype=torch.int64, device=device)
        tokens = torch.cat((shown, filler), 1).scatter(1, positions, keys.gather(1, order))
        return Batch(tokens=tokens, positions=positions, targets=values.gather(1, order))

    def oracle(self, tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b q"]:
        """For each key after the pairs, the token after its first occurrence."""
        pairs, rest = tokens[:, : 2 * self.pairs], tokens[:, 2 * self.pairs :]
        queries = rest[rest != FILLER].view(len(tokens), -1)
        first = (queries[:, :, None] == pairs[:, None]).int().argmax(2)
        return pairs.gather(1, first + 1)

    def _slots(self, bits: Int64[Tensor, "b g"]) -> Int64[Tensor, "b k"]:
        """`pairs` different slots, from 0: the first that ring, when slot g rings at exponential time of rate 1/g."""
        if self.queries == "uniform":
            return distinct(bits, self.pairs)
        times = exponential(bits) * torch.arange(1, bits.shape[1] + 1, device=bits.device)
        return times.argsort(dim=1, stable=True)[:, : self.pairs]


def exponential(bits: Int64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Exponential variables of mean 1, right to 1e-9, from sums, products and quotients alone.

    Those round alike on every device, which logarithms do not.
    """
    uniform = (integers(bits, 2**52).double() + 0.5) / 2**52
    mantissa, exponent = torch.frexp(uniform)
    # log m = log √½ + 2 artanh s, where |s| < 0.172.
    s = (mantissa - math.sqrt(0.5)) / (mantissa + math.sqrt(0.5))
    square, series = s * s, torch.zeros_like(s)
    for power in (11, 9, 7, 5, 3, 1):
        series = series * square + 2 / power
    return (0.5 - exponent.double()) * math.log(2) - series * s
