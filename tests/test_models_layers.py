"""The embedding: its rows, and a gradient that is torch's own, whatever way it takes."""

from __future__ import annotations

import pytest
import torch
from mambalab.models.layers import Embedding
from torch import Generator, nn


@pytest.mark.parametrize("symbols", [1, 16, Embedding.FEW, Embedding.FEW + 1])
@pytest.mark.parametrize("shape", [(5,), (2, 7), (0,), (3, 0)], ids=str)
def test_an_embedding_and_its_gradient_are_torchs(symbols, shape):
    generator = Generator().manual_seed(0)
    weight = torch.randn(symbols, 3, dtype=torch.float64, generator=generator)
    tokens = torch.randint(symbols, shape, generator=generator)
    dy = torch.randn(*shape, 3, dtype=torch.float64, generator=generator)
    found = []
    for kind in (Embedding, nn.Embedding):
        module = kind(symbols, 3, _weight=weight.clone())
        y = module(tokens)
        y.backward(dy)
        found.append((y.detach(), module.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_gradient_of_few_symbols_needs_no_scattered_addition():
    module = Embedding(16, 3)

    with torch.profiler.profile() as profile:
        module(torch.arange(16)).sum().backward()
    names = {event.name for event in profile.events() or []}
    assert names
    assert not any("embedding_dense_backward" in name for name in names)


# torch.compile itself makes an instance of every autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_an_embedding_compiles_as_one_graph(unchecked):
    module = Embedding(16, 3)
    tokens = torch.arange(6).view(2, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(call(tokens).square().sum(), module.weight)[0] for call in (module, compiled)]
    torch.testing.assert_close(*grads)
