"""Long sequences in memory that does not grow with their length: chunk by chunk, with the state carried."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from .building import Model
from .mamba import State

CHUNK = (
    8192  # tokens: long enough to keep a small model's kernels busy, short enough for its activations to stay cached
)


@torch.no_grad()
def run_in_chunks(
    model: Model, tokens: Integer[Tensor, "b l"], *, chunk: int = CHUNK, state: State | None = None
) -> tuple[Float[Tensor, "b v"], State]:
    """The logits after each row's last token, and the state there: as of one forward pass, up to rounding.

    `tokens` may be of any integer dtype and lie on the CPU (a mapped file, say): a chunk of them at a time is widened
    and moved to the model's device. Takes no gradient. ValueError for no token, a chunk of none,
    and for more than one chunk where the model carries no state.
    """
    rows, length = tokens.shape
    if not rows or not length or chunk < 1:
        raise ValueError(f"tokens and a chunk of at least 1 are needed, not {rows} x {length} in chunks of {chunk}")
    *before, last = tokens.split(chunk, 1)
    if before and not model.carries_state:
        raise ValueError(f"{length} tokens are more than one chunk of {chunk}, and this model carries no state")
    device = model.lm_head.weight.device
    for piece in before:
        nowhere = torch.empty(0, dtype=torch.int64, device=device)
        _, state = model(piece.to(device, torch.int64), state=state, logits_at=nowhere)
    ends = torch.arange(last.shape[1] - 1, last.numel(), last.shape[1], device=device)
    return model(last.to(device, torch.int64), state=state, logits_at=ends)
