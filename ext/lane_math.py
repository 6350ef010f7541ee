"""Exponentials of lanes and of numbers: what Numba's wheel has no vector code for."""

import cmath
import math
from typing import Any

from numba import types
from numba.extending import overload, register_jitable

from .lanes import fused, lanes, power_of_two, select_less

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
# 1.5 * 2^23 pushes a float32's fraction bits out, which rounds it; its low bits then hold the integer, here plus the
# exponent's bias, ready to be shifted into the exponent.
ROUND = 1.5 * 2**23 + 127
# Each minimises the largest relative error: e^r over |r| <= ln 2 / 2 after 1 + r + r^2 / 2, within 4e-9; 2^r over
# |r| <= 1/2 after 1, within 9.2e-8; log(1 + v) / v over 0 <= v <= 1 after 1, within 3.4e-8. The highest power is first.
EXP = (0.0013863759, 0.0083675096, 0.04166724, 0.16666535, 0.5, 1.0, 1.0)
EXP2 = (0.00132647, 0.00967151, 0.05550734, 0.24022242, 0.69314698, 1.0)
LOG1P = (0.00536482, -0.03006577, 0.0792045, -0.13753799, 0.19153653, -0.24857163, 0.33321323, -0.49999648, 1.0)


@register_jitable
def _polynomial(coefficients, x):
    value = coefficients[0] * x + coefficients[1]
    for i in range(2, len(coefficients)):
        value = value * x + coefficients[i]
    return value


@register_jitable
def _lanes_exp(x):
    # Beyond these 2^k is 0 and infinity; NaN passes both, and the polynomial hands it on.
    x = select_less(x, -127 * LN_2, -127 * LN_2, x)
    x = select_less(128 * LN_2, x, 128 * LN_2, x)
    rounded = x * LOG2_E + ROUND
    r = x - (rounded - ROUND) * LN_2
    return _polynomial(EXP, r) * power_of_two(rounded)


@register_jitable
def _lanes_softplus(x):
    v = _lanes_exp(select_less(x, 0.0, x, 0.0 - x))
    return select_less(20.0, x, x, select_less(0.0, x, x, 0.0) + v * _polynomial(LOG1P, v))


def exp(x) -> Any:
    """e^x; of lanes within 3 ulp, 0 below e^-87.7, infinity above e^88.3."""


@overload(exp)
def _(x):
    if x == lanes:
        return _lanes_exp
    return (lambda x: cmath.exp(x)) if isinstance(x, types.Complex) else (lambda x: math.exp(x))  # noqa: PLW0108


@register_jitable
def _lanes_decay(step, a):
    # The product is never rounded: that is as exact as splitting ln 2, and shorter. Below, 2^k is 0.
    scaled = a * LOG2_E
    shifted = fused(step, scaled, ROUND)
    shifted = select_less(shifted, ROUND - 127, ROUND - 127, shifted)
    r = fused(step, scaled, ROUND - shifted)
    return _polynomial(EXP2, r) * power_of_two(shifted)


def decay(step, a) -> Any:
    """exp(step a); of lanes within 3 ulp where -2^20 < step a < 87, to which it is held."""


@overload(decay)
def _(step, a):
    return _lanes_decay if a == lanes else lambda step, a: exp(step * a)


def softplus(x) -> Any:
    """log(1 + e^x), and x itself above 20, as torch's."""


@overload(softplus)
def _(x):
    if x == lanes:
        return _lanes_softplus
    return lambda x: x if x > 20.0 else math.log1p(math.exp(x))


@register_jitable
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (exp(0.0 - x) + 1.0)


@register_jitable
def softplus_slope(x):
    """The derivative of softplus: the sigmoid, and 1 above 20."""
    return select_less(20.0, x, 1.0, sigmoid(x))


def choose_near(x, near, far) -> Any:
    """`near` where |x| is so small that differences such as e^x - 1 have lost digits, else `far`."""


@overload(choose_near)
def _(x, near, far):
    if x == lanes:
        return lambda x, near, far: select_less(x * x, 0.25, near, far)
    return lambda x, near, far: near if abs(x) < 2**-4 else far


@register_jitable
def _away_from_zero(x):
    # A divisor for both branches of `choose_near`: Numba raises where a complex number is divided by zero.
    return choose_near(x, x + 1.0, x)


@register_jitable
def phi(x):
    """φ(x) = expm1(x) / x with φ(0) = 1, the factor by which ZOH differs from Euler."""
    series = x * (1 / 9) + 1.0
    for k in range(8, 1, -1):
        series = series * x * (1 / k) + 1.0
    return choose_near(x, series, (exp(x) - 1.0) / _away_from_zero(x))


@register_jitable
def phi_slope(x):
    """φ'(x) = (e^x - φ(x)) / x = Σ (m+1) x^m / (m+2)!, with φ'(0) = 1/2."""
    series = x * (10 / (9 * 11)) + 1.0
    for m in range(8, 0, -1):
        series = series * x * ((m + 1) / (m * (m + 2))) + 1.0
    return choose_near(x, series * 0.5, (exp(x) - phi(x)) / _away_from_zero(x))
