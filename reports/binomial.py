"""What a count of right answers says about the probability of one."""

from __future__ import annotations

import math


def at_least(right: int, of: int, confidence: float = 0.95) -> float:
    """The one-sided exact lower bound on the probability of a right answer (Clopper and Pearson, 1934).

    It is the probability under which so many or more right answers have probability 1 - `confidence`.

    >>> round(at_least(256, 256), 4), at_least(0, 256)
    (0.9884, 0.0)
    """
    if not 0 <= right <= of:
        raise ValueError(f"right answers must be from 0 to {of}, not {right}")
    low, high = 0.0, right / of if right else 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(right, of, middle) < 1 - confidence else (low, middle)
    return low


def _tail(right: int, of: int, p: float) -> float:
    """The probability of at least so many right answers."""
    logs = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * math.log(p) + (of - k) * math.log1p(-p)
        for k in range(right, of + 1)
    )
    return math.fsum(map(math.exp, logs))
