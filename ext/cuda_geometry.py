"""How the scan's CUDA kernels are shaped for what they are given: states a thread, warps a block, steps a tile."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from .cuda_arguments import FOUR
from .kept import CHECKPOINT

WARP = 32
ORIGIN = 80  # bytes of a block's struct Origin (scan_backward.cuh)
SHARED = 100 * 1024  # bytes a block takes at most where shorter tiles avoid it: two fit on a multiprocessor
SHORTEST = 512  # steps of a segment that is cut to fill an idle GPU in the forward pass, which costs much there
LONG = 2048  # steps of a segment that costs little beside its length
GRAIN = 32  # segments begin at multiples of it (scan_tile.cuh)
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

Defines = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a call of the scan is compiled for; `aligned`: every row of every tensor can be read in fours."""

    dtype: torch.dtype
    n: int
    zoh: bool
    softplus: bool
    gated: bool
    static_B: bool
    static_C: bool
    aligned: bool

    @property
    def real(self) -> int:
        """Bytes of a number that is computed with."""
        return 8 if self.wide else 4

    @property
    def wide(self) -> bool:
        return self.dtype == torch.float64

    def defines(self) -> Iterator[tuple[str, int]]:
        """The macros that every kernel of the scan is compiled with."""
        yield element(self.dtype)
        for name in ("zoh", "softplus", "gated", "static_B", "static_C", "aligned"):
            yield name.upper(), int(getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One way to run a kernel of the scan.

    states    of a channel that a thread keeps in registers
    groups    warps of a block, which share a channel's states out among them
    lanes     channels of a thread
    blocks    that are to share a multiprocessor, which bounds a thread's registers
    shared    bytes of dynamic shared memory
    """

    states: int
    groups: int
    lanes: int
    blocks: int
    shared: int
    defines: Defines

    @property
    def channels(self) -> int:
        """Of a block."""
        return WARP * self.lanes

    @property
    def padded(self) -> int:
        """Columns of a tile of B or C, which is read in fours."""
        return _padded(self.states, self.groups)

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.groups


@cache
def forward_geometry(kind: Kind, *, keep: bool = False) -> Geometry:
    """The forward kernel's (scan_forward.cu); with `keep` it keeps states for the backward pass."""
    # Beyond 16 states few warps with many states each: what a channel needs is read by fewer.
    states = _at_most(kind.n, (1, 1), (2, 2), (4, 16), (8, 64 if kind.wide else 32), (16, 64))
    groups = -(-kind.n // states)
    padded = _padded(states, groups)

    def shared(steps: int) -> int:
        matrices = sum(1 if static else steps for static in (kind.static_B, kind.static_C)) * padded
        return kind.real * (2 * (2 * steps * WARP + matrices) + 2 * groups * steps * WARP)

    tiles = (32, 16, 8) if states < 16 else (16, 8)
    unroll = 1 if states == 16 else 4 if kind.dtype.itemsize == 4 else 2
    return _walking(kind, states, groups, unroll, tiles, shared, ("KEEP", int(keep)))


@cache
def states_geometry(kind: Kind, *, reverse: bool, states: int) -> Geometry:
    """The kernel's that gives states alone (scan_states.cu), for `states` of them a thread."""
    groups = -(-kind.n // states)
    static, padded = kind.static_C if reverse else kind.static_B, _padded(states, groups)

    def shared(steps: int) -> int:
        return kind.real * 2 * (2 * steps * WARP + (1 if static else steps) * padded)

    return _walking(kind, states, groups, 4 if states < 8 else 2, (32, 16), shared, ("REVERSE", int(reverse)))


@cache
def backward_geometry(kind: Kind, *, lanes: int) -> Geometry:
    """The backward kernel's (scan_backward.cu), for `lanes` channels a thread."""
    states = _at_most(kind.n, (1, 1), (2, 2), (4, 16), (8, 64))
    groups = -(-kind.n // states)
    part, finish = 4 if states < 8 else 2, 8 if lanes == 2 or states == 8 else CHECKPOINT
    if lanes == 2 and kind.dtype.itemsize == 4:
        # Else only two blocks' sums would find room beside the inputs.
        finish = 4
    blocks = 1 if kind.wide else 3 if groups <= 4 else 2
    width, threads, padded = WARP * lanes, WARP * groups, _padded(states, groups)
    selective = (not kind.static_B) + (not kind.static_C)
    # Of a chunk as it lies in memory: u, delta, dy and z, then B and C, in whole fours for every thread.
    fours = (4 if kind.gated else 3) * _fours(CHECKPOINT, width, threads) + 2 * _fours(CHECKPOINT, padded, threads)
    fours += 0 if kind.gated else 1
    across = WARP * (part * selective * states + FOUR) if selective else FOUR
    sums = (3 + kind.zoh) * groups * finish * width
    shared = FOUR * kind.dtype.itemsize * fours * threads
    shared += kind.real * (sums + groups * across + states * lanes * threads + 2 * width + 2 * FOUR * threads)
    shared += ORIGIN
    return _geometry(
        kind, states, groups, lanes, blocks, shared, ("STEPS", CHECKPOINT), ("PART", part), ("FINISH", finish)
    )


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much there is to do: sequences of `length` steps (on average, where they are packed) by `channels`."""

    sequences: int
    length: int
    channels: int

    def blocks(self, geometry: Geometry) -> int:
        """Blocks of whole sequences; none where there is nothing to do."""
        return -(-self.channels // geometry.channels) * self.sequences


def forward_segments(geometry: Geometry, work: Work, multiprocessors: int) -> int:
    """Into how many pieces the forward pass cuts sequences along l: one, unless whole ones leave the GPU idle.

    A cut costs every decay a second time, but for the last piece's, so it has to fill what lies more than half idle.
    Then the pieces are as many as fill the GPU one to four times over, whichever leaves the least of it idle.
    """
    blocks, room = max(1, work.blocks(geometry)), multiprocessors * geometry.blocks
    if room < 3 * blocks:
        return 1
    counts = [(turns * room // blocks, turns * room) for turns in range(1, 5)]
    fit = [(pieces * blocks / places, -pieces) for pieces, places in counts if pieces * LONG <= work.length]
    return -max(fit)[1] if fit else max(1, min(room // blocks, work.length // SHORTEST))


@cache
def backward_plan(kind: Kind, work: Work, multiprocessors: int) -> tuple[Geometry, int]:
    """The backward kernel's geometry, and into how many pieces sequences are cut along l: what takes the least time.

    Two channels a thread are less work, and pieces fill the GPU; both want enough of it to do.
    """
    lanes = (1,) if work.channels <= WARP or kind.n > 16 or kind.wide else (1, 2)
    geometries = [backward_geometry(kind, lanes=count) for count in lanes]
    plans = []
    for geometry in geometries:
        blocks, room = max(1, work.blocks(geometry)), multiprocessors * geometry.blocks
        most = max(1, work.length // GRAIN)
        counts = {1, *(min(most, max(1, turns * room // blocks)) for turns in range(1, 5))}
        plans += [(_backward_time(geometry, pieces, blocks / room, work.length), geometry, pieces) for pieces in counts]
    return min(plans, key=lambda plan: (plan[0], plan[2]))[1:]


def _backward_time(geometry: Geometry, pieces: int, full: float, length: int) -> float:
    """What a backward pass takes, in chunks of CHECKPOINT steps, where one piece fills `full` of the GPU.

    Fitted to an H200 (reports/results/scan-h200): a first turn of the GPU that is not full saves half of what it lacks,
    a last one three quarters; one channel a thread costs a quarter more, and what pieces start from a fifth of a piece
    and two launches.
    """
    full *= pieces
    turns = (1 + full) / 2 if full < 1 else full + (math.ceil(full) - full) / 4
    chunk = 1.0 if geometry.lanes == 2 else 1.25
    cut = (1 - 1 / pieces) * 0.22
    return length / CHECKPOINT / pieces * turns * (chunk + cut) + (2 if pieces > 1 else 0)


def most_states(dtype: torch.dtype, shared: int) -> int:
    """How many states one block takes on, on a GPU whose blocks may have `shared` bytes of shared memory."""
    small = shared < 160 * 1024
    return (8 if small else 32) if dtype == torch.float64 else (32 if small else 64)


def element(dtype: torch.dtype) -> tuple[str, int]:
    """The macro that says what activations are."""
    return "ELEMENT", ELEMENTS[dtype]


def _walking(
    kind: Kind,
    states: int,
    groups: int,
    unroll: int,
    tiles: tuple[int, ...],
    shared: Callable[[int], int],
    *options: tuple[str, int],
) -> Geometry:
    """Of a kernel that walks tiles in one direction: with the longest tile whose block keeps to SHARED bytes."""
    if kind.zoh:
        # An ablation, with much code a step: shorter tiles, which are unrolled whole, compile in a third of the time.
        unroll, tiles = 1, tiles[-1:]
    if groups == 1:
        # One warp has to hold a whole tile on its way.
        tiles = tuple(steps for steps in tiles if steps <= CHECKPOINT)
    steps = next((steps for steps in tiles if shared(steps) <= SHARED), tiles[-1])
    blocks = max(1, min(16, 12 // groups))
    return _geometry(
        kind, states, groups, 1, blocks, shared(steps), ("STEPS", steps), ("UNROLL", unroll), *options
    )  # fmt: skip


def _geometry(
    kind: Kind, states: int, groups: int, lanes: int, blocks: int, shared: int, *options: tuple[str, int]
) -> Geometry:
    sizes = (
        ("STATES", states), ("GROUPS", groups), ("LANES", lanes), ("BLOCKS", blocks), ("SHARED", shared),
        ("CHECKPOINT", CHECKPOINT),
    )  # fmt: skip
    return Geometry(
        states=states, groups=groups, lanes=lanes, blocks=blocks, shared=shared,
        defines=(*kind.defines(), *sizes, *options),
    )  # fmt: skip


def _at_most(n: int, *choices: tuple[int, int]) -> int:
    """The first choice that is for n or more."""
    return next(choice for choice, most in choices if n <= most)


def _fours(steps: int, columns: int, threads: int) -> int:
    """Fours of a tile that a thread moves."""
    return -(-steps // (threads // (columns // FOUR)))


def _padded(states: int, groups: int) -> int:
    return -(-states * groups // FOUR) * FOUR
