"""What every numba-cuda kernel needs: tensors as its arrays, its compilation and its launch on torch's stream."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numba.cuda
import numpy as np
import torch
from numba import types
from torch import Tensor

# Kernels take it from here: to a type checker, what it holds are stubs without shapes or operators.
cuda: Any = numba.cuda
SIMULATED = "simulator" in cuda.jit.__module__

REGISTERS = 65536  # of a multiprocessor
RESIDENT = 384  # threads that should find room on it

# As what a kernel sees the elements of a tensor: numba has no bfloat16, so its bits go as int16.
ELEMENT: dict[torch.dtype, Any] = {
    torch.float64: types.float64,
    torch.float32: types.float32,
    torch.float16: types.float16,
    torch.bfloat16: types.int16,
    torch.complex64: types.complex64,
    torch.complex128: types.complex128,
    torch.int32: types.int32,
}


def compiled(codes: Sequence[Any], threads: int) -> Callable[[Any], Any]:
    """A decorator that makes a kernel for blocks of at most `threads`.

    `codes` are its arguments: a (dtype, axes) for a tensor of any strides, or a numba type.
    """
    if SIMULATED:
        return cuda.jit
    signature = types.void(*(_array_type(*code) if isinstance(code, tuple) else code for code in codes))
    return cuda.jit(signature, max_registers=_registers(threads))


def _registers(threads: int) -> int:
    """Of a thread, at most."""
    return min(255, REGISTERS // max(RESIDENT, -(-threads // 32) * 32) // 8 * 8)


def device_function(function: Any) -> Any:
    """Make `function` one that kernels call and that disappears in them, so that local arrays stay in registers."""
    if SIMULATED:
        return cuda.jit(function, device=True)
    return cuda.jit(function, device=True, forceinline=True)


def launch(make: Callable[[], Any], device: torch.device, blocks: int, threads: int, *arguments: Any) -> None:
    """Run the kernel that `make` gives on the current stream of `device`; arguments are tensors and numbers.

    It is made here, because numba compiles in the context of a device.
    """
    if blocks == 0:
        return
    with _current(device):
        stream = 0 if SIMULATED else cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)
        arrays = [_array(value) if isinstance(value, Tensor) else value for value in arguments]
        with warnings.catch_warnings():
            # Small problems make small grids, which is no news to the caller. By its text: numba and numba-cuda each
            # have a category.
            warnings.filterwarnings("ignore", message=".*Grid size")
            make()[blocks, threads, stream](*arrays)


def power_of_two_above(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def absent(axes: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """What stands for a tensor that is None: one element that no kernel reads."""
    return like.new_empty((1,) * axes, dtype=dtype)


def _array_type(dtype: torch.dtype, axes: int) -> Any:
    return types.Array(ELEMENT[dtype], axes, "A")


def _array(tensor: Tensor) -> Any:
    """The same memory as an array of numba's, strides and all."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    if not SIMULATED:
        return cuda.as_cuda_array(tensor)
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(np.asarray(tensor))


def _current(device: torch.device) -> Any:
    return nullcontext() if SIMULATED else cuda.gpus[device.index or 0]


def one_more_than(number: int, device: torch.device) -> int:
    """`number` + 1, by a kernel."""
    tensor = torch.full((1,), number, dtype=torch.int32, device=device)
    launch(lambda: compiled([(torch.int32, 1)], 1)(_add_one), device, 1, 1, tensor)
    return int(tensor.item())


def _add_one(numbers):
    numbers[cuda.threadIdx.x] += 1
