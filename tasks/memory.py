"""Memory that is not there: asked for before anything is made, and said in one line when it fails after all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from ..models import build, parameter_count
from ..models.architectures import SequenceConfig, mixer
from .accuracy import rows_a_pass
from .recipes import Recipe

# Of each parameter there are its gradient and Adam's two moments too, all of them float32.
PER_PARAMETER = 16
# Numbers that a layer keeps of each token for its backward pass, a unit of the width inside it: so the leanest does,
# an ungated S6 with nothing selective; the Mamba block keeps 6, S4's convolution 47.
KEPT_PER_WIDTH = 4
# Bytes a token while a batch is made: the hash holds three int64 at once.
GENERATED = 24
# Bytes a logit: itself and its log-softmax.
PER_LOGIT = 8


def check(recipe: Recipe, device: torch.device) -> None:
    """ValueError for a training that must at some time hold more than the device's memory.

    A bound from below: what passes may still not fit. An operating system that promises memory it does not have would
    otherwise end the process without a word.
    """
    there = total(device)
    if there is None:
        return
    for what, needed in _needed(recipe):
        if needed > there:
            raise ValueError(
                f"no memory to {what}: that takes {needed / 2**30:,.0f} GiB or more, and {device} has "
                f"{there / 2**30:,.0f}"
            )


def _needed(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """What a training does, and the bytes without which it can't."""
    task, rows, vocab_size = recipe.task, recipe.batch_size, recipe.model.vocab_size
    longest = max((task, *(recipe.task_of_size(size) for _, size in recipe.curriculum)), key=lambda task: task.length)
    learning = f"train on {rows} rows of {longest.length:,} tokens"
    kept = rows * (longest.length * _kept(recipe) + longest.n_targets * vocab_size * PER_LOGIT)
    yield learning, kept
    # Counted only now that so many layers are known to be possible: they are made one by one.
    parameters = parameter_count(build(recipe.model, seed=None))
    held = parameters * PER_PARAMETER
    yield f"train {parameters:,} parameters", held
    yield learning, held + kept
    logits = rows_a_pass(task, recipe.sequences) * task.n_targets * vocab_size
    drawn = recipe.sequences * task.length * GENERATED
    yield f"measure on {recipe.sequences} sequences of {task.length:,} tokens", held + max(drawn, logits * PER_LOGIT)


def _kept(recipe: Recipe) -> int:
    """Bytes of each token of a batch: what its layers keep until the backward pass, or what it is made from."""
    model, number = recipe.model, 2 if recipe.matmul == "bfloat16" else 4
    reads = mixer(model.mixer).settings if isinstance(model, SequenceConfig) else ("expand", "dt_rank")
    inner = model.d_model * (model.expand if "expand" in reads else 1)
    projected = sum(model.projected) if "dt_rank" in reads else 0
    return max(GENERATED, number * model.n_layer * (KEPT_PER_WIDTH * inner + projected))


@contextlib.contextmanager
def shortage_said(recipe: Recipe) -> Iterator[None]:
    """Turn an allocation that failed into a ValueError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        raise ValueError(
            f"no memory to train on {recipe.batch_size} rows of {recipe.task.length:,} tokens "
            f"({str(error).splitlines()[0]})"
        ) from error


def is_shortage(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def total(device: torch.device) -> int | None:
    """Bytes of the device's memory, None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
