"""The root-mean-square norm of the CUDA backend: shapes its blocks, allocates the results and launches the kernels."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda_conv, cuda_launch
from .cuda_arguments import in_fours, tensor
from .cuda_geometry import ELEMENTS, WARP, Defines, element
from .nvrtc import Variant

THREADS = 256  # of a block, unless a row needs more
LARGEST = 1024  # threads of a block
FORWARD_PACKS = 8  # packs of a row that a thread holds, where there are threads enough
BACKWARD_PACKS = 4
SMALLEST = 8  # threads of a row: no fewer, that warps may read 128 bytes of each
BLOCKS = 2  # of the backward kernel that share a multiprocessor
ONE_PACK_BLOCKS = 5  # of those, where a thread holds one pack of a row, and waits for it
SHORT = (torch.bfloat16, torch.float16)


class Shape(NamedTuple):
    """How a kernel takes rows: threads of a block and of a row, blocks of the backward kernel that share a
    multiprocessor, and the macros."""

    threads: int
    team: int
    blocks: int
    defines: Defines


def norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `reference.norm_forward`."""
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    shape = _shape(x.dtype, weight.dtype, columns, _aligned(x, weight), FORWARD_PACKS)
    kernel = cuda_launch.kernel(x.device, "norm.cu", "norm_forward", shape.defines)
    words = (*tensor(x), *tensor(weight), y.data_ptr(), rows, columns, cuda_launch.double_word(epsilon))
    kernel.launch(-(-rows * shape.team // shape.threads), shape.threads, 0, words)
    return y


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As `reference.norm_backward`; each block takes rows that follow each other."""
    rows, columns = x.shape
    shape = _shape(x.dtype, weight.dtype, columns, _aligned(dy, x, weight), BACKWARD_PACKS)
    at_once = shape.threads // shape.team
    at_work = cuda_launch.multiprocessors(x.device) * shape.blocks
    share = max(1, -(-rows // (at_work * at_once))) * at_once
    blocks = -(-rows // share)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(blocks, 1, columns, dtype=real, device=x.device)
    kernel = cuda_launch.kernel(x.device, "norm.cu", "norm_backward", shape.defines)
    words = (
        *tensor(dy), *tensor(x), *tensor(weight), dx.data_ptr(), partial.data_ptr(), rows, columns, share,
        cuda_launch.double_word(epsilon),
    )  # fmt: skip
    kernel.launch(blocks, shape.threads, 0, words)
    # The sums can be rounded, but not widened.
    summed_in = real if weight.dtype == torch.float64 else weight.dtype
    _, dweight = cuda_conv.summed(partial, summed_in, matrix=False, vector=True)
    assert dweight is not None
    return dx, dweight.to(weight.dtype)


def variants() -> Iterator[Variant]:
    """What is compiled ahead of time: the widths of the released models, and what the self-test asks."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for columns in (768, 1024, 1536, 2048, 2560):
            yield Variant("norm.cu", "norm_forward", _shape(torch.float32, dtype, columns, True, FORWARD_PACKS).defines)
            shape = _shape(torch.float32, dtype, columns, True, BACKWARD_PACKS)
            yield Variant("norm.cu", "norm_backward", shape.defines)
    for name in ("norm_forward", "norm_backward"):
        yield Variant("norm.cu", name, _shape(torch.float32, torch.float32, 19, False, 1).defines)


@cache
def _shape(x: torch.dtype, weight: torch.dtype, columns: int, aligned: bool, most: int) -> Shape:
    """Few threads a row, which hold `most` packs each at the most; beyond LARGEST threads they hold more."""
    packs = -(-columns // _vector(x, weight))
    team = SMALLEST
    while team < min(packs, WARP) or (team < LARGEST and team * most < packs):
        team *= 2
    threads = max(THREADS, team)
    held = -(-packs // team)
    blocks = ONE_PACK_BLOCKS if held == 1 else BLOCKS
    defines = (
        element(x), ("WEIGHT", ELEMENTS[weight]), ("THREADS", threads), ("TEAM", team),
        ("PACKS", held), ("ALIGNED", int(aligned)), ("BLOCKS", blocks),
    )  # fmt: skip
    return Shape(threads, team, blocks, defines)


def _vector(x: torch.dtype, weight: torch.dtype) -> int:
    """Neighbours that are read at once."""
    return 8 if x in SHORT and weight in SHORT else 4


def _aligned(*tensors: Tensor) -> bool:
    """Whether every row can be read in packs; x and weight are the last."""
    *_, x, weight = tensors
    return all(in_fours(given, _vector(x.dtype, weight.dtype)) for given in tensors)
