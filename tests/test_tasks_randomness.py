"""The random bits are the hash that the definition says, on every device, and look random."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mambalab.tasks import AssociativeRecall, InductionHeads, SelectiveCopying
from mambalab.tasks.associative_recall import exponential
from mambalab.tasks.randomness import bits, distinct, integers, mix, rows
from scipy.stats import chisquare, kstest

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    """SplitMix64's output function, in Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def defined(seed: int, step: int, stream: int, row: int, column: int) -> int:
    start = mixed((step * GOLDEN + mixed((seed + GOLDEN) & MASK)) & MASK)
    return mixed((start + GOLDEN * (stream << 56 | row << 32 | column)) & MASK)


def unsigned(tensor: torch.Tensor) -> list[int]:
    return [value & MASK for value in tensor.reshape(-1).tolist()]


def draws(size: int, columns: int, seed: int = 0, step: int = 0, stream: int = 0) -> torch.Tensor:
    return bits(rows(seed, step, size, "cpu"), stream, torch.arange(columns)[None])


def test_splitmix64_begins_as_published():
    """The first outputs of the reference implementation from the state 1234567."""
    states = torch.tensor([1234567 + GOLDEN * n & MASK for n in (1, 2, 3)], dtype=torch.uint64).view(torch.int64)
    assert unsigned(mix(states)) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**62),
    st.integers(0, 100),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
)
def test_bits_are_the_hash(seed, step, stream, row, column):
    found = bits(rows(seed, step, row + 1, "cpu"), stream, torch.tensor([[column]]))
    assert unsigned(found[row]) == [defined(seed, step, stream, row, column)]
    assert integers(found[row], 15).item() == found[row].item() % 15


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**20), st.data())
def test_distinct_are_the_columns_with_the_largest_bits(width, step, data):
    count = data.draw(st.integers(1, width))
    random = draws(3, width, step=step)
    found = distinct(random, count)
    assert found.shape == (3, count)
    low = (1 << (width - 1).bit_length()) - 1
    for row, columns in zip(random.tolist(), found.tolist(), strict=True):
        assert columns == sorted(range(width), key=lambda c: (-(row[c] & ~low), -c))[:count]


def test_columns_with_equal_bits_are_still_distinct_and_in_order():
    assert distinct(torch.zeros(2, 9, dtype=torch.int64), 4).tolist() == [[8, 7, 6, 5]] * 2


def test_the_order_of_distinct_columns_is_uniform():
    found = distinct(draws(20_000, 5), 2)
    numbers = found[:, 0] * 5 + found[:, 1]
    seen = torch.bincount(numbers, minlength=25)
    assert (seen == 0).sum() == 5
    assert chisquare(seen[seen > 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("along", ["columns", "rows", "steps", "seeds", "streams"])
def test_each_bit_is_fair_and_flips_by_itself_along_each_axis(along):
    n = 4096
    sequence = {
        "columns": lambda: draws(1, n)[0],
        "rows": lambda: draws(n, 1)[:, 0],
        "steps": lambda: torch.cat([draws(1, 1, step=i)[0] for i in range(n)]),
        "seeds": lambda: torch.cat([draws(1, 1, seed=i)[0] for i in range(n)]),
        "streams": lambda: torch.cat([draws(1, 32, stream=i)[0] for i in range(128)]),
    }[along]()
    flips = ((sequence[:, None] >> torch.arange(64)) & 1).double()
    bound = 4.5 / math.sqrt(n)
    assert (flips.mean(0) - 0.5).abs().max() < bound / 2
    signs = 2 * flips - 1
    for lag in (0, 1, 2):
        products = signs[lag:].T @ signs[: n - lag] / n
        if lag == 0:
            products.fill_diagonal_(0)
        assert products.abs().max() < bound * 1.2


@pytest.mark.parametrize("high", [2, 15, 254, 4094])
def test_integers_are_uniform(high):
    values = integers(draws(100, 1000), high)
    assert chisquare(torch.bincount(values.reshape(-1), minlength=high).numpy()).pvalue > 1e-3


def test_exponentials_are_the_logarithm_and_exponentially_distributed():
    random = draws(10, 1000)
    found = exponential(random)
    want = -((integers(random, 2**52).double() + 0.5) / 2**52).log()
    assert (found - want).abs().max() < 1e-9
    assert kstest(found.reshape(-1).numpy(), "expon").pvalue > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(
    "task", [InductionHeads(), SelectiveCopying(), AssociativeRecall(length=4096)], ids=lambda task: task.name
)
def test_a_gpu_makes_the_same_batches_also_within_a_graph(task):
    step = torch.tensor(0, device="cuda")
    task.batch(3, step, 8, "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = task.batch(3, step, 8, "cuda")
    for now in (0, 7, 2**40):
        step.fill_(now)
        graph.replay()
        want = task.batch(3, now, 8)
        for name in ("tokens", "positions", "targets"):
            assert torch.equal(getattr(made, name).cpu(), getattr(want, name))
