"""The definitions themselves, against what is known exactly."""

from fractions import Fraction
from math import factorial

import pytest
import torch
from ext_cases import TOLERANCE, Draw, assert_same
from mambalab.ext import reference

EXPONENTS = (0.0, -1e-8, 1e-8, -1e-4, -0.0156, -0.0157, 0.0156, 0.0157, -0.3, -3.0, -30.0, 2.0)
SERIES = 200


def phi_exactly(x):
    """φ and φ' of a float, from their series in exact fractions."""
    powers = [Fraction(1)]
    for _ in range(SERIES):
        powers.append(powers[-1] * Fraction(x))
    value = sum(powers[k] / factorial(k + 1) for k in range(SERIES))
    slope = sum(k * powers[k - 1] / factorial(k + 1) for k in range(1, SERIES))
    return float(value), float(slope)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)], ids=str)
def test_phi_and_its_slope_are_exact_near_zero_and_far(exponent, dtype, tolerance):
    x = torch.tensor(exponent, dtype=dtype, requires_grad=True)
    value = reference.phi(x)
    (slope,) = torch.autograd.grad(value, x)
    exact = phi_exactly(x.item())
    assert (value.item(), slope.item()) == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("angle", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("radius", [1e-6, 0.0156, 0.0157, 1.0])
def test_phi_of_a_complex_number_is_its_mean_of_exponentials(angle, radius):
    x = torch.polar(torch.tensor(radius, dtype=torch.float64), torch.tensor(angle, dtype=torch.float64))
    times = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert (reference.phi(x) - torch.exp(x * times).mean()).abs() < 1e-10


def run(u, delta, A, B, discretisation, initial_state=None):
    C = torch.ones_like(A)
    return reference.scan_forward(u, delta, A, B, C, None, None, None, initial_state, None, False, discretisation)


@pytest.mark.parametrize("complex_A", [False, True])
def test_zoh_of_a_held_input_does_not_depend_on_how_time_is_cut(complex_A):
    draw = Draw(0)
    A, B = -draw(3, 4, dtype=torch.float64).abs(), draw(3, 4, dtype=torch.float64)
    A = torch.complex(A, B) if complex_A else A
    u, initial_state = torch.ones(1, 8, 3, dtype=torch.float64), draw(1, 3, 4, dtype=A.dtype)
    _, fine = run(u, u * 0.25, A, B, "zoh", initial_state)
    _, coarse = run(u[:, :1], u[:, :1] * 2, A, B, "zoh", initial_state)
    assert_same({"h": fine}, {"h": coarse}, torch.float64)


@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_without_decay_the_state_is_a_running_sum(discretisation):
    draw = Draw(0)
    u, delta, B = (draw(*shape, dtype=torch.float64) for shape in ((2, 9, 3), (2, 9, 3), (2, 9, 4)))
    _, state = run(u, delta, torch.zeros(3, 4, dtype=torch.float64), B, discretisation)
    assert_same({"h": state}, {"h": torch.einsum("bld,bld,bln->bdn", u, delta, B)}, torch.float64)


def test_both_discretisations_agree_for_short_steps():
    draw = Draw(0)
    u, A, B = (draw(*shape, dtype=torch.float64) for shape in ((1, 3, 2), (2, 4), (2, 4)))
    gaps = []
    for size in (1e-2, 1e-3):
        outputs = [run(u, torch.full_like(u, size), A, B, name)[0] for name in ("euler", "zoh")]
        gaps.append((outputs[0] - outputs[1]).norm() / outputs[1].norm())
    assert gaps[1] < gaps[0] / 5
    assert gaps[1] > TOLERANCE[torch.float64]


def test_softplus_and_bias_make_the_time_step():
    delta = torch.tensor([[-2.0, 0.0, 30.0]])
    bias = torch.tensor([1.0, 1.0, 1.0])
    expected = torch.log1p(torch.exp(delta.double() + 1))
    assert torch.allclose(reference.time_step(delta, bias, True).double(), expected)
    assert reference.time_step(delta, bias, False).equal(delta + 1)
    assert reference.time_step(delta.bfloat16(), None, False).dtype == torch.float32
