"""How bad calls of the ops are drawn, by the sort of damage."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from .engine import Kind
from .op_damage import LAYOUTS, SHAPES, THINGS
from .ops import DTYPES, OPS, OpCase, arguments, judge

SELECTIVE = ("", "Δ", "B", "C", "ΔB", "ΔC", "BC", "ΔBC")
OTHER_DTYPES = ("float64", "float32", "bfloat16", "float16", "complex64", "complex128", "complex32", "int64", "int32")
OTHER_DTYPES += ("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2")
NUMBERS = (math.nan, math.inf, -math.inf, 1e30, -1e30, 65504.0, 1e-40, -0.0, 0.0, 88.8, -88.8, 1e4, -1e4)
NAMES: tuple[Any, ...] = (
    "",
    "EULER",
    "zoh ",
    "silu",
    "gelu",
    "cuda",
    "cpu",
    "reference",
    "\0",
    "x" * 3000,
    "é\n",
    "euler",
)
NAMES += (None, 0, 1.5, True, ("euler",), ["silu"], {}, b"silu")
BOUNDS = st.lists(st.sampled_from((0, 1, 2, 5, -1, 8, 9, 10, 2**31 - 1, -(2**31))), max_size=5)
SHARES = st.lists(st.sampled_from((0.0, 0.25, 0.5, 1.0, 1.5, -1.0)), max_size=5)
PACKINGS = st.one_of(
    BOUNDS.map(lambda b: ("bounds", tuple(b))),
    st.lists(st.sampled_from((0.0, 0.3, 0.3, 0.6, 1.0)), max_size=5).map(lambda s: ("scaled", (0.0, *sorted(s), 1.0))),
    SHARES.map(lambda s: ("scaled", (0.0, *s, 1.0))),
    st.sampled_from(OTHER_DTYPES).map(lambda name: ("dtype", name)),
    st.sampled_from(((), (0,), (1,), (2, 2), (1, 2), (0, 3))).map(lambda shape: ("shape", shape)),
)


@st.composite
def good(
    draw: st.DrawFn, ops: tuple[str, ...] = tuple(OPS), *, empty: bool = False, packed: bool | None = None
) -> OpCase:
    """A call that the contract has an answer for; `empty` lets batch, length or rank be 0."""
    op = draw(st.sampled_from(ops))
    first = draw(st.integers(0 if empty else 1, 3))
    second = draw(st.sampled_from(((0, 0, 1) if empty else ()) + ((1, 2) if op == "step_" else (1, 2, 5, 9, 33, 65))))
    d, last = draw(st.sampled_from((1, 2, 5, 8, 16, 17, 19))), draw(st.sampled_from((1, 2, 3, 4, 7, 16, 17)))
    flags = [draw(st.booleans()) for _ in range(5)]
    if packed is not None:
        flags[2] = packed
    return OpCase(
        op=op,
        sizes=(first, second, d, 4 if op == "step_" and last == 1 else last),
        dtype=draw(st.sampled_from(tuple(DTYPES))),
        selective=draw(st.sampled_from(SELECTIVE)),
        variant=tuple(flags),
        backend=draw(st.sampled_from((None, None, "reference"))),
        damages=(),
        seed=draw(st.integers(0, 99)),
    )


def _tensors(case: OpCase) -> list[str]:
    return [name for name, given in arguments(case).items() if isinstance(given, Tensor) and name != "cu_seqlens"]


@st.composite
def damaged(
    draw: st.DrawFn, damage: str, how: st.SearchStrategy[Any], most: int = 1, gradient: bool = False, **options: Any
) -> OpCase:
    """A good call with up to `most` tensors damaged in one manner."""
    case = draw(good(**options))
    names = draw(st.lists(st.sampled_from(_tensors(case)), min_size=1, max_size=most, unique=True))
    damages = tuple((damage, name, draw(how)) for name in names)
    return _with(case, damages + ((("gradient", "", None),) if gradient else ()))


@st.composite
def with_option(draw: st.DrawFn) -> OpCase:
    case = draw(good())
    known = [name for name in ("discretisation", "activation", "backend", "delta_softplus") if name in arguments(case)]
    return _with(case, (("option", draw(st.sampled_from(known)), draw(st.sampled_from(NAMES))),))


def _with(case: OpCase, damages: tuple[tuple[str, str, Any], ...]) -> OpCase:
    return OpCase(**{**vars(case), "damages": damages})


_numbers = st.tuples(st.integers(0, 10_000), st.sampled_from(NUMBERS))
_shapes = st.tuples(st.sampled_from((*SHAPES, "cut to a scalar")), st.integers(0, 3))
_layouts = st.sampled_from(tuple(LAYOUTS))
FUNCTIONS = ("selective_scan", "causal_conv1d")

SORTS: dict[str, st.SearchStrategy[OpCase]] = {
    "strange memory": damaged("layout", _layouts, 4),
    "strange memory, backward": damaged("layout", _layouts, 4, gradient=True, ops=FUNCTIONS),
    "NaN, infinities, extremes": damaged("value", _numbers, 2),
    "empty axes": good(empty=True),
    "empty axes, backward": good(FUNCTIONS, empty=True).map(lambda case: _with(case, (("gradient", "", None),))),
    "wrong shapes": damaged("shape", _shapes),
    "wrong dtypes": damaged("dtype", st.sampled_from(OTHER_DTYPES)),
    "another device": damaged("device", st.sampled_from(("one", "one", "all"))),
    "broken packing": st.builds(
        lambda case, how: _with(case, (("packing", "cu_seqlens", how),)), good(FUNCTIONS, packed=True), PACKINGS
    ),
    "unknown names": with_option(),
    "no tensors": damaged("thing", st.sampled_from(tuple(THINGS))),
    "gradients asked for": damaged("asks gradient", st.none(), 2),
}
KIND = Kind(name="op", sorts=SORTS, judge=judge, draws=40)
