"""The convolution of the CUDA backend: cuts l into runs, allocates the results and launches the kernels of csrc."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda_launch
from .cuda_arguments import in_fours, pointer, tensor
from .cuda_geometry import WARP, Defines, element
from .nvrtc import Variant

RUNS = 8  # of a block, a warp each (conv.cu)
THREADS = WARP * RUNS
STEPS = 4  # what a run is a multiple of
WARPS = 32  # that are to walk on a multiprocessor at once
SUM_THREADS = 8 * WARP  # of sum_parts.cu, for WARP results


class Way(NamedTuple):
    """How a warp walks: channels of a lane, and the most steps of a run.

    What a run costs before its first step and behind its last is spread over its steps; the more of these, the fewer
    warps there are.
    """

    columns: int
    longest: int


FORWARD = Way(columns=4, longest=32)
# More has to be kept of each channel, and a run takes k-1 steps beyond its own.
BACKWARD = Way(columns=2, longest=64)


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.conv_forward`."""
    call = _Call(x, weight, bias, initial_state, cu_seqlens, activation, FORWARD)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = torch.empty(call.state, dtype=x.dtype, device=x.device)
    defines = call.defines(in_fours(call.x) and in_fours(call.initial))
    kernel = cuda_launch.kernel(x.device, "conv.cu", "conv_forward", defines)
    blocks = call.walks + call.blocks_of_states()
    kernel.launch(blocks, THREADS, 0, (*call.words, y.data_ptr(), final_state.data_ptr()))
    return y, final_state


def conv_backward(
    dy: Tensor,
    dfinal_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor | None, ...]:
    """As `reference.conv_backward`: the values before the activation are computed again."""
    call = _Call(x, weight, bias, initial_state, cu_seqlens, activation, BACKWARD)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dinitial = None if initial_state is None else torch.empty(call.state, dtype=x.dtype, device=x.device)
    partial = call.partial_sums()
    defines = call.defines(all(map(in_fours, (call.x, call.initial, dy, dfinal_state))))
    kernel = cuda_launch.kernel(x.device, "conv.cu", "conv_backward", defines)
    # Only an empty sequence's state is not on any run's way.
    empty = initial_state is not None and (cu_seqlens is not None or not x.shape[1])
    words = (*call.words, *tensor(dy), *tensor(dfinal_state), dx.data_ptr(), pointer(dinitial), partial.data_ptr())
    kernel.launch(call.walks + (call.blocks_of_states() if empty else 0), THREADS, 0, words)
    return dx, *summed(partial, weight.dtype, matrix=True, vector=bias is not None), dinitial


def summed(partial: Tensor, dtype: torch.dtype, *, matrix: bool, vector: bool) -> tuple[Tensor | None, Tensor | None]:
    """The sums of (parts taps+1 channels) in `dtype`: of the taps (channels taps), and of the row after (channels).

    float64 only comes of float64. What is not wanted is None.
    """
    parts, rows, channels = partial.shape
    taps = torch.empty(channels, rows - 1, dtype=dtype, device=partial.device) if matrix else None
    last = torch.empty(channels, dtype=dtype, device=partial.device) if vector else None
    kernel = cuda_launch.kernel(partial.device, "sum_parts.cu", "sum_parts", sum_defines(partial.dtype, dtype))
    words = (partial.data_ptr(), pointer(taps), pointer(last), parts, rows - 1, channels)
    kernel.launch(-(-rows * channels // WARP), SUM_THREADS, 0, words)
    return taps, last


def filter_defines(dtype: torch.dtype, weight: Tensor, silu: bool, aligned: bool) -> Defines:
    """The macros of conv_tile.cuh but COLUMNS; `aligned` says whether the activations can be read in fours."""
    together = weight.is_contiguous() and not weight.data_ptr() % 16
    wide = weight.dtype != dtype or dtype in (torch.float32, torch.float64)
    return _defines(dtype, weight.shape[1], silu, wide, aligned and together)


def variants() -> Iterator[Variant]:
    """What is compiled ahead of time: the released models' convolution, and what the self-test asks."""
    usual = [usual_defines(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    kinds = [*product(usual, (0, 1)), (odd_defines(True), 0), (odd_defines(False), 1)]
    for filters, packed in kinds:
        for name, way in (("conv_forward", FORWARD), ("conv_backward", BACKWARD)):
            yield Variant("conv.cu", name, (*filters, ("COLUMNS", way.columns), ("PACKED", packed)))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield Variant("sum_parts.cu", "sum_parts", sum_defines(torch.float32, dtype))


def usual_defines(dtype: torch.dtype) -> Defines:
    """The macros of conv_tile.cuh for the released models."""
    return _defines(dtype, 4, True, dtype == torch.float32, True)


def odd_defines(silu: bool) -> Defines:
    """The macros of conv_tile.cuh for the self-test, whose channels are no multiple of four."""
    return _defines(torch.float32, 4, silu, True, False)


class _Call:
    """One call of the convolution: what it was given, and the words that its kernels begin with."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        activation: str,
        way: Way,
    ) -> None:
        self.x, self.weight, self.bias, self.initial = x, weight, bias, initial_state
        self.silu = activation == "silu"
        b, length, channels = x.shape
        sequences = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.state = (sequences, weight.shape[1] - 1, channels)
        self.columns = way.columns
        self._shape = (("COLUMNS", way.columns), ("PACKED", int(cu_seqlens is not None)))
        self.across = -(-channels // (WARP * way.columns))
        run = _run(b * self.across * length, way, x.device)
        self.walks = b * self.across * -(-length // (RUNS * run))
        self.words = (
            *tensor(self.x), *tensor(self.weight), *tensor(self.bias), *tensor(self.initial), *tensor(cu_seqlens),
            sequences, length, channels, run, self.walks,
        )  # fmt: skip

    def defines(self, aligned: bool) -> Defines:
        """The macros; `aligned` says whether the activations can be read in fours."""
        return *filter_defines(self.x.dtype, self.weight, self.silu, aligned), *self._shape

    def blocks_of_states(self) -> int:
        """Enough for a thread for a few channels of each sequence."""
        sequences, past, channels = self.state
        return -(-sequences * -(-channels // self.columns) // THREADS) if past else 0

    def partial_sums(self) -> Tensor:
        """Room for the gradients of taps and bias, a part a block's runs."""
        _, past, channels = self.state
        dtype = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        return torch.empty(self.walks // self.across, past + 2, channels, dtype=dtype, device=self.x.device)


def _run(work: int, way: Way, device: torch.device) -> int:
    """Steps of a run, a multiple of STEPS, that leave every multiprocessor its WARPS; `work` is warps times steps."""
    share = -(-work // (STEPS * WARPS * cuda_launch.multiprocessors(device)))
    return STEPS * max(1, min(share, way.longest // STEPS))


@cache
def _defines(dtype: torch.dtype, k: int, silu: bool, wide: bool, aligned: bool) -> Defines:
    return element(dtype), ("K", k), ("SILU", int(silu)), ("WIDE", int(wide)), ("ALIGNED", int(aligned))


@cache
def sum_defines(real: torch.dtype, result: torch.dtype) -> Defines:
    """Sums of `real` that come out as `result`."""
    return element(real if real == result else result), ("WIDE", int(real == result))
