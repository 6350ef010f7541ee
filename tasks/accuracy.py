"""Accuracy of a model on a fixed set of a task: of its answers, and of whole rows of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Task
from .randomness import Device

# Tokens of one forward pass: bounds the memory of a measurement.
PASS_TOKENS = 2**18


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a model got right.

    loss      mean cross entropy of the answers, in nats
    token     fraction of right answers
    sequence  fraction of rows with every answer right
    """

    loss: float
    token: float
    sequence: float
    sequences: int
    answers: int


def standard_error(fraction: float, n: int) -> float:
    """Of a fraction of n independent answers."""
    return (fraction * (1 - fraction) / n) ** 0.5


def rows_a_pass(task: Task, sequences: int, pass_tokens: int = PASS_TOKENS) -> int:
    """How many of so many rows `measure` reads in one forward pass."""
    return min(sequences, max(1, pass_tokens // task.length))


@torch.no_grad()
def measure(
    model: nn.Module,
    task: Task,
    *,
    seed: int,
    sequences: int,
    device: Device,
    pass_tokens: int = PASS_TOKENS,
) -> Accuracy:
    """Accuracy on the rows of step 0 of `seed`, `pass_tokens` tokens at a time (but at least one row)."""
    batch = task.batch(seed, 0, sequences, device)
    right, loss = [], torch.zeros((), dtype=torch.float64, device=device)
    for part in batch.split(rows_a_pass(task, sequences, pass_tokens)):
        logits, _ = model(part.tokens, logits_at=part.logits_at)
        targets = part.targets.reshape(-1)
        loss += F.cross_entropy(logits.float(), targets, reduction="sum")
        right.append((logits.argmax(-1) == targets).view(part.targets.shape))
    found: Tensor = torch.cat(right)
    return Accuracy(
        loss=loss.item() / found.numel(),
        token=found.sum().item() / found.numel(),
        sequence=found.all(1).sum().item() / sequences,
        sequences=sequences,
        answers=found.numel(),
    )
