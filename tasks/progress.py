"""What long work says of itself while it is at it."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], object]


def now_and_then(say: Say, seconds: float) -> Say:
    """Hands on a line once in so many seconds, the first not before, and drops the others."""
    said = time.monotonic()

    def sometimes(line: str) -> None:
        nonlocal said
        if time.monotonic() - said >= seconds:
            said = time.monotonic()
            say(line)

    return sometimes
