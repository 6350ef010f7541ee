"""The functions that kernels of the CPU apply to lanes: digits, infinities and instructions."""

import platform

import numpy as np
import pytest

pytest.importorskip("numba", reason="the CPU kernels are compiled by Numba")
from mambalab.ext import lane_math, lanes
from numba import njit


@pytest.fixture(scope="module")
def lanewise():
    """A function that applies one of the lanes' functions, by its place in the list, to a vector of numbers."""

    @njit(error_model="numpy")
    def apply(which, numbers, results):
        for i in range(0, numbers.size, lanes.width(numbers)):
            x = lanes.load(numbers, i)
            if which == 0:
                y = lane_math.exp(x)
            elif which == 1:
                y = lane_math.softplus(x)
            elif which == 2:
                y = lane_math.sigmoid(x)
            elif which == 3:
                y = lane_math.phi(x)
            elif which == 4:
                y = lane_math.phi_slope(x)
            else:
                y = lane_math.decay(lanes.fill(numbers, 3.0), x)
            lanes.store(results, i, y)

    def call(which, numbers):
        padded = np.resize(numbers, -(-numbers.size // lanes.WIDTH) * lanes.WIDTH)
        results = np.empty_like(padded)
        apply(which, padded, results)
        return results[: numbers.size]

    call.compiled = apply
    return call


def phi(x):
    return np.where(x == 0, 1, np.expm1(x) / np.where(x == 0, 1, x))


def phi_slope(x):
    # Where the quotient would lose digits, the integral of t e^(xt) over [0, 1], by Gauss's rule.
    nodes, weights = np.polynomial.legendre.leggauss(12)
    t = (nodes + 1) / 2
    integral = (weights / 2 * t * np.exp(np.multiply.outer(np.clip(x, -2, 2), t))).sum(-1)
    return np.where(abs(x) < 2, integral, (np.exp(x) - phi(x)) / np.where(x == 0, 1, x))


FUNCTIONS = {
    "exp": (np.exp, 3),
    "softplus": (lambda x: np.logaddexp(0, x), 3),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3),
    "phi": (phi, 4),
    "phi_slope": (phi_slope, 8),
}


@pytest.mark.parametrize("which", range(len(FUNCTIONS)), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("reach", [85, 3, 1e-3], ids=lambda reach: f"|x|<{reach}")
def test_lanes_are_right_to_a_few_units_in_the_last_place(lanewise, which, reach):
    exact, ulps = list(FUNCTIONS.values())[which]
    numbers = np.linspace(-reach, reach, 20001, dtype=np.float32)
    expected = exact(numbers.astype(np.float64))
    error = abs(lanewise(which, numbers) - expected) / expected
    assert error.max() <= ulps * np.finfo(np.float32).eps


@pytest.mark.parametrize("reach", [28, 1, 1e-3], ids=lambda reach: f"|a|<{reach}")
def test_a_decay_is_as_exact_as_a_rounded_rate_lets_it_be(lanewise, reach):
    a = np.linspace(-reach, reach, 20001, dtype=np.float32)
    rate = 3 * a.astype(np.float64)
    error = abs(lanewise(len(FUNCTIONS), a) - np.exp(rate)) / np.exp(rate)
    assert (error <= (2 + abs(rate)) * np.finfo(np.float32).eps).all()
    np.testing.assert_array_equal(lanewise(len(FUNCTIONS), np.array([-30, -1e5, np.nan], np.float32)), [0, 0, np.nan])


def test_lanes_keep_infinity_zero_and_nan(lanewise):
    numbers = np.array([0, -0.0, -1e-30, 88.5, 1e30, np.inf, -104, -1e30, -np.inf, np.nan], np.float32)
    powers, softplus = lanewise(0, numbers), lanewise(1, numbers)
    np.testing.assert_array_equal(powers, np.array([1, 1, 1, np.inf, np.inf, np.inf, 0, 0, 0, np.nan], np.float32))
    np.testing.assert_array_equal(softplus[[3, 4, 5, 6, 7, 8, 9]], [88.5, numbers[4], np.inf, 0, 0, 0, np.nan])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="it reads x86 instructions")
def test_the_exponential_is_vector_code(lanewise):
    lanewise(0, np.zeros(1, np.float32))
    assembly = "\n".join(lanewise.compiled.inspect_asm().values())
    assert "mulps" in assembly or "fmadd" in assembly
    assert "expf" not in assembly
