"""The scan of the CUDA backend: cuts the work, allocates the results and launches the kernels of csrc."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from . import cuda_launch, cuda_slabs
from .cuda_arguments import in_fours, pointer, refuse_complex, tensor
from .cuda_geometry import (
    CHECKPOINT,
    LONG,
    SHORTEST,
    WARP,
    Geometry,
    Kind,
    backward_geometry,
    element,
    forward_geometry,
    most_states,
    states_geometry,
)
from .nvrtc import Variant

CARRY_THREADS = 128
SUM_THREADS = 8 * WARP  # of a block of scan_sum.cu, which takes as many numbers of dB and dC, or WARP of the rest


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.scan_forward`, for a real A."""
    if A.shape[1] > (most := _most_states(u)):
        return cuda_slabs.forward(
            scan_forward,
            most,
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            initial_state,
            cu_seqlens,
            delta_softplus,
            discretisation,
        )
    call = _Call(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, discretisation)
    geometry = forward_geometry(call.kind)
    segments = call.segments(geometry)
    carried = call.carried(segments, geometry.states) if segments > 1 else None
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    final_state = A.new_empty(call.sequences, *A.shape)
    words = [*call.words(segments), *tensor(carried), y.data_ptr(), final_state.data_ptr()]
    call.launch("scan_forward", geometry, segments, words)
    return y, final_state


def scan_backward(
    dy: Tensor,
    dfinal_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
) -> tuple[Tensor | None, ...]:
    """As `reference.scan_backward`; states are computed again, from one kept every CHECKPOINT steps."""
    if A.shape[1] > (most := _most_states(u)):
        return cuda_slabs.backward(
            scan_backward, most, dy, dfinal_state, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens,
            delta_softplus, discretisation,
        )  # fmt: skip
    call = _Call(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, discretisation, dy)
    geometry = call.backward_geometry()
    segments = call.segments(geometry)
    checkpoints = call.checkpoints(geometry)
    carried = call.carried(segments, geometry.states, checkpoints=checkpoints)
    back = call.carried(segments, geometry.states, dy, dfinal_state) if segments > 1 else None
    du, ddelta = (
        torch.empty(u.shape, dtype=u.dtype, device=u.device),
        torch.empty(u.shape, dtype=u.dtype, device=u.device),
    )
    dz = None if z is None else torch.empty(u.shape, dtype=u.dtype, device=u.device)
    dstate = A.new_empty(call.sequences, *A.shape)
    matrices, parameters = call.partial_sums(geometry, segments)
    words = [
        *call.words(segments), *tensor(dy), *tensor(carried), *tensor(back), *tensor(dfinal_state),
        *map(pointer, (*checkpoints, du, ddelta, dz, dstate, matrices, parameters)),
    ]  # fmt: skip
    call.launch("scan_backward", geometry, segments, words)
    dA, dB, dC, dD, dbias = call.summed(matrices, parameters)
    optional = ((D, dD), (z, dz), (delta_bias, dbias), (initial_state, dstate))
    return du, ddelta, dA, dB, dC, *(None if given is None else found for given, found in optional)


