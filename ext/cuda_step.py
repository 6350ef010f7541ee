"""One token of a mixer on the GPU: two kernels for a few rows, two kernels around torch's products for many."""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cuda_launch
from .cuda_arguments import FOUR, in_fours, pointer, refuse_complex, tensor
from .cuda_conv import filter_defines, odd_defines, usual_defines
from .cuda_geometry import WARP, Defines, element
from .nvrtc import Variant

FEW = 8  # rows that our own kernels project, with a warp for each output of the projection
CONV_THREADS = 256  # of step_conv.cu
SCAN_THREADS = 128  # of step_scan.cu, for CHANNELS channels
CHANNELS = 32
SLICES = 16  # into how many parts the channels are cut for the projection, where a block can take so many of them
MOST_FOURS = 8  # of a lane
SHARED = 48 * 1024


def step(
    x: Tensor,
    z: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    conv_state: Tensor,
    scan_state: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    activation: str,
    delta_softplus: bool,
    discretisation: str,
) -> Tensor:
    """As `reference.step`, for a real A."""
    refuse_complex(A)
    conv = _Conv(x, conv_weight, conv_bias, conv_state, activation == "silu")
    scan = _Scan(conv.u, z, A, D, delta_bias, scan_state, delta_softplus, discretisation)
    if dt_proj is not None and B is None and C is None and _few(len(x), conv_weight.shape[1], x_proj, dt_proj):
        partial, slices = conv.project(x_proj)
        scan.finish(conv, dt_proj, partial, slices)
    else:
        conv.run()
        n, rank = A.shape[1], 0 if dt_proj is None else dt_proj.shape[1]
        static = B is not None, C is not None
        widths = [rank, *(0 if is_static else n for is_static in static)]
        low, B_rows, C_rows = F.linear(conv.u, x_proj).split(widths, -1)
        delta = None if dt_proj is None else F.linear(low, dt_proj)
        scan.run(delta, B_rows if B is None else B, C_rows if C is None else C, static)
    return scan.y


