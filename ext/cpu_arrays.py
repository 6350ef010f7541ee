"""What the CPU kernels get in place of tensors, and what becomes of their partial sums."""

import numpy as np
import torch
from torch import Tensor

from .lanes import WIDTH


def working_dtype(A: Tensor) -> torch.dtype:
    """The dtype of states inside the kernels; a complex scan is always computed in double precision."""
    return torch.complex128 if A.is_complex() else A.dtype


def width(work: torch.dtype) -> int:
    """How many channels the kernels take side by side."""
    return WIDTH if work == torch.float32 else 1


def array(tensor: Tensor | None, dtype: torch.dtype, rank: int) -> np.ndarray:
    """The tensor, or a copy where its dtype is another or its last axis is not contiguous; None is an empty array."""
    if tensor is None:
        return torch.empty((0,) * rank, dtype=dtype).numpy()
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
    return (tensor if tensor.stride(-1) == 1 else tensor.contiguous()).numpy()


def spans_of(x: Tensor, cu_seqlens: Tensor | None) -> np.ndarray:
    """The batch row, begin and end of each sequence (s 3)."""
    b, length, _ = x.shape
    if cu_seqlens is None:
        return np.array([(i, 0, length) for i in range(b)], np.int64).reshape(b, 3)
    bounds = cu_seqlens.numpy().astype(np.int64)
    return np.stack([np.zeros_like(bounds[1:]), bounds[:-1], bounds[1:]], 1)


def ordered_sum(parts: Tensor) -> Tensor:
    """The sum over the first axis, neighbours' halves first, in an order that no number of threads changes."""
    while len(parts) > 1:
        half = (len(parts) + 1) // 2
        parts[: len(parts) - half].add_(parts[half:])
        parts = parts[:half]
    return parts[0]
