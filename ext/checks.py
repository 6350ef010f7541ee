"""What a caller may hand to the ops: the contract's rules, each refusal naming both sides."""

import math
import os
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import pairwise

import torch
from torch import Tensor

from .reference import accumulation_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DISCRETISATIONS = ("euler", "zoh")
ACTIVATIONS = ("", "silu")
# Spelt out, because Dynamo can't trace dtype.to_complex.
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    discretisation: str,
) -> None:
    """Refuse with ValueError what `selective_scan` is not defined for; the values of cu_seqlens come later."""
    check_tensors(u=u, delta=delta, A=A, B=B, C=C)
    check_tensors(True, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state, cu_seqlens=cu_seqlens)
    check_name("discretisation", discretisation, DISCRETISATIONS)
    check_activations("u", u, "b l d")
    shape, d = u.shape, u.shape[2]
    n = check_A(A, d, u, "u")
    narrow, real = (u.dtype,), (accumulation_dtype(u.dtype),)
    require("delta", delta, "b l d", shape, narrow, u, "u")
    for name, matrix in (("B", B), ("C", C)):
        if matrix.dim() == 2:
            require(name, matrix, "d n", (d, n), with_complex(real, A), u, "u")
        else:
            refuse_groups(name, matrix)
            require(name, matrix, "b l n", (*shape[:2], n), with_complex(narrow, A), u, "u")
    if D is not None:
        require("D", D, "d", (d,), real, u, "u")
    if z is not None:
        require("z", z, "b l d", shape, narrow, u, "u")
    if delta_bias is not None:
        require("delta_bias", delta_bias, "d", (d,), real, u, "u")
    rows = check_packing(cu_seqlens, u, "u")
    if initial_state is not None:
        axes = "b d n" if cu_seqlens is None else "s d n"
        require("initial_state", initial_state, axes, (rows, d, n), (A.dtype,), u, "u")


def check_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    """Refuse with ValueError what `causal_conv1d` is not defined for; the values of cu_seqlens come later."""
    check_tensors(x=x, weight=weight)
    check_tensors(True, bias=bias, initial_state=initial_state, cu_seqlens=cu_seqlens)
    check_name("activation", activation, ACTIVATIONS)
    check_activations("x", x, "b l d")
    k = check_filter("weight", weight, "bias", bias, x)
    rows = check_packing(cu_seqlens, x, "x")
    if initial_state is not None:
        axes = "b k-1 d" if cu_seqlens is None else "s k-1 d"
        require("initial_state", initial_state, axes, (rows, k - 1, x.shape[2]), (x.dtype,), x, "x")


def check_step(
    x: Tensor,
    z: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    conv_state: Tensor,
    scan_state: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    activation: str,
    discretisation: str,
) -> None:
    """Refuse with ValueError what `step_` is not defined for."""
    check_tensors(x=x, conv_weight=conv_weight, x_proj=x_proj, A=A, conv_state=conv_state, scan_state=scan_state)
    check_tensors(True, z=z, conv_bias=conv_bias, dt_proj=dt_proj, D=D, delta_bias=delta_bias, B=B, C=C)
    check_name("activation", activation, ACTIVATIONS)
    check_name("discretisation", discretisation, DISCRETISATIONS)
    check_activations("x", x, "b d")
    b, d = x.shape
    narrow, real = (x.dtype,), (accumulation_dtype(x.dtype),)
    k = check_filter("conv_weight", conv_weight, "conv_bias", conv_bias, x)
    n = check_A(A, d, x, "x")
    r = check_low_rank(dt_proj, delta_bias, x)
    rows = r + n * (B is None) + n * (C is None)
    require("x_proj", x_proj, "p d", (rows, d), narrow, x, "x")
    require("conv_state", conv_state, "b k-1 d", (b, k - 1, d), narrow, x, "x")
    require("scan_state", scan_state, "b d n", (b, d, n), (A.dtype,), x, "x")
    optional = (
        ("z", z, "b d", (b, d), narrow),
        ("D", D, "d", (d,), real),
        ("delta_bias", delta_bias, "d", (d,), real),
        ("B", B, "d n", (d, n), with_complex(real, A)),
        ("C", C, "d n", (d, n), with_complex(real, A)),
    )
    for name, tensor, axes, shape, dtypes in optional:
        if tensor is not None:
            require(name, tensor, axes, shape, dtypes, x, "x")
    check_written("conv_state", conv_state)
    check_written("scan_state", scan_state)


def check_tensors(may_be_none: bool = False, /, **tensors: object) -> None:
    """Plain dense tensors: an array, a list, a sparse or a nested tensor has no strides to read."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            if tensor.layout is not torch.strided or tensor.is_nested:
                kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
                raise ValueError(f"{name} is a {kind} tensor; it must be a dense one")
        elif tensor is not None or not may_be_none:
            raise ValueError(f"{name} is {_a(tensor)}; it must be a tensor{' or None' * may_be_none}")


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def check_written(name: str, state: Tensor) -> None:
    """A state that is advanced in place: every element has its own place in memory, and is what stands there."""
    # Dynamo can't trace the question, and has no such views.
    if not torch.compiler.is_compiling() and (state.is_neg() or state.is_conj()):
        raise ValueError(f"{name} is a lazily negated or conjugated view; it must be a tensor to write in")
    if state.is_contiguous():
        return
    reach = 1
    for stride, size in sorted(zip(state.stride(), state.shape, strict=True)):
        if size > 1:
            if stride < reach:
                raise ValueError(f"{name} has strides {state.stride()}; its elements must not share memory")
            reach += stride * (size - 1)


def check_norm(x: Tensor, weight: Tensor, epsilon: float) -> None:
    """Refuse with ValueError what `rms_norm` is not defined for."""
    check_tensors(x=x, weight=weight)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (… m) with m at least 1")
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}; it must be one of {', '.join(map(str, DTYPES))}")
    others = DTYPES if x.dtype != torch.float64 else (torch.float64,)
    require("weight", weight, "m", (x.shape[-1],), others, x, "x")
    if not isinstance(epsilon, float | int) or not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a number from 0 on, not {shown(epsilon)}")


def check_options(backend: object, delta_softplus: object = True) -> None:
    """A backend's name (which one there is comes later) and a flag."""
    if backend is not None and (not isinstance(backend, str) or not backend):
        raise ValueError(f"backend must be the name of one, or None, not {shown(backend)}")
    if not isinstance(delta_softplus, bool):
        raise ValueError(f"delta_softplus must be True or False, not {shown(delta_softplus)}")


