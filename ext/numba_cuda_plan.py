"""How the numba-cuda scan shares its work out among blocks and threads, as a function of shapes and dtypes alone."""

from dataclasses import dataclass
from functools import cached_property

import torch

SHARED = 48 * 1024  # bytes of shared memory of a block: what every GPU gives without being asked
STEPS = 64  # between two states that the backward pass keeps, about
CHANNELS = 32  # of a block, at most: one warp reads one row of them
THREADS = 1024  # of a block, at most

# What was given, as bits of the kernels' argument `given`.
D, Z, BIAS, SOFTPLUS, PACKED, INITIAL = (1 << bit for bit in range(6))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a scan kernel is compiled for.

    A thread has one channel and `states` of its n states; a block has `channels` channels, `groups` threads to each,
    and goes along its sequence in tiles of so many steps.
    """

    dtype: torch.dtype  # of u, delta, z and selective B and C
    is_complex: bool  # A; then B, C and the states are complex, too
    n: int
    room: int  # channels that a block may have; see `room_for`
    selective_B: bool
    selective_C: bool
    zoh: bool

    def __post_init__(self) -> None:
        if self._too_many(1):
            raise ValueError(f"numba-cuda can't take n = {self.n} states in {self.work}: a step outgrows shared memory")

    @property
    def real(self) -> torch.dtype:
        """In which Δ and y are calculated, and the dtype of A, D and the bias."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def work(self) -> torch.dtype:
        """In which states are calculated."""
        return self.real.to_complex() if self.is_complex else self.real

    @property
    def wide(self) -> torch.dtype:
        """In which sums along whole sequences are taken."""
        return torch.complex128 if self.is_complex else torch.float64

    def stored(self, selective: bool) -> torch.dtype:
        """The dtype of B or C."""
        return self.dtype if selective and not self.is_complex else self.work

    @property
    def states(self) -> int:
        """States of a thread, in its registers."""
        return min(self.n, 4 if self.n <= 32 else 8 if self.n <= 64 else 16)

    @property
    def groups(self) -> int:
        """Threads that share a channel."""
        return -(-self.n // self.states)

    @property
    def padded(self) -> int:
        """n, rounded up to whole groups."""
        return self.groups * self.states

    @cached_property
    def channels(self) -> int:
        """Channels of a block: a power of two, fewer where one step of many would overflow shared memory."""
        channels = self.room
        while channels > 1 and self._too_many(channels):
            channels //= 2
        return channels

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.channels * self.groups

    def blocks_across(self, d: int) -> int:
        """Blocks that share d channels of a sequence."""
        return -(-d // self.channels)

    @cached_property
    def forward_tile(self) -> int:
        """Steps of a tile of the forward pass."""
        return min(32, _power_of_two(SHARED // self._forward_step(self.channels)))

    @cached_property
    def backward_tile(self) -> int:
        """Steps of a tile of the backward pass."""
        return min(32, _power_of_two((SHARED - self._totals(self.channels)) // self._backward_step(self.channels)))

    @property
    def keep_tile(self) -> int:
        """Steps of a tile of the pass that keeps states: what fits beside the forward pass's arrays, within a span."""
        return min(self.forward_tile, self.span)

    @property
    def forward_bytes(self) -> int:
        """Shared memory of a block in the forward pass."""
        return self.forward_tile * self._forward_step(self.channels)

    @property
    def backward_bytes(self) -> int:
        """Shared memory of a block in the backward pass."""
        return self.backward_tile * self._backward_step(self.channels) + self._totals(self.channels)

    @property
    def tiles(self) -> int:
        """Tiles of the backward pass between two states that it keeps."""
        return max(4, STEPS // self.backward_tile)

    @property
    def span(self) -> int:
        """Steps between two states that the backward pass keeps."""
        return self.backward_tile * self.tiles

    def _too_many(self, channels: int) -> bool:
        one_step = self._backward_step(channels) + self._totals(channels)
        return one_step > SHARED or channels * self.groups > THREADS

    def _forward_step(self, channels: int) -> int:
        """Bytes of a step: Δ, Δu and u, B and C, and every thread's part of y."""
        size = self.real.itemsize
        return size * channels * (3 + self.groups) + 2 * self.padded * self.work.itemsize

    def _backward_step(self, channels: int) -> int:
        """The same of the backward pass, which has dy and every state besides, and two parts a thread."""
        size = self.real.itemsize * channels * (4 + 2 * self.groups)
        return size + self.padded * (channels + 3) * self.work.itemsize

    def _totals(self, channels: int) -> int:
        """Bytes of two sums a thread, in double precision."""
        return 16 * self.groups * channels


def room_for(d: int) -> int:
    """The least power of two that holds d channels, up to CHANNELS: a wider block would idle."""
    return min(CHANNELS, 1 << (d - 1).bit_length())


def _power_of_two(number: int) -> int:
    """The greatest power of two that is at most `number`, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
