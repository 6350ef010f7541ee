"""How the scan's CUDA kernels are shaped for a dtype and a state size: states a thread, warps a block, steps a tile."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

WARP = 32
CHECKPOINT = 16  # steps between the states that the backward pass starts from
UNROLL = 4
MOST_STATES = 64  # that one block takes on
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
SHARED = 100 * 1024  # bytes a block takes at most where shorter tiles avoid it: two fit on a multiprocessor

Defines = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One way to run a kernel of the scan.

    states    of a channel that a thread keeps in registers
    groups    warps of a block, which share a channel's states out among them
    lanes     channels of a thread
    blocks    that are to share a multiprocessor, which bounds a thread's registers
    shortest  steps below which no segment is cut
    shared    bytes of dynamic shared memory
    """

    states: int
    groups: int
    lanes: int
    blocks: int
    shortest: int
    shared: int
    defines: Defines

    @property
    def channels(self) -> int:
        """Of a block."""
        return WARP * self.lanes

    @property
    def padded(self) -> int:
        """Columns of a tile of B or C."""
        return _padded(self.states, self.groups)

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.groups


@lru_cache(maxsize=None)
def forward_geometry(
    dtype: torch.dtype, n: int, channels: int, zoh: bool, softplus: bool, gated: bool, static_B: bool, static_C: bool,
    aligned: bool,
) -> Geometry:
    """The forward kernel's (scan_forward.cu)."""
    states, groups = _states(n)
    size, padded = _real_size(dtype), _padded(states, groups)

    def shared(steps: int) -> int:
        matrices = sum(1 if static else steps for static in (static_B, static_C)) * padded
        return size * (2 * (2 * steps * WARP + matrices) + 2 * groups * steps * WARP)

    steps = _longest(shared)
    blocks = _blocks(groups)
    return Geometry(
        states=states, groups=groups, lanes=1, blocks=blocks, shortest=4 * steps, shared=shared(steps),
        defines=(
            *_common(dtype, zoh, softplus, gated, static_B, static_C, aligned),
            ("STATES", states), ("GROUPS", groups), ("STEPS", steps), ("UNROLL", UNROLL), ("BLOCKS", blocks),
        ),
    )  # fmt: skip


@lru_cache(maxsize=None)
def states_geometry(
    dtype: torch.dtype, n: int, channels: int, zoh: bool, softplus: bool, gated: bool, static_B: bool, static_C: bool,
    aligned: bool, *, reverse: bool, checkpoint: bool, states: int,
) -> Geometry:  # fmt: skip
    """The kernel's that gives states alone (scan_states.cu); `states` a thread, 0 for as many as forward."""
    states = states or _states(n)[0]
    groups = -(-n // states)
    static = static_C if reverse else static_B
    size, padded = _real_size(dtype), _padded(states, groups)

    def shared(steps: int) -> int:
        return size * 2 * (2 * steps * WARP + (1 if static else steps) * padded)

    steps = _longest(shared, shortest=CHECKPOINT)
    blocks = _blocks(groups)
    return Geometry(
        states=states, groups=groups, lanes=1, blocks=blocks, shortest=4 * steps, shared=shared(steps),
        defines=(
            *_common(dtype, zoh, softplus, gated, static_B, static_C, aligned),
            ("STATES", states), ("GROUPS", groups), ("STEPS", steps), ("UNROLL", UNROLL), ("BLOCKS", blocks),
            ("REVERSE", int(reverse)), ("CHECKPOINT", CHECKPOINT if checkpoint else 0),
        ),
    )  # fmt: skip


@lru_cache(maxsize=None)
def backward_geometry(
    dtype: torch.dtype, n: int, channels: int, zoh: bool, softplus: bool, gated: bool, static_B: bool, static_C: bool,
    aligned: bool,
) -> Geometry:
    """The backward kernel's (scan_backward.cu)."""
    states, groups = _states(n)
    lanes, part, finish, blocks = _backward_tiling(dtype, n, channels)
    width, padded, size = WARP * lanes, _padded(states, groups), _real_size(dtype)
    selective = (not static_B) + (not static_C)
    # Of a chunk as it lies in memory: u, delta, dy and z, then B and C, in whole fours for every thread.
    fours = (3 + gated) * _fours(CHECKPOINT, width, groups) + 2 * _fours(CHECKPOINT, padded, groups)
    fours += 0 if gated else 1
    raw = 4 * dtype.itemsize * fours * WARP * groups
    rows = sum(1 if static else CHECKPOINT for static in (static_B, static_C))
    across = WARP * (part * selective * states + 4) if selective else 4
    return Geometry(
        states=states, groups=groups, lanes=lanes, blocks=blocks, shortest=8 * CHECKPOINT,
        shared=raw + size * (
            3 * CHECKPOINT * width + rows * padded
            + (3 + zoh) * groups * finish * width
            + groups * across
            + states * lanes * WARP * groups
            + 2 * width + 2 * 4 * WARP * groups
        ),
        defines=(
            *_common(dtype, zoh, softplus, gated, static_B, static_C, aligned),
            ("STATES", states), ("GROUPS", groups), ("LANES", lanes), ("STEPS", CHECKPOINT), ("CHECKPOINT", CHECKPOINT),
            ("PART", part), ("FINISH", finish), ("BLOCKS", blocks),
        ),
    )  # fmt: skip


def element(dtype: torch.dtype) -> tuple[str, int]:
    """The macro that says what activations are."""
    return "ELEMENT", ELEMENTS[dtype]


def _states(n: int) -> tuple[int, int]:
    """States a thread and warps a block: few states, for then more warps can hide each other's latency."""
    states = next(size for size, most in ((1, 1), (2, 2), (4, 16), (8, 64)) if n <= most)
    return states, -(-n // states)


def _backward_tiling(dtype: torch.dtype, n: int, channels: int) -> tuple[int, int, int, int]:
    """LANES, PART, FINISH and BLOCKS of the backward kernel."""
    wide = dtype == torch.float64
    lanes = 2 if n <= 16 and channels > WARP and not wide else 1
    return lanes, 4 if n <= 16 else 2, 8, 1 if wide else 3 if n <= 16 else 2


def _fours(steps: int, columns: int, groups: int) -> int:
    """Fours of a tile that a thread moves."""
    return -(-steps // (WARP * groups // (columns // 4)))


def _padded(states: int, groups: int) -> int:
    """Columns of a tile of B or C, which is read in fours."""
    return -(-states * groups // 4) * 4


def _blocks(groups: int) -> int:
    return max(1, min(16, 12 // groups))


def _longest(shared, shortest: int = UNROLL) -> int:  # noqa: ANN001
    """The longest tile whose block keeps to SHARED bytes; the shortest where none does."""
    return next((steps for steps in (32, 16, 8) if steps >= shortest and shared(steps) <= SHARED), max(8, shortest))


def _real_size(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


def _common(dtype: torch.dtype, *flags: bool) -> Iterator[tuple[str, int]]:
    yield element(dtype)
    for name, value in zip(("ZOH", "SOFTPLUS", "GATED", "STATIC_B", "STATIC_C", "ALIGNED"), flags, strict=True):
        yield name, int(value)
