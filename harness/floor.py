"""What this machine can do at best, measured beside a benchmark: exponentials in registers, bytes from end to end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..ext import cuda_launch, nvrtc
from ..ext.cpu_threads import share_out
from .errors import one_line

WIDTH = 16  # float32 of one vector: a 512-bit register, or two or four narrower ones
CHAINS = 12  # independent vectors of one thread: enough to hide each instruction's latency
EXPONENTIALS = 2**25  # of one call, roughly: a millisecond, so that starting the threads does not count

# Of ceiling.cu: threads of a block, blocks of a multiprocessor (all that it holds), exponentials of a turn, turns.
GPU_THREADS, GPU_BLOCKS, GPU_ROUND, GPU_ROUNDS = 256, 8, 8 * 16, 128

# 2^-g = c0 + c1 g + ... + c5 g^5 within 1.0e-7 for |g| <= 1/2: interpolated at the Chebyshev nodes.
POLYNOMIAL = (1.0000001, -0.6931472, 0.24022107, -0.05550357, 0.009676031, -0.0013390853)
# 1.5 * 2^23 pushes a float32's fraction out, which rounds it; its low bits then hold the integer.
ROUND = 1.5 * 2**23


def exp2_call(threads: int) -> tuple[Callable[[], list[float]], int]:
    """A call that evaluates 2^-x in registers on every thread, touching no memory, and how often one call does.

    Every vector is fed back to itself, so it goes to the x that is 2^-x, 0.6411857; the call gives the threads' means.
    An evaluation is ten vector instructions: three to split off the integer, five fused multiply-adds, two to scale.
    """
    run = _compiled()
    rounds = EXPONENTIALS // (threads * CHAINS * WIDTH)

    def call() -> list[float]:
        means = [0.0] * threads

        def work(first: int, last: int) -> None:
            for thread in range(first, last):
                means[thread] = run(rounds)

        share_out(work, threads, threads)
        return means

    return call, rounds * threads * CHAINS * WIDTH


def gpu_exp2_call(device: torch.device) -> tuple[Callable[[], torch.Tensor], int]:
    """As `exp2_call`, by the special-function units of a GPU ("cuda:N"): the threads' means, and how often a call does.

    ValueError, in one line that says what is missing, where the kernel can't be compiled.
    """
    try:
        kernel = _gpu_kernel(device)
    except RuntimeError as error:
        raise ValueError(f"the floor can't be measured: {one_line(error)}") from error
    blocks = GPU_BLOCKS * cuda_launch.multiprocessors(device)
    means = torch.empty(blocks * GPU_THREADS, device=device)

    def call() -> torch.Tensor:
        kernel.launch(blocks, GPU_THREADS, 0, (means.data_ptr(), GPU_ROUNDS))
        return means

    return call, means.numel() * GPU_ROUND * GPU_ROUNDS


@cache
def _gpu_kernel(device: torch.device) -> Any:
    image = nvrtc.cubin("ceiling.cu", (), cuda_launch.architecture(device), csrc=Path(__file__).parent)
    return cuda_launch.Kernel(device, image, "exp2_in_registers")


def bytes_call(count: int, device: torch.device | str = "cpu") -> Callable[[], object]:
    """A call that moves `count` bytes (read and written together) as a copy does, on torch's threads or the GPU."""
    source = torch.ones(max(1, count // 8), dtype=torch.float32, device=device)
    destination = torch.empty_like(source)
    return lambda: destination.copy_(source)


@cache
def _compiled() -> Any:
    from numba import njit, types
    from numba.extending import intrinsic

    @intrinsic
    def iterate(typing: Any, rounds: Any) -> Any:
        return types.float32(types.intp), lambda context, builder, signature, arguments: _iterate(builder, *arguments)

    def run(rounds):
        return iterate(rounds) / (CHAINS * WIDTH)  # type: ignore[reportCallIssue]

    return njit(nogil=True)(run)


def _iterate(builder: Any, rounds: Any) -> Any:
    """LLVM of: every chain's x = 2^-x, `rounds` times; the sum over all chains and lanes."""
    from llvmlite import ir
    from numba.core import cgutils

    vector = ir.VectorType(ir.FloatType(), WIDTH)
    starts = [ir.Constant(vector, [(lane + chain) / 32 for lane in range(WIDTH)]) for chain in range(CHAINS)]
    chains = [cgutils.alloca_once_value(builder, start) for start in starts]
    with cgutils.for_range(builder, rounds):
        values = [_exp2_of_minus(builder, vector, builder.load(chain)) for chain in chains]
        for chain, value in zip(chains, values, strict=True):
            builder.store(value, chain)
    total = builder.load(chains[0])
    for chain in chains[1:]:
        total = builder.fadd(total, builder.load(chain))
    lanes = [builder.extract_element(total, ir.Constant(ir.IntType(32), lane)) for lane in range(WIDTH)]
    for lane in lanes[1:]:
        lanes[0] = builder.fadd(lanes[0], lane)
    return lanes[0]


def _exp2_of_minus(builder: Any, vector: Any, x: Any) -> Any:
    """2^-x of a vector with |x| < 126: -x = k - g with k an integer and |g| <= 1/2."""
    from llvmlite import ir

    bits = ir.VectorType(ir.IntType(32), WIDTH)

    def every_lane(number: float) -> Any:
        return ir.Constant(vector, [torch.tensor(number, dtype=torch.float32).item()] * WIDTH)

    shifted = builder.fsub(every_lane(ROUND), x)
    g = builder.fadd(x, builder.fsub(shifted, every_lane(ROUND)))
    power = every_lane(POLYNOMIAL[-1])
    for coefficient in POLYNOMIAL[-2::-1]:
        # "contract" lets LLVM fuse the product into the sum.
        product = builder.fmul(power, g, flags=("contract",))
        power = builder.fadd(product, every_lane(coefficient), flags=("contract",))
    k = builder.shl(builder.bitcast(shifted, bits), ir.Constant(bits, [23] * WIDTH))
    return builder.bitcast(builder.add(builder.bitcast(power, bits), k), vector)
