"""What a forward scan keeps for its backward pass, where its backend does: a state every CHECKPOINT steps."""

from torch import Tensor

CHECKPOINT = 16
TOGETHER = 4  # states of a channel that lie side by side


def shape(u: Tensor, A: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int, int]:
    """(slots, ceil(n / TOGETHER), d, TOGETHER), in A's dtype; a sequence's slots follow each other.

    Packed sequences have room for one slot more than l / CHECKPOINT, so that where they begin tells where theirs do.
    """
    batch, length, channels = u.shape
    whole = -(-length // CHECKPOINT)
    slots = batch * whole if cu_seqlens is None else whole + cu_seqlens.shape[0] - 1
    return slots, -(-A.shape[1] // TOGETHER), channels, TOGETHER
