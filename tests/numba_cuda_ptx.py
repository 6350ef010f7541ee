"""The numba-cuda kernels as PTX for sm_90, with no GPU: run by test_ext_numba_cuda in a process of its own."""

import re
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from mambalab.ext import numba_cuda_conv_kernels as conv
from mambalab.ext import numba_cuda_norm as norm
from mambalab.ext import numba_cuda_scan_kernels as scan
from mambalab.ext import numba_cuda_segments as segments
from mambalab.ext import numba_cuda_step as step
from mambalab.ext.numba_cuda_arrays import cuda
from mambalab.ext.numba_cuda_plan import Plan

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SELECTIVE = {"selective_B": True, "selective_C": True}
PLAIN = {"dtype": torch.float32, "is_complex": False, "n": 16, "room": 32, **SELECTIVE, "zoh": False}
PLANS = (
    *({"dtype": dtype} for dtype in DTYPES),
    {"dtype": torch.float64, "is_complex": True, "zoh": True},
    {"selective_B": False, "selective_C": False, "zoh": True},
    {"n": 1},
    {"n": 256},
)
SHARED = 48 * 1024


@pytest.fixture(autouse=True)
def to_ptx(monkeypatch):
    """Kernels are PTX, and the present device one of compute capability 9.0."""
    jit = cuda.jit

    def compile_only(what, **options):
        if options.get("device"):
            return jit(what, **options)
        return lambda function: cuda.compile_ptx(function, what, cc=(9, 0))[0]

    monkeypatch.setattr(cuda, "jit", compile_only)
    monkeypatch.setattr(cuda.dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))


def shared_bytes(ptx):
    return sum(map(int, re.findall(r"\.shared \.align .*\[(\d+)\];", ptx)))


@pytest.mark.parametrize("change", PLANS, ids=str)
def test_every_scan_kernel_compiles_within_shared_memory(change):
    plan = Plan(**{**PLAIN, **change})
    makers = scan.scan_forward, scan.scan_keep, scan.scan_backward, segments._scan_retreat
    kernels = [make(plan) for make in makers]
    assert all(".entry" in ptx and 0 < shared_bytes(ptx) <= SHARED for ptx in kernels)
    assert all("call.uni" not in ptx for ptx in kernels) or plan.is_complex
    assert all(".entry" in ptx for ptx in (step._scan_step(plan), segments._carry_kernel(plan)))


def test_the_states_of_the_forward_pass_stay_in_registers_and_single_precision():
    ptx = scan.scan_forward(Plan(**PLAIN))
    assert "__local_depot" not in ptx
    assert ".f64" not in ptx


@pytest.mark.parametrize(("dtype", "weight"), [*zip(DTYPES, DTYPES, strict=True), (torch.bfloat16, torch.float32)])
def test_every_other_kernel_compiles(dtype, weight):
    kinds = [conv.Kind(dtype, weight, k, 128, silu) for k, silu in ((1, False), (4, True))]
    makers = conv.conv_forward, conv.conv_grads, conv.conv_inputs, conv.conv_state, conv.conv_initial
    kernels = [make(kind) for make, kind in product(makers, kinds)]
    kernels += [norm._forward(dtype, weight, 256), norm._backward(dtype, weight, 256)]
    kernels += [step._conv_step(dtype, weight, silu) for silu in (False, True)]
    assert all(".entry" in ptx for ptx in kernels)
