"""The CUDA backend on the CPU: the row of the table whose kernels run in the emulator, for tests alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import cuda_emulator
import torch
from mambalab.ext.backends import Backend

# Few, so that work is split even at the sizes of tests.
MULTIPROCESSORS = 4
SHARED = 227 * 1024
# Steps that are worth a piece of their own: few for the same reason.
SHORTEST = 128


def _emulated(module: str, function: str) -> Callable[..., Any]:
    """The named function of the CUDA backend, for tensors of the CPU; the memory that it allocates is NaN."""

    def call(*arguments: Any) -> Any:
        launch, geometry = import_module("mambalab.ext.cuda_launch"), import_module("mambalab.ext.cuda_geometry")
        stand_ins = {
            "kernel": cuda_emulator.kernel,
            "multiprocessors": lambda device: MULTIPROCESSORS,
            "shared_memory": lambda device: SHARED,
        }
        cut = patch.object(geometry, "SHORTEST", SHORTEST)
        with patch.multiple(launch, **stand_ins), cut, _fresh_memory_is_nan():
            return getattr(import_module(f"mambalab.ext.{module}"), function)(*arguments)

    return call


@contextmanager
def _fresh_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


EMULATED = Backend(
    name="cuda-emulated",
    device="cpu",
    missing=cuda_emulator.missing,
    cure="apt install g++",
    sources=(),
    complex_A=False,
    splits=True,
    scan_forward=_emulated("cuda", "scan_forward"),
    scan_backward=_emulated("cuda", "scan_backward"),
    scan_keeping=_emulated("cuda", "scan_keeping"),
    conv_forward=_emulated("cuda_conv", "conv_forward"),
    conv_backward=_emulated("cuda_conv", "conv_backward"),
    norm_forward=_emulated("cuda_norm", "norm_forward"),
    norm_backward=_emulated("cuda_norm", "norm_backward"),
    step=_emulated("cuda_step", "step"),
)
