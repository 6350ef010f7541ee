"""Turn somebody else's error into the one line that a user gets."""

from __future__ import annotations


def one_line(error: BaseException, limit: int = 240) -> str:
    """The first line of an error's message (its type's name when it has none), cut to `limit` characters."""
    text = str(error).strip()
    return text.splitlines()[0][:limit] if text else type(error).__name__