def shown(value: object, limit: int = 80) -> str:
    """A caller's value as an error repeats it: in one line, cut where it is long."""
    text = repr(value)
    return " ".join((text if len(text) <= limit else f"{text[:limit]}…").split())


def check_low_rank(dt_proj: Tensor | None, delta_bias: Tensor | None, x: Tensor) -> int:
    """The projection (d r) that makes Δ of its low rank; returns r, which is 0 for a static Δ."""
    if dt_proj is not None:
        if dt_proj.dim() != 2:
            raise ValueError(f"dt_proj has shape {tuple(dt_proj.shape)}; it must be (d r)")
        r = dt_proj.shape[1]
        require("dt_proj", dt_proj, "d r", (x.shape[1], r), (x.dtype,), x, "x")
        return r
    if delta_bias is None:
        raise ValueError("dt_proj and delta_bias are both None; a static Δ comes from delta_bias alone")
    return 0


def check_activations(name: str, tensor: Tensor, axes: str) -> None:
    """The tensor whose shape and dtype the others follow."""
    if tensor.dim() != len(axes.split()) or tensor.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be ({axes}) with d at least 1")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}; it must be one of {', '.join(map(str, DTYPES))}")


def check_A(A: Tensor, d: int, like: Tensor, like_name: str) -> int:
    """A (d n), real or complex; returns n."""
    if A.dim() != 2 or A.shape[1] == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; it must be (d n) with n at least 1")
    real = accumulation_dtype(like.dtype)
    require("A", A, "d n", (d, A.shape[1]), (real, COMPLEX[real]), like, like_name)
    return A.shape[1]


def check_filter(weight_name: str, weight: Tensor, bias_name: str, bias: Tensor | None, x: Tensor) -> int:
    """The convolution's weight (d k) and bias (d), both in x's dtype or in the accumulation dtype; returns k."""
    if weight.dim() != 2 or weight.shape[1] == 0:
        raise ValueError(f"{weight_name} has shape {tuple(weight.shape)}; it must be (d k) with k at least 1")
    d, k = x.shape[-1], weight.shape[1]
    require(weight_name, weight, "d k", (d, k), (x.dtype, accumulation_dtype(x.dtype)), x, "x")
    if bias is not None:
        require(bias_name, bias, "d", (d,), (weight.dtype,), weight, weight_name)
    return k


def check_packing(cu_seqlens: Tensor | None, like: Tensor, like_name: str) -> int:
    """The number of rows of the states: one a sequence if any are packed, else the batch."""
    if cu_seqlens is None:
        return like.shape[0]
    if like.shape[0] != 1:
        raise ValueError(f"cu_seqlens packs sequences along l, so b must be 1; {like_name} has b = {like.shape[0]}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; it must be (s+1)")
    if cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype}; it must be torch.int32")
    if cu_seqlens.device != like.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, but {like_name} is on {like.device}")
    return cu_seqlens.shape[0] - 1


def check_bounds(cu_seqlens: Tensor | None, length: int) -> None:
    """The values of cu_seqlens, where reading them is free (on the CPU) or asked for with MAMBALAB_DEBUG=1."""
    if cu_seqlens is None or not (cu_seqlens.is_cpu or os.environ.get("MAMBALAB_DEBUG") == "1"):
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length:
        raise ValueError(f"cu_seqlens runs from {bounds[0]} to {bounds[-1]}; it must run from 0 to l = {length}")
    for begin, end in pairwise(bounds):
        if end < begin:
            raise ValueError(f"cu_seqlens goes from {begin} down to {end}; it must never decrease")


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known, with its neighbours."""
    if name not in known:
        near = [repr(other or None) for other in get_close_matches(str(name), known) or known]
        raise ValueError(f"unknown {what} {shown(name)}; nearest: {', '.join(near)}")


def refuse_groups(name: str, matrix: Tensor) -> None:
    """Rank 4 is kept free for groups of channels that share B and C."""
    if matrix.dim() == 4:
        raise ValueError(f"{name} has rank 4; (b l g n) is reserved for groups, it must be (b l n) or (d n) today")


def with_complex(dtypes: tuple[torch.dtype, ...], A: Tensor) -> tuple[torch.dtype, ...]:
    """`dtypes`, and A's own as well when A is complex."""
    return (*dtypes, A.dtype) if A.is_complex() else dtypes


def require(
    name: str,
    tensor: Tensor,
    axes: str,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    like: Tensor,
    like_name: str,
) -> None:
    """Refuse a tensor of another shape, dtype or device than goes with `like`."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; beside {like_name} of shape {tuple(like.shape)} "
            f"it must be ({axes}) = {tuple(shape)}"
        )
    if tensor.dtype not in dtypes:
        allowed = " or ".join(dict.fromkeys(map(str, dtypes)))
        raise ValueError(f"{name} is {tensor.dtype}; beside {like_name} in {like.dtype} it must be {allowed}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but {like_name} is on {like.device}")
