"""Turn somebody else's error into the one line that a user gets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130


def one_line(error: BaseException, limit: int = 240, lines: int = 1) -> str:
    """The first `lines` lines of an error's message in one (its type's name when it has none), cut to `limit`."""
    text = " ".join(str(error).strip().splitlines()[:lines])
    return " ".join(text.split())[:limit] or type(error).__name__


def root(error: BaseException) -> BaseException:
    """What the error at hand was raised for, at the bottom of its chain: libraries wrap what happened in phrases."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def interruption_told(what_follows: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C into one line, which ends with what comes of it, and the exit status that shells give it."""
    try:
        yield
    except KeyboardInterrupt:
        # A terminal shows ^C where the line would begin.
        head = "\n" if sys.stderr.isatty() else ""
        print(f"{head}mambalab: interrupted; {what_follows()}", file=sys.stderr)
        sys.exit(INTERRUPTED)
