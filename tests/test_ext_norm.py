"""The root-mean-square norm on every backend, against its definition in float64."""

from functools import partial

import pytest
import torch
from ext_cases import TOLERANCE, device_of, every_backend, every_kernel, norm_with, on_device, strange, threads, usable
from mambalab.ext import rms_norm
from torch.autograd import gradcheck


def definition(x, weight, epsilon):
    x, weight = x.double(), weight.double()
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(norm, x, weight, dy):
    """y and the gradients of x and weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = norm(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy.to(y.dtype))


@every_backend
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 16), (2, 5, 19), (300, 64), (0, 7), (2, 0, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_its_definition(backend, shape, dtype):
    x, weight, dy = drawn(*shape, dtype=dtype), drawn(shape[-1], seed=1).to(dtype), drawn(*shape, dtype=dtype, seed=2)
    found = results(partial(norm_with(usable(backend)), epsilon=1e-3), x, weight, dy)
    wanted = results(lambda x, w: definition(x, w, 1e-3), x, weight, dy)
    for one, exact in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert one.shape == exact.shape
        assert (one.double() - exact).norm() <= TOLERANCE[dtype] * (exact.norm() + 0.1)


@every_backend
def test_a_residual_in_float32_comes_out_in_the_dtype_of_the_weight(backend):
    x, weight = drawn(4, 24), drawn(24, dtype=torch.bfloat16, seed=1)
    y = norm_with(usable(backend))(x, weight)
    assert y.dtype == torch.bfloat16
    assert (y - definition(x, weight, 1e-5)).norm() <= TOLERANCE[torch.bfloat16] * y.norm()


@every_backend
def test_gradcheck(backend):
    x = drawn(3, 5, 18, dtype=torch.float64).requires_grad_()
    weight = drawn(18, dtype=torch.float64, seed=1).requires_grad_()
    assert gradcheck(norm_with(usable(backend)), (x, weight))


@every_kernel
def test_any_strides_are_taken_and_any_number_of_threads_gives_the_same_bits(backend):
    x, weight, dy = drawn(900, 67), drawn(67, seed=1), drawn(900, 67, seed=2)
    norm = norm_with(usable(backend))
    plain = results(norm, x, weight, dy)
    with threads(1):
        laid = results(norm, strange(x), strange(weight), strange(dy))
    assert all(torch.equal(a, b) for a, b in zip(plain, laid, strict=True))


@every_backend
def test_it_compiles_as_one_graph(backend, unchecked):
    name = usable(backend)
    x, weight, dy = (
        on_device(tensor, device_of(name)) for tensor in (drawn(2, 9, 20), drawn(20, seed=1), drawn(2, 9, 20, seed=2))
    )

    def norm(x, w):
        return rms_norm(x, w, backend=name)

    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    for a, b in zip(results(compiled, x, weight, dy), results(norm, x, weight, dy), strict=True):
        torch.testing.assert_close(a, b)


@every_backend
@pytest.mark.parametrize(
    ("x", "weight", "epsilon", "said"),
    [
        (torch.ones(2, 0), torch.ones(0), 1e-5, "m at least 1"),
        (torch.tensor(1.0), torch.ones(1), 1e-5, "must be (… m)"),
        (torch.ones(2, 3), torch.ones(4), 1e-5, "weight has shape (4,)"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(3), 1e-5, "x is torch.int64"),
        (torch.ones(2, 3, dtype=torch.float64), torch.ones(3), 1e-5, "weight is torch.float32"),
        (torch.ones(2, 3), torch.ones(3), -1.0, "epsilon must be"),
        (torch.ones(2, 3), torch.ones(3), float("nan"), "epsilon must be"),
        (torch.ones(2, 3), None, 1e-5, "weight"),
    ],
)
def test_bad_input_is_one_clear_line(backend, unchecked, x, weight, epsilon, said):
    with pytest.raises(ValueError, match="must be") as caught:
        rms_norm(x, weight, epsilon=epsilon, backend=usable(backend))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
