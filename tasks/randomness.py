"""Random bits that are a hash of (seed, step, stream, row, column): no state, and the same on every device.

The hash is SplitMix64 (Steele, Lea and Flood, 2014) read at any place of its sequence: a counter times the golden
ratio, through a bijection that mixes 64 bits. Everything is int64 tensor arithmetic, which wraps, so that nothing waits
for the device and a CUDA graph can hold it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

Device = torch.device | str
# Which batch: a number, or a tensor of one or several on the device, which a CUDA graph can advance.
Step = int | Int64[Tensor, ""] | Int64[Tensor, " k"]

# What a counter has room for.
ROWS, COLUMNS = 2**24, 2**32


def _signed(value: int) -> int:
    """The int64 that has the low 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = 0x9E3779B97F4A7C15
_PER_STEP = _signed(_GOLDEN)
_PER_COLUMN, _PER_ROW, _PER_STREAM = (_signed(_GOLDEN * unit) for unit in (1, COLUMNS, COLUMNS * ROWS))
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def mix(z: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """SplitMix64's bijection of 64 bits."""
    for shift, factor in _ROUNDS:
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right: int64 has only the one that repeats the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def rows(seed: int, step: Step, size: int, device: Device) -> Int64[Tensor, "b 1"]:
    """What the bits of each of `size` rows begin from, on the device; of several steps, `size` rows of each in turn.

    A row's does not depend on the size. Steps may be tensors on the device; they must not be negative. ValueError for a
    seed outside [0, 2^63) and for a size that no batch can have.
    """
    if not 1 <= size <= ROWS:
        raise ValueError(f"a batch must have from 1 to 2^24 rows, not {size}")
    if not isinstance(step, Tensor):
        step = torch.full((), step, dtype=torch.int64, device=device)
    starts = mix(step * _PER_STEP + _seed_key(seed))
    return (starts.reshape(-1, 1) + torch.arange(size, device=device) * _PER_ROW).reshape(-1, 1)


@lru_cache(maxsize=256)
def _seed_key(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"a seed must be an integer from 0 to 2^63 - 1, not {seed!r}")
    return int(mix(torch.tensor(seed) + _PER_STEP))


def bits(rows: Int64[Tensor, "b 1"], stream: int, columns: Int64[Tensor, "#b l"]) -> Int64[Tensor, "b l"]:
    """64 random bits, as int64, for these columns of these rows; they do not depend on which others are asked for."""
    return mix(columns * _PER_COLUMN + (rows + _signed(_PER_STREAM * stream)))


def integers(bits: Int64[Tensor, "*shape"], high: int) -> Int64[Tensor, "*shape"]:
    """Uniform on 0 .. high - 1, each probability right to within 2^-64."""
    return bits % high


def distinct(bits: Int64[Tensor, "b l"], count: int) -> Int64[Tensor, "b k"]:
    """`count` different columns of each row, in random order: each ordered choice is equally likely.

    The columns with the largest bits; a column's own number stands in the low bits, so that no two are equal and every
    device orders them alike.
    """
    low = (1 << (bits.shape[1] - 1).bit_length()) - 1
    numbered = (bits & ~low) | torch.arange(bits.shape[1], device=bits.device)
    return numbered.topk(count, dim=1).values & low
