"""Sequences of unequal lengths, laid end to end in one row so that no position is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Int32, Int64
from torch import Tensor


def pack(
    sequences: Sequence[Sequence[int]] | Sequence[Tensor] | Int64[Tensor, "b l"],
    lengths: Sequence[int] | Int64[Tensor, " b"] | None = None,
) -> tuple[Int64[Tensor, "1 total"], Int32[Tensor, "s_plus_1"]]:
    """Give (tokens, cu_seqlens) of token lists, or of a right-padded batch with each row's `lengths`.

    Sequence i is `tokens[0, cu_seqlens[i]:cu_seqlens[i + 1]]`; an empty one is allowed. A length that is not in a
    row is a ValueError.
    """
    counts = map(len, sequences) if lengths is None else _checked(sequences, lengths)
    rows = [torch.as_tensor(row[:n], dtype=torch.int64) for row, n in zip(sequences, counts, strict=True)]
    if not rows:
        raise ValueError("pack needs at least one sequence, not an empty list")
    bounds = list(accumulate((len(row) for row in rows), initial=0))
    return torch.cat(rows)[None], torch.tensor(bounds, dtype=torch.int32, device=rows[0].device)


def _checked(
    sequences: Sequence[Sequence[int]] | Sequence[Tensor] | Tensor, lengths: Sequence[int] | Tensor
) -> list[int]:
    counts = [int(n) for n in lengths]
    if len(counts) != len(sequences):
        raise ValueError(f"pack needs one length a row, not {len(counts)} lengths for {len(sequences)} rows")
    for i, (row, n) in enumerate(zip(sequences, counts, strict=True)):
        if not 0 <= n <= len(row):
            raise ValueError(f"length {n} of row {i} must be from 0 to {len(row)}")
    return counts
