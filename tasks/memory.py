"""Memory that is not there: asked for before anything is made, and said in one line when it fails after all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from .recipes import Recipe

# Numbers of float32 that a layer keeps of each token for its backward pass, at the very least, a unit of its width:
# the residual stream, its norm, and the inputs and outputs of a mixer.
KEPT_PER_WIDTH = 6
# Bytes a token while the batch is made.
GENERATED = 32


def check(recipe: Recipe, device: torch.device) -> None:
    """ValueError for rows so long, or so many, that what training must keep of them exceeds the device's memory.

    A bound from below: what passes may still not fit. An operating system that promises memory it does not have would
    otherwise end the process without a word.
    """
    per_token = GENERATED + 4 * KEPT_PER_WIDTH * recipe.model.n_layer * recipe.model.d_model
    needed = recipe.batch_size * recipe.task.length * per_token
    there = _memory(device)
    if there is not None and needed > there:
        raise ValueError(
            f"no memory to train on {recipe.batch_size} rows of {recipe.task.length:,} tokens: that takes "
            f"{needed / 2**30:,.0f} GiB or more, and {device} has {there / 2**30:,.0f}"
        )


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


def _memory(device: torch.device) -> int | None:
    """Bytes of the device's memory, None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
