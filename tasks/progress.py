"""What long work says of itself while it is at it."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], object]


class Paced:
    """Hands on a line where the last one was said so long ago as it asks for, and drops it otherwise.

    Before the first, it is as if one had been said `ago` seconds before now.
    """

    def __init__(self, say: Say, ago: float = 0.0) -> None:
        self._say, self._said = say, time.monotonic() - ago

    def __call__(self, line: str, after: float = 0.0) -> None:
        if time.monotonic() - self._said >= after:
            self._said = time.monotonic()
            self._say(line)


def now_and_then(say: Say, seconds: float) -> Say:
    """Hands on a line once in so many seconds, the first not before, and drops the others."""
    paced = Paced(say)
    return lambda line: paced(line, seconds)


def clock(seconds: float) -> str:
    """So many seconds as hours, minutes and seconds.

    >>> clock(3661.4)
    '1:01:01'
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}"