class _Call:
    """One call of the scan: what it was given, and the words that its kernels begin with."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        delta_softplus: bool,
        discretisation: str,
        dy: Tensor | None = None,
    ) -> None:
        refuse_complex(A)
        self.u, self.A, self.B, self.C = u, A, B, C
        self.batch, self.length, self.channels = u.shape
        self.n = A.shape[1]
        self.sequences = self.batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.packed = cu_seqlens is not None
        static_B, static_C = B.dim() == 2, C.dim() == 2
        rows = [t for t in (u, delta, z, dy) if t is not None]
        matrices = [t for t in (B, C) if t.dim() == 3]
        aligned = all(map(_in_rows, (*rows, *matrices)))
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
        kernel.launch(self._blocks(geometry) * segments, geometry.threads, geometry.shared, words)

    def segments(self, geometry: Geometry) -> int:
        """Into how many pieces each sequence is cut along l: one, unless blocks of whole sequences leave the GPU idle.

        A cut costs every decay a second time, but for the last piece's, so it has to fill what lies more than half
        idle. Then the pieces are as many as fill the GPU one to four times over, whichever leaves the least of it idle.
        """
        blocks, room = max(1, self._blocks(geometry)), self._room(geometry)
        length = self.length // max(1, self.sequences) if self.packed else self.length
        if room < 3 * blocks:
            return 1
        counts = [(turns * room // blocks, turns * room) for turns in range(1, 5)]
        fit = [(pieces * blocks / places, -pieces) for pieces, places in counts if pieces * LONG <= length]
        return -max(fit)[1] if fit else max(1, min(room // blocks, length // SHORTEST))

    def backward_geometry(self) -> Geometry:
        """With two channels a thread, which is less work, where that leaves blocks enough for the GPU."""
        geometry = backward_geometry(self.kind, lanes=2)
        if self.channels <= WARP or self.n > 16 or self.kind.wide:
            return backward_geometry(self.kind, lanes=1)
        room, blocks = self._room(geometry), self._blocks(geometry)
        whole = 3 * blocks >= 2 * room
        return geometry if whole or self.segments(geometry) > 3 else backward_geometry(self.kind, lanes=1)

    def _blocks(self, geometry: Geometry) -> int:
        return -(-self.channels // geometry.channels) * self.sequences

    def _room(self, geometry: Geometry) -> int:
        """Blocks that the GPU runs at once."""
        return cuda_launch.multiprocessors(self.u.device) * geometry.blocks

    def carried(
        self,
        segments: int,
        states: int,
        dy: Tensor | None = None,
        dfinal_state: Tensor | None = None,
        checkpoints: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | None:
        """What each segment starts from (sequences · segments, d, n), or with dy, backwards, what its end does.

        Computed with `states` states a thread; with `checkpoints` these are filled too.
        """
        ends = sums = None
        if segments > 1:
            ends = self.A.new_empty(self.sequences, segments, *self.A.shape)
            sums = self.A.new_empty(self.sequences, segments, self.channels)
        reverse, checkpoint = dy is not None, checkpoints is not None
        geometry = states_geometry(self.kind, reverse=reverse, checkpoint=checkpoint, states=states)
        kept = checkpoints or (None, None)
        pointers = map(pointer, (ends, sums, *kept))
        words = [*self.words(segments), *tensor(dy), *tensor(dfinal_state), *pointers]
        self.launch("scan_states", geometry, segments, words)
        if ends is None or sums is None:
            return None
        words = [*tensor(self.A), sums.data_ptr(), ends.data_ptr(), self.sequences, segments, self.channels, self.n]
        kernel = cuda_launch.kernel(self.u.device, "scan_carry.cu", "scan_carry", (element(self.u.dtype),))
        blocks = -(-self.sequences * self.A.numel() // CARRY_THREADS)
        kernel.launch(blocks, CARRY_THREADS, 0, [*words, int(reverse)])
        return ends.flatten(0, 1)

    def checkpoints(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Room for a state every CHECKPOINT steps of every sequence, and for ΣΔ before it."""
        whole = -(-self.length // CHECKPOINT)
        slots = whole + self.sequences if self.packed else whole * self.sequences
        shape = (slots, geometry.groups, self.channels, geometry.states)
        return self.A.new_empty(shape), self.A.new_empty(slots, self.channels)

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
        blocks = -(-rows * selective * padded // SUM_THREADS) + -(-parameters.shape[1] // WARP)
        kernel = cuda_launch.kernel(self.u.device, "scan_sum.cu", "scan_sum", (element(self.u.dtype),))
        kernel.launch(blocks, SUM_THREADS, 0, words)
        return dA, dB, dC, dD, dbias


def variants() -> Iterator[Variant]:
    """What is compiled ahead of time: the released models' scan in every dtype but float64, and the self-test's."""
    released = {"n": 16, "zoh": False, "softplus": True, "gated": True, "static_B": False, "static_C": False}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from _variants(Kind(dtype=dtype, aligned=True, **released), (1, 2))
        for name in ("scan_carry", "scan_sum"):
            yield Variant(f"{name}.cu", name, (element(dtype),))
    bare = {"dtype": torch.float32, "softplus": False, "gated": False, "aligned": False}
    yield from _variants(Kind(dtype=torch.float32, aligned=False, **released), (1,))
    yield from _variants(Kind(n=3, zoh=True, static_B=True, static_C=True, **bare), (1,))
    yield from _variants(Kind(n=2, zoh=False, static_B=False, static_C=False, **bare), (1,))


def _variants(kind: Kind, lanes: Iterable[int]) -> Iterator[Variant]:
    """Every kernel of the scan that works on rows, for one kind of call."""
    forward = forward_geometry(kind)
    yield Variant("scan_forward.cu", "scan_forward", forward.defines)
    for count in lanes:
        yield Variant("scan_backward.cu", "scan_backward", backward_geometry(kind, lanes=count).defines)
    for reverse, checkpoint in ((False, False), (True, False), (False, True)):
        found = states_geometry(kind, reverse=reverse, checkpoint=checkpoint, states=forward.states)
        yield Variant("scan_states.cu", "scan_states", found.defines)


def _most_states(u: Tensor) -> int:
    return most_states(u.dtype, cuda_launch.shared_memory(u.device))


def _in_rows(given: Tensor) -> bool:
    """Whether it can be read in fours, and a step along l is counted in 32 bits."""
    return in_fours(given) and given.stride(1) < 2**31
