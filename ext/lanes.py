"""Sixteen channels side by side as one Numba value, so that a kernel's inner loop is vector code on any CPU.

A kernel reads `load(array, i)` and computes on what it gets: of a float32 array that is `Lanes`, an LLVM vector of
WIDTH channels, which needs no proof about aliasing or trip counts from LLVM's loop vectoriser; of a float64 or
complex128 array it is one number, so that the same source serves the exact and the complex scan, one channel at a time.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic as _intrinsic
from numba.extending import lower_builtin, models, overload, register_model, type_callable

WIDTH = 16  # float32 lanes: one 512-bit register, or two or four narrower ones

# Numba takes the first argument, its typing context, away: no type checker follows.
intrinsic = cast(Callable[[Any], Callable[..., Any]], _intrinsic)


class Lanes(types.Type):
    """Numba's type of a vector of WIDTH float32."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({WIDTH})")


lanes = Lanes()
_vector = ir.VectorType(ir.FloatType(), WIDTH)
_bits = ir.VectorType(ir.IntType(32), WIDTH)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, _vector)


def _kind(dtype: types.Type) -> types.Type:
    """What one load from an array of `dtype` gives."""
    return lanes if dtype == types.float32 else dtype


def _spread(context: Any, builder: Any, value: Any, given: types.Type, kind: types.Type) -> Any:
    """A number in every lane, when lanes are wanted; lanes as they are."""
    if kind != lanes:
        return context.cast(builder, value, given, kind)
    if given == lanes:
        return value
    number = context.cast(builder, value, given, types.float32)
    alone = builder.insert_element(ir.Constant(_vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(alone, alone, ir.Constant(_bits, [0] * WIDTH))


def _arithmetic(function: Any, instruction: str) -> None:
    """Teach Numba an operator between lanes, or lanes and a number. A product may be fused into the sum after it."""

    @type_callable(function)
    def _(context: Any) -> Any:
        return lambda a, b: lanes if lanes in (a, b) else None

    @lower_builtin(function, Lanes, Lanes)
    @lower_builtin(function, Lanes, types.Number)
    @lower_builtin(function, types.Number, Lanes)
    def _(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pair = [_spread(context, builder, x, t, lanes) for x, t in zip(arguments, signature.args, strict=True)]
        return getattr(builder, instruction)(*pair, flags=("contract",))


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


def _place(context: Any, builder: Any, kind: types.Type, array_type: Any, array: Any, index: Any) -> Any:
    """The address of element `index` of an array whose last axis is contiguous."""
    address = builder.gep(context.make_array(array_type)(context, builder, array).data, [index])
    return builder.bitcast(address, _vector.as_pointer()) if kind == lanes else address


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The lanes that begin at element `index` of a contiguous array, or that element where a lane is a number."""
    kind = _kind(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _place(context, builder, kind, signature.args[0], *arguments)
        if kind != lanes:
            return context.unpack_value(builder, kind, address)
        return builder.load(address, align=4)

    return kind(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Put lanes, or a number where a lane is one, at element `index` of a contiguous array."""
    kind = _kind(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _place(context, builder, kind, signature.args[0], *arguments[:2])
        if kind != lanes:
            context.pack_value(builder, kind, arguments[2], address)
        else:
            builder.store(arguments[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, kind), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element `index` of a contiguous array, which will be read soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, integer = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        address = _place(context, builder, array.dtype, signature.args[0], *arguments)
        reading, keeping, data = (ir.Constant(integer, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(address, pointer), reading, keeping, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def fill(typing: Any, array: Any, value: Any) -> Any:
    """`value` as `load(array, …)` would give it, in every lane."""
    kind = _kind(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(context, builder, arguments[1], signature.args[1], kind)

    return kind(array, value), generate


@intrinsic
def lane(typing: Any, value: Any, j: Any) -> Any:
    """The number in lane j; a number is its own only lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(*arguments) if value == lanes else arguments[0]

    return (types.float32 if value == lanes else value)(value, types.intp), generate


@intrinsic
def with_lane(typing: Any, value: Any, j: Any, number: Any) -> Any:
    """`value` with `number` in its lane j."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, j, number = arguments
        return builder.insert_element(value, number, j) if signature.args[0] == lanes else number

    return value(value, types.intp, types.float32 if value == lanes else value), generate


@intrinsic
def select_less(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """`then` where a < b, else `otherwise` (and so where one is NaN), lane by lane."""
    given = (a, b, then, otherwise)
    kind = lanes if lanes in given else types.float64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, then, otherwise = (
            _spread(context, builder, x, t, kind) for x, t in zip(arguments, signature.args, strict=True)
        )
        return builder.select(builder.fcmp_ordered("<", a, b), then, otherwise)

    return kind(*given), generate


@intrinsic
def _fused(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c of lanes, rounded once where the CPU can."""
    given = (a, b, c)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands = [_spread(context, builder, x, t, lanes) for x, t in zip(arguments, signature.args, strict=True)]
        kind = ir.FunctionType(_vector, [_vector] * 3)
        return builder.call(get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{WIDTH}f32"), operands)

    return lanes(*given), generate


@intrinsic
def power_of_two(typing: Any, rounded: Any) -> Any:
    """2^(k - 127), from the number whose last bits are those of k."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.shl(builder.bitcast(arguments[0], _bits), ir.Constant(_bits, [23] * WIDTH))
        return builder.bitcast(exponent, _vector)

    return lanes(lanes), generate


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """The sum of all lanes, pairwise; a number is its own."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (rest,) = arguments
        for half in (WIDTH >> i for i in range(1, WIDTH.bit_length())) if x == lanes else ():
            low, high = (
                builder.shuffle_vector(rest, rest, ir.Constant(ir.VectorType(ir.IntType(32), half), list(part)))
                for part in (range(half), range(half, 2 * half))
            )
            rest = builder.fadd(low, high)
        return builder.extract_element(rest, ir.Constant(ir.IntType(32), 0)) if x == lanes else rest

    return (types.float32 if x == lanes else x)(x), generate


@intrinsic
def _four_totals(typing: Any, array: Any, index: Any, v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
    """Add the sums over all lanes of four vectors to four neighbours in a contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def halves(a: Any, b: Any, size: int, span: int) -> Any:
            """Of vectors that hold a number every `span` lanes: the sums of each number's lower and upper half."""
            low = [i for i in range(size) if i % span < span // 2]
            parts = (ir.Constant(ir.VectorType(ir.IntType(32), len(low)), [i + j for i in low]) for j in (0, span // 2))
            return builder.fadd(*(builder.shuffle_vector(a, b, part) for part in parts))

        _, _, v0, v1, v2, v3 = arguments
        low, high = halves(v0, v1, 2 * WIDTH, WIDTH), halves(v2, v3, 2 * WIDTH, WIDTH)
        sums, span = halves(low, high, 2 * WIDTH, WIDTH // 2), WIDTH // 4
        while span > 1:
            sums, span = halves(sums, sums, 4 * span, span), span // 2
        address = _place(context, builder, signature.args[0].dtype, signature.args[0], *arguments[:2])
        address = builder.bitcast(address, sums.type.as_pointer())
        builder.store(builder.fadd(builder.load(address, align=4), sums), address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, v0, v1, v2, v3), generate


def add_totals(line, k, v0, v1, v2, v3) -> Any:
    """Add the sum over all lanes of each of four values to the four neighbours of `line` from element k on."""


@overload(add_totals)
def _(line, k, v0, v1, v2, v3):
    if v0 == lanes:
        return lambda line, k, v0, v1, v2, v3: _four_totals(line, k, v0, v1, v2, v3)  # noqa: PLW0108

    def add(line, k, v0, v1, v2, v3):
        for i, value in enumerate((v0, v1, v2, v3)):
            line[k + i] += value

    return add


@intrinsic
def real(typing: Any, x: Any) -> Any:
    """The real part; a real number or lanes as they are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_value(arguments[0], 0) if isinstance(x, types.Complex) else arguments[0]

    return getattr(x, "underlying_float", x)(x), generate


@intrinsic
def conjugate(typing: Any, x: Any) -> Any:
    """The complex conjugate; a real number or lanes as they are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not isinstance(x, types.Complex):
            return arguments[0]
        return builder.insert_value(arguments[0], builder.fneg(builder.extract_value(arguments[0], 1)), 1)

    return x(x), generate


@intrinsic
def width(typing: Any, array: Any) -> Any:
    """How many channels one load from `array` gives."""
    count = WIDTH if _kind(array.dtype) == lanes else 1
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, count)


@intrinsic
def pairs(typing: Any, array: Any) -> Any:
    """How many states stand behind one number of a state: 2 for a complex one, whose conjugate is left out."""
    count = 2.0 if isinstance(array.dtype, types.Complex) else 1.0
    return types.float64(array), lambda context, *_: context.get_constant(types.float64, count)


def fused(a, b, c) -> Any:
    """a b + c, of lanes rounded once where the CPU can."""


@overload(fused)
def _(a, b, c):
    return (lambda a, b, c: _fused(a, b, c)) if lanes in (a, b, c) else lambda a, b, c: a * b + c  # noqa: PLW0108
