"""Where a tensor goes two ways: what is read and every gradient are torch's own."""

from __future__ import annotations

import pytest
import torch
from mambalab.models.branches import HalvedLinear, taken, with_product, with_rows
from torch import Generator

SHAPES = pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (0, 4)], ids=str)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def assert_alike(found, leaves):
    """Outputs and gradients of two ways to the same, each weighted by numbers of its own."""
    results = []
    for outputs in found:
        loss = torch.stack([(output * drawn(*output.shape, seed=i)).sum() for i, output in enumerate(outputs)]).sum()
        results.append((*outputs, *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (0, 4)], ids=str)
@pytest.mark.parametrize("used", ["both", "first", "second"])
def test_halves_of_a_linear_map_and_their_gradients_are_torchs(shape, bias, used):
    generator = Generator().manual_seed(0)
    module = HalvedLinear(4, 6, bias=bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(2, *shape[:-1], 3, dtype=torch.float64, generator=generator)
    leaves = x, *module.parameters()
    found = []
    for halves in (module.halves(x), module(x).chunk(2, -1)):
        chosen = {"both": (0, 1), "first": (0,), "second": (1,)}[used]
        loss = torch.stack([(halves[i] * weights[i]).sum() for i in chosen]).sum()
        found.append((*halves, *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_halves_follow_autocast():
    module = HalvedLinear(4, 6)
    x = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = module.halves(x)
    assert first.dtype == second.dtype == torch.bfloat16
    (first.float().sum() + second.float().sum()).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32


@SHAPES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("where", [[], [0], [1, 4, 2], [3, 3, 0]], ids=str)
def test_the_second_half_is_made_where_it_is_asked_for(shape, bias, where):
    x, module = drawn(*shape).requires_grad_(), HalvedLinear(4, 6, bias=bias, dtype=torch.float64)
    at = torch.tensor(where, dtype=torch.int64) if shape[0] else torch.tensor([], dtype=torch.int64)
    first, second = module(x).chunk(2, -1)
    assert_alike((module.halves(x, at), (first, second.flatten(0, -2)[at])), (x, *module.parameters()))
    with torch.no_grad():
        for ours, theirs in zip(module.halves(x, at), (first, second.flatten(0, -2)[at]), strict=True):
            torch.testing.assert_close(ours, theirs)


@SHAPES
def test_rows_are_taken_and_their_gradients_put_back(shape):
    x = drawn(*shape).requires_grad_()
    at = torch.tensor([3, 0, 3] if shape[0] else [], dtype=torch.int64)
    ours = with_rows(x, at)
    assert_alike(((ours[0] * 2, ours[1]), (x * 2, x.flatten(0, -2)[at])), (x,))
    assert torch.equal(taken(x, at), x.flatten(0, -2)[at])
    assert all(given is x for given in (*with_rows(x, None), taken(x, None)))


@SHAPES
def test_a_product_beside_its_input_has_the_gradients_of_both(shape):
    x, weight = drawn(*shape).requires_grad_(), drawn(3, 4, seed=7).requires_grad_()
    ours = with_product(x, weight)
    assert_alike(((ours[0] * 2, ours[1]), (x * 2, x @ weight.mT)), (x, weight))


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_two_ways_may_lead_nowhere(used):
    x, weight, at = drawn(2, 3, 4).requires_grad_(), drawn(3, 4, seed=7), torch.tensor([1, 5])
    for ours, theirs in ((with_product(x, weight), (x, x @ weight.mT)), (with_rows(x, at), (x, x.flatten(0, 1)[at]))):
        # A sum's gradient is one number, expanded: it can't be added to.
        found, wanted = (torch.autograd.grad(pair[used].sum(), x)[0] for pair in (ours, theirs))
        torch.testing.assert_close(found, wanted)


def test_a_product_in_another_dtype_is_left_to_torch():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        passed, product = with_product(x, weight)
    assert product.dtype == torch.bfloat16
    (passed.sum() + product.float().sum()).backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
