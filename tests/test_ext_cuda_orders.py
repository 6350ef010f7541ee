"""The CUDA kernels give the same bits in whatever order threads and blocks take turns: nothing races."""

import cuda_emulator
import pytest
import torch
from cuda_emulated_row import EMULATED
from ext_cases import Draw, conv_case, conv_with, norm_with, over, scan_case, scan_with, step_with, usable
from test_ext_step import mixer, states, stepped

SCANS = {
    "whole": {"length": 67, "d": 37, "n": 17},
    "static": {"length": 33, "d": 5, "n": 16, "selective": "", "discretisation": "zoh"},
    "packed": {"b": 1, "length": 70, "d": 5, "n": 4, "bounds": (0, 33, 33, 70)},
    "cut": {"b": 1, "length": 300, "d": 5, "n": 4},
    "short": {"length": 33, "d": 40, "n": 64, "dtype": torch.bfloat16},
}
CONVS = {
    "whole": {"length": 67, "d": 37, "activation": "silu"},
    "packed": {"b": 1, "length": 70, "bounds": (0, 33, 33, 70), "dtype": torch.float16},
}

emulated = over([EMULATED])


def scan(name, settings):
    return scan_case(**settings).run(scan_with(name))


def conv(name, settings):
    return conv_case(**settings).run(conv_with(name))


def norm(name, shape):
    x, weight = Draw(0)(*shape, dtype=torch.float32).requires_grad_(), torch.ones(shape[-1], requires_grad=True)
    y = norm_with(name)(x, weight)
    dx, dweight = torch.autograd.grad(y.square().sum(), (x, weight))
    return {"y": y, "dx": dx, "dweight": dweight}


def step(name, d):
    given, x = mixer(torch.float32, d=d, n=16), Draw(2)(2, 3, d, dtype=torch.float32)
    return stepped(step_with(name), given, x, x, *states(given, 2))


@emulated
@pytest.mark.parametrize(
    ("op", "given"),
    [
        *(pytest.param(scan, settings, id=f"scan {name}") for name, settings in SCANS.items()),
        *(pytest.param(conv, settings, id=f"conv {name}") for name, settings in CONVS.items()),
        *(pytest.param(norm, shape, id=f"norm of {shape[1]}") for shape in ((33, 67), (67, 700), (5, 3001))),
        pytest.param(step, 37, id="step"),
    ],
)
def test_every_order_gives_the_same_bits(backend, op, given):
    name = usable(backend)
    first, *others = (in_order(order, op, name, given) for order in cuda_emulator.ORDERS)
    for other in others:
        assert all(other[key].equal(first[key]) for key in first)


def in_order(order, op, name, given):
    with cuda_emulator.order(*order):
        return op(name, given)
