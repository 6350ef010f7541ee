"""Spearman's rank correlation: whether two measures put the same things in the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value, from 1; equal ones share the mean of theirs.

    >>> ranks([10.0, 30.0, 20.0, 30.0])
    [1.0, 3.5, 2.0, 3.5]
    """
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation of the ranks, from -1 to 1; None where either side has but one value, and so no order.

    ValueError for sequences of different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"a rank correlation needs pairs, not {len(a)} values and {len(b)}")
    middle = (len(a) + 1) / 2
    x, y = ([rank - middle for rank in ranks(values)] for values in (a, b))
    spread = math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / spread if spread else None