def variants() -> Iterator[Variant]:
    """What is compiled ahead of time: the released models' decoding, of few rows and of many; and the self-test's."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield Variant("step_conv.cu", "step_conv", usual_defines(dtype))
        for fours in (1, 2, 3):
            yield Variant("step_conv.cu", "step_project", (*usual_defines(dtype), ("FOURS", fours)))
        for name in ("step_scan", "step_finish"):
            yield Variant("step_scan.cu", name, _scan_defines(dtype, False, False, False, True, name == "step_finish"))
    unaligned = odd_defines(True)
    yield Variant("step_conv.cu", "step_project", (*unaligned, ("FOURS", 1)))
    yield Variant("step_scan.cu", "step_finish", _scan_defines(torch.float32, False, False, False, True, False))


class _Conv:
    """The convolution of a token: u (b d), and the state moved on."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> None:
        self.x, self.state = x, state
        self._weight, self._silu = weight, silu
        self.u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._words = (*tensor(x), *tensor(weight), *tensor(bias), *tensor(state), self.u.data_ptr(), *x.shape)

    def run(self) -> None:
        rows, channels = self.x.shape
        kernel = cuda_launch.kernel(self.x.device, "step_conv.cu", "step_conv", self._defines(self.x, self.state))
        kernel.launch(-(-rows * -(-channels // FOUR) // CONV_THREADS), CONV_THREADS, 0, self._words)

    def project(self, x_proj: Tensor) -> tuple[Tensor, int]:
        """u, and its product with x_proj in parts (b slices p), whose number is given too; the state stays."""
        rows, channels = self.x.shape
        fours = _fours(channels)
        slices = -(-channels // (fours * WARP * FOUR))
        real = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        partial = torch.empty(rows, slices, len(x_proj), dtype=real, device=self.x.device)
        defines = *self._defines(self.x, self.state, x_proj), ("FOURS", fours)
        kernel = cuda_launch.kernel(self.x.device, "step_conv.cu", "step_project", defines)
        words = (*self._words, *tensor(x_proj), partial.data_ptr(), len(x_proj), slices)
        blocks = slices * -(-len(x_proj) * WARP // CONV_THREADS)
        kernel.launch(blocks if rows else 0, CONV_THREADS, rows * fours * WARP * FOUR * real.itemsize, words)
        return partial, slices

    def _defines(self, *rows: Tensor) -> Defines:
        return filter_defines(self.x.dtype, self._weight, self._silu, all(map(in_fours, rows)))


class _Scan:
    """The scan of a token: y (b d), and the state moved on."""

    def __init__(
        self,
        u: Tensor,
        z: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        bias: Tensor | None,
        state: Tensor,
        softplus: bool,
        discretisation: str,
    ) -> None:
        self.y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        self._zoh, self._n = discretisation == "zoh", A.shape[1]
        self._aligned = in_fours(A) and in_fours(state)
        self._words = (
            *tensor(u), *tensor(z), *tensor(A), *tensor(D), *tensor(bias), *tensor(state),
            self.y.data_ptr(), *u.shape, self._n, int(softplus),
        )  # fmt: skip

    def run(self, delta: Tensor | None, B: Tensor, C: Tensor, static: tuple[bool, bool]) -> None:
        """From what the projections gave (delta is zero without one), and B and C, which may be static."""
        defines = _scan_defines(self.y.dtype, self._zoh, *static, self._aligned, False)
        words = (*self._words, *tensor(delta), *tensor(B), *tensor(C))
        self._launch("step_scan", defines, 0, words)

    def finish(self, conv: _Conv, dt_proj: Tensor, partial: Tensor, slices: int) -> None:
        """From the parts of the projection: adds them up, makes Δ, and moves the convolution's state on too."""
        rank = dt_proj.shape[1]
        together = in_fours(dt_proj)
        defines = _scan_defines(self.y.dtype, self._zoh, False, False, self._aligned, together)
        words = (
            *self._words, *tensor(conv.x), *tensor(dt_proj), *tensor(conv.state),
            pointer(partial), slices, rank, conv.state.shape[1],
        )  # fmt: skip
        self._launch("step_finish", defines, _finish_shared(partial.shape[2], dt_proj, partial.element_size()), words)

    def _launch(self, name: str, defines: Defines, shared: int, words: tuple[int, ...]) -> None:
        rows, channels = self.y.shape
        kernel = cuda_launch.kernel(self.y.device, "step_scan.cu", name, defines)
        kernel.launch(rows * -(-channels // CHANNELS), SCAN_THREADS, shared, words)


def _few(rows: int, k: int, x_proj: Tensor, dt_proj: Tensor) -> bool:
    """Whether the two kernels that do everything are to be taken, and can."""
    real = 8 if x_proj.dtype == torch.float64 else 4
    moved = (k - 1) * CHANNELS <= SCAN_THREADS
    return rows <= FEW and moved and _finish_shared(len(x_proj), dt_proj, real) <= SHARED


def _finish_shared(outputs: int, dt_proj: Tensor, real: int) -> int:
    """Bytes of a block of step_finish: the outputs of x_proj in `real` bytes each, and its rows of dt_proj."""
    return -(-outputs // FOUR) * FOUR * real + CHANNELS * dt_proj.shape[1] * dt_proj.element_size()


def _fours(channels: int) -> int:
    """Fours of a lane in step_project."""
    return min(MOST_FOURS, -(-channels // (SLICES * WARP * FOUR)))


@cache
def _scan_defines(
    dtype: torch.dtype, zoh: bool, static_B: bool, static_C: bool, aligned: bool, together: bool
) -> Defines:
    flags = {"ZOH": zoh, "STATIC_B": static_B, "STATIC_C": static_C, "ALIGNED": aligned, "TOGETHER": together}
    return element(dtype), *((name, int(flag)) for name, flag in flags.items())
