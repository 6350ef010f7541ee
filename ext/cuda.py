"""The scan of the CUDA backend: cuts the work, allocates the results and launches the kernels of csrc."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import cuda_launch, cuda_slabs, kept
from .cuda_arguments import FOUR, in_fours, pointer, refuse_complex, tensor
from .cuda_geometry import (
    WARP,
    Geometry,
    Kind,
    Work,
    backward_geometry,
    backward_plan,
    element,
    forward_geometry,
    forward_segments,
    most_states,
    states_geometry,
)
from .nvrtc import Variant

CARRY_THREADS = 128
ARGUMENTS, CU_SEQLENS = 12, 9  # of a scan: how many, and the place of one
SUM_THREADS = 8 * WARP  # of a block of scan_sum.cu, which takes as many fours of dB and dC, or WARP of the rest


def scan_forward(*given: Any) -> tuple[Tensor, Tensor]:
    """As `reference.scan_forward`, with its arguments, for a real A."""
    return _forward(None, *given)


def scan_keeping(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As `scan_forward`, and what it keeps for `scan_backward` (`kept.shape`)."""
    u, _, A, *_ = given
    bounds = given[CU_SEQLENS]
    # Zeros where nothing may be written: an op's results are to be the same whatever memory held before.
    new = A.new_empty if bounds is None and A.shape[1] % kept.TOGETHER == 0 else A.new_zeros
    states = new(kept.shape(u, A, bounds))
    return *_forward(states, *given), states


