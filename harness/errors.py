"""Turn somebody else's error into the one line that a user gets."""

from __future__ import annotations


def one_line(error: BaseException, limit: int = 240, lines: int = 1) -> str:
    """The first `lines` lines of an error's message in one (its type's name when it has none), cut to `limit`."""
    text = " ".join(str(error).strip().splitlines()[:lines])
    return " ".join(text.split())[:limit] or type(error).__name__


def root(error: BaseException) -> BaseException:
    """What the error at hand was raised for, at the bottom of its chain: libraries wrap what happened in phrases."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
