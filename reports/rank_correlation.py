"""Spearman's rank correlation: whether two measures put the same things in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

EXACT = 8  # pairs, up to which every order is looked at
DRAWN = 20_000  # orders, where there are more


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value, from 1; equal ones share the mean of theirs.

    >>> ranks([10.0, 30.0, 20.0, 30.0])
    [1.0, 3.5, 2.0, 3.5]
    """
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """The correlation of the ranks, from -1 to 1, and its two-sided p-value, were every order of one side alike likely.

    The p-value is exact up to 8 pairs. None where either side has but one value, and so no order; ValueError for
    sequences of different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"a rank correlation needs pairs, not {len(a)} values and {len(b)}")
    x, y = (np.array(ranks(values)) - (len(a) + 1) / 2 for values in (a, b))
    spread = np.sqrt((x @ x) * (y @ y))
    if not spread:
        return None
    found = x @ y
    # Sums of halves are exact, so equal ones are equal.
    as_far = np.abs(_orders(y) @ x) >= abs(found)
    return float(found / spread), float(as_far.mean())


def _orders(values: np.ndarray) -> np.ndarray:
    """Every order of the values (orders n), or many that are drawn."""
    if len(values) <= EXACT:
        return np.array(list(permutations(values)))
    return np.random.default_rng(0).permuted(np.tile(values, (DRAWN, 1)), axis=1)