def scan_backward(dy: Tensor, dfinal_state: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    """As `reference.scan_backward`, for a real A; behind its arguments may stand what `scan_keeping` kept."""
    given = arguments[:ARGUMENTS]
    u, _, A, *_ = given
    states = arguments[ARGUMENTS] if len(arguments) > ARGUMENTS else scan_keeping(*given)[2]
    if A.shape[1] > (most := _most_states(u)):
        return cuda_slabs.backward(scan_backward, most, dy, dfinal_state, states, *given)
    call = _Call(given, dy)
    geometry, segments = backward_plan(call.kind, call.work, cuda_launch.multiprocessors(u.device))
    carried = call.carried(segments, geometry.states, dy, dfinal_state) if segments > 1 else None
    du, ddelta, dz = (torch.empty(u.shape, dtype=u.dtype, device=u.device) for _ in range(3))
    dstate = A.new_empty(call.sequences, *A.shape)
    matrices, parameters = call.partial_sums(geometry, segments)
    words = [
        *call.words(segments), *tensor(dy), *tensor(carried), *tensor(dfinal_state), *_kept(states),
        *map(pointer, (du, ddelta, dz, dstate, matrices, parameters)),
    ]  # fmt: skip
    call.launch("scan_backward", geometry, segments, words)
    dA, dB, dC, dD, dbias = call.summed(matrices, parameters)
    optional = zip(given[5:9], (dD, dz, dbias, dstate), strict=True)
    return du, ddelta, dA, dB, dC, *(None if tensor is None else found for tensor, found in optional)


def _forward(states: Tensor | None, *given: Any) -> tuple[Tensor, Tensor]:
    """y and the final state; where there is room for them, states are kept too."""
    u, _, A, *_ = given
    if A.shape[1] > (most := _most_states(u)):
        return cuda_slabs.forward(_forward, most, states, *given)
    call = _Call(given)
    geometry = forward_geometry(call.kind, keep=states is not None)
    segments = forward_segments(geometry, call.work, cuda_launch.multiprocessors(u.device))
    carried = call.carried(segments, geometry.states) if segments > 1 else None
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    final_state = A.new_empty(call.sequences, *A.shape)
    words = [*call.words(segments), *tensor(carried), y.data_ptr(), final_state.data_ptr(), *_kept(states)]
    call.launch("scan_forward", geometry, segments, words)
    return y, final_state


class _Call:
    """One call of the scan: what it was given, and the words that its kernels begin with."""

    def __init__(self, given: Sequence[Any], dy: Tensor | None = None) -> None:
        u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, discretisation = given
        refuse_complex(A)
        self.u, self.A, self.B, self.C = u, A, B, C
        self.batch, self.length, self.channels = u.shape
        self.n = A.shape[1]
        self.sequences = self.batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        # Of sequences that are packed the lengths are not known here.
        length = self.length if cu_seqlens is None else self.length // max(1, self.sequences)
        self.work = Work(sequences=self.sequences, length=length, channels=self.channels)
        static_B, static_C = B.dim() == 2, C.dim() == 2
        rows = [t for t in (u, delta, z, dy) if t is not None]
        matrices = [t for t in (B, C) if t.dim() == 3]
        aligned = self.length < 2**31 and all(map(_in_rows, (*rows, *matrices)))
        self.kind = Kind(
            dtype=u.dtype, n=self.n, zoh=discretisation == "zoh", softplus=delta_softplus, gated=z is not None,
            static_B=static_B, static_C=static_C, aligned=aligned,
        )  # fmt: skip
        self._tensors = [
            word for given in (u, delta, z, A, B, C, D, delta_bias, initial_state, cu_seqlens) for word in tensor(given)
        ]
        self._numbers = (self.sequences, self.length, self.channels, self.n)

    def words(self, segments: int) -> list[int]:
        """`Inputs` of scan_tile.cuh."""
        return [*self._tensors, *self._numbers, segments]

    def launch(self, name: str, geometry: Geometry, segments: int, words: Sequence[int]) -> None:
        kernel = cuda_launch.kernel(self.u.device, f"{name}.cu", name, geometry.defines)
        kernel.launch(self.work.blocks(geometry) * segments, geometry.threads, geometry.shared, words)

    def carried(
        self, segments: int, states: int, dy: Tensor | None = None, dfinal_state: Tensor | None = None
    ) -> Tensor:
        """What each segment starts from (sequences · segments, d, n), or with dy, backwards, what its end does.

        Computed with `states` states a thread.
        """
        ends = self.A.new_empty(self.sequences, segments, *self.A.shape)
        sums = self.A.new_empty(self.sequences, segments, self.channels)
        reverse = dy is not None
        geometry = states_geometry(self.kind, reverse=reverse, states=states)
        words = [*self.words(segments), *tensor(dy), *tensor(dfinal_state), ends.data_ptr(), sums.data_ptr()]
        self.launch("scan_states", geometry, segments, words)
        words = [*tensor(self.A), sums.data_ptr(), ends.data_ptr(), self.sequences, segments, self.channels, self.n]
        kernel = cuda_launch.kernel(self.u.device, "scan_carry.cu", "scan_carry", (element(self.u.dtype),))
        blocks = -(-self.sequences * self.A.numel() // CARRY_THREADS)
        kernel.launch(blocks, CARRY_THREADS, 0, [*words, int(reverse)])
        return ends.flatten(0, 1)

    def partial_sums(self, geometry: Geometry, segments: int) -> tuple[Tensor, Tensor]:
        """Room for each block's part of dB and dC, and for each segment's part of the parameters' gradients."""
        selective = (self.B.dim() == 3) + (self.C.dim() == 3)
        across = -(-self.channels // geometry.channels)
        matrices = self.A.new_empty(across, self.batch * self.length, selective, geometry.padded)
        each = (3 - selective) * self.A.numel() + 2 * self.channels
        return matrices, self.A.new_empty(self.sequences * segments, each)

    def summed(self, matrices: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
        """dA, dB, dC, dD and dbias."""
        dA, dD, dbias = self.A.new_empty(self.A.shape), self.A.new_empty(self.channels), self.A.new_empty(self.channels)
        dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (self.B, self.C))
        by_rank = {rank: [t.data_ptr() if t.dim() == rank else 0 for t in (dB, dC)] for rank in (2, 3)}
        across, rows, selective, padded = matrices.shape
        words = [
            matrices.data_ptr(), *by_rank[3], across, rows, self.n, padded,
            parameters.data_ptr(), dA.data_ptr(), *by_rank[2], dD.data_ptr(), dbias.data_ptr(),
            parameters.shape[0], self.channels,
        ]  # fmt: skip
        blocks = -(-rows * selective * padded // (FOUR * SUM_THREADS)) + -(-parameters.shape[1] // WARP)
        kernel = cuda_launch.kernel(self.u.device, "scan_sum.cu", "scan_sum", (element(self.u.dtype),))
        kernel.launch(blocks, SUM_THREADS, 0, words)
        return dA, dB, dC, dD, dbias


def variants() -> Iterator[Variant]:
    """What is compiled ahead of time: the released models' scan in every dtype but float64, and the self-test's."""
    released = {"n": 16, "zoh": False, "softplus": True, "static_B": False, "static_C": False}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        # Their last layer gates only what is asked of it, outside.
        for gated in (True, False):
            yield from _variants(Kind(dtype=dtype, aligned=True, gated=gated, **released), (1, 2))
        for name in ("scan_carry", "scan_sum"):
            yield Variant(f"{name}.cu", name, (element(dtype),))
    bare = {"dtype": torch.float32, "softplus": False, "gated": False, "aligned": False}
    yield from _variants(Kind(dtype=torch.float32, aligned=False, gated=True, **released), (1,))
    yield from _variants(Kind(n=3, zoh=True, static_B=True, static_C=True, **bare), (1,))
    yield from _variants(Kind(n=2, zoh=False, static_B=False, static_C=False, **bare), (1,))


def _variants(kind: Kind, lanes: Iterable[int]) -> Iterator[Variant]:
    """Every kernel of the scan that works on rows, for one kind of call."""
    for keep in (False, True):
        yield Variant("scan_forward.cu", "scan_forward", forward_geometry(kind, keep=keep).defines)
    for count in lanes:
        yield Variant("scan_backward.cu", "scan_backward", backward_geometry(kind, lanes=count).defines)
    for reverse in (False, True):
        found = states_geometry(kind, reverse=reverse, states=forward_geometry(kind).states)
        yield Variant("scan_states.cu", "scan_states", found.defines)


def _most_states(u: Tensor) -> int:
    return most_states(u.dtype, cuda_launch.shared_memory(u.device))


def _kept(states: Tensor | None) -> tuple[int, int]:
    """`Kept` of scan_tile.cuh."""
    return (0, 0) if states is None else (states.data_ptr(), states.stride(0))


def _in_rows(given: Tensor) -> bool:
    """Whether it can be read in fours, and a step along l is counted in 32 bits."""
    return in_fours(given) and given.stride(1) < 2**31
