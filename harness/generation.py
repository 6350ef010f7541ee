"""Batches of generation requests that can each be computed alone: equal settings together, and a seed of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any


def batches(requests: Sequence[Any], size: int, order: Iterable[int] | None = None) -> list[list[int]]:
    """Numbers of lm-eval's generate_until requests with equal settings, at most `size` together.

    In `order` (default: as they come), groups by first appearance.
    """
    alike: dict[str, list[int]] = {}
    for i in range(len(requests)) if order is None else order:
        alike.setdefault(json.dumps(requests[i].args[1], sort_keys=True), []).append(i)
    return [rows[start : start + size] for rows in alike.values() for start in range(0, len(rows), size)]


def asked(requests: Sequence[Any], batch: Sequence[int], number: int) -> list[Any]:
    """What the answer to a batch depends on, as JSON; `number` counts the adapter's batches, and so its draws."""
    return ["generation", number, requests[batch[0]].args[1], [str(requests[i].args[0]) for i in batch]]


def batch_seed(seed: int, number: int) -> int:
    """The seed of one batch's draws, from 0 to 2^63 - 1: no batch depends on how many draws came before it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big") >> 1
