"""Bad input to the ops: strange memory, strange numbers, and arguments that break the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ext_cases import TOLERANCE, Case, Draw, conv_case, scan_case
from mambalab.ext import causal_conv1d, reference, selective_scan, step_
from test_ext_step import mixer
from torch import Tensor

from .engine import DEFECT, RIGHT, Verdict, said
from .op_damage import DAMAGES, Arguments, Refused, Unknown

OPS: dict[str, Callable[..., Any]] = {"selective_scan": selective_scan, "causal_conv1d": causal_conv1d, "step_": step_}
Sort = Callable[[Tensor], Tensor]
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


@dataclass(frozen=True, kw_only=True)
class OpCase:
    """A good call by its shape, and what is done to its arguments: (damage, argument, how)."""

    op: str
    sizes: tuple[int, int, int, int]
    dtype: str
    selective: str
    variant: tuple[bool, ...]  # complex A, ZOH, packed, without the optional tensors, without softplus or activation
    backend: str | None
    damages: tuple[tuple[str, str, Any], ...]
    seed: int


def arguments(case: OpCase) -> Arguments:
    """The good call."""
    make = {"selective_scan": _scan, "causal_conv1d": _conv, "step_": _step}[case.op]
    return make(case, *case.sizes) | {"backend": case.backend}


def _scan(case: OpCase, b: int, length: int, d: int, n: int) -> Arguments:
    is_complex, zoh, packed, bare, hard = case.variant
    made = scan_case(
        1 if packed else b,
        length,
        d,
        n,
        dtype=DTYPES[case.dtype],
        selective=case.selective,
        bounds=(0, length // 3, length // 3, length) if packed else None,
        without=("D", "z", "delta_bias", "initial_state") if bare else (),
        complex_names=("A", "C") if is_complex and "C" not in case.selective else ("A",) if is_complex else (),
        seed=case.seed,
    )
    discretisation = "zoh" if zoh else "euler"
    # Without the softplus Δ could be negative, and the states grow without bound.
    tensors = dict(made.tensors) | ({"delta": made.tensors["delta"].abs(), "delta_bias": None} if hard else {})
    options = dict(made.options) | {"delta_softplus": not hard, "discretisation": discretisation}
    return {"cu_seqlens": None} | tensors | options | {"return_final_state": True}


def _conv(case: OpCase, b: int, length: int, d: int, k: int) -> Arguments:
    _, _, packed, bare, plain = case.variant
    made = conv_case(
        1 if packed else b,
        length,
        d,
        k,
        dtype=DTYPES[case.dtype],
        bounds=(0, length // 3, length // 3, length) if packed else None,
        without=("bias", "initial_state") if bare else (),
        seed=case.seed,
    )
    options = {"activation": None if plain else "silu", "return_final_state": True}
    return {"cu_seqlens": None} | dict(made.tensors) | dict(made.options) | options


def _step(case: OpCase, b: int, r: int, d: int, n: int) -> Arguments:
    is_complex, zoh, _, bare, plain = case.variant
    dtype = DTYPES[case.dtype]
    given = mixer(dtype, case.selective, d=d, n=n, r=r, complex_A=is_complex)
    if bare:
        given |= dict.fromkeys(("D", "conv_bias"))
    draw = Draw(case.seed)
    x, z = draw(b, d, dtype=dtype), None if bare else draw(b, d, dtype=dtype)
    state = {"conv_state": draw(b, 3, d, dtype=dtype), "scan_state": draw(b, d, n, dtype=given["A"].dtype)}
    options = {"activation": None if plain else "silu", "discretisation": "zoh" if zoh else "euler"}
    return {"x": x, "z": z, **given, **state, "delta_softplus": True, **options}


def expected(op: str, given: Arguments, *, double: bool) -> dict[str, Tensor]:
    """The definition, on the same numbers: in float64, or in the dtypes as they are."""
    held = {name: value for name, value in given.items() if name not in ("backend", "return_final_state")}
    if double:
        held = {name: _double(value) for name, value in held.items()}
    if "activation" in held:
        held["activation"] = held["activation"] or ""
    with torch.no_grad():
        if op == "step_":
            held |= {name: held[name].clone() for name in ("conv_state", "scan_state")}
            y = reference.step(**held)
            return {"y": y, "conv_state": held["conv_state"], "scan_state": held["scan_state"]}
        forward = reference.scan_forward if op == "selective_scan" else reference.conv_forward
        return dict(zip(("y", "final_state"), forward(**held), strict=True))


def _double(value: Any) -> Any:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64)


def answered(op: str, given: Arguments) -> dict[str, Tensor]:
    """What the op gives, the states that it wrote included."""
    outputs = OPS[op](**given)
    if op == "step_":
        return {"y": outputs, "conv_state": given["conv_state"], "scan_state": given["scan_state"]}
    return dict(zip(("y", "final_state"), outputs, strict=True))


def judge(case: OpCase, folder: Path) -> Verdict:
    """Damage the call, make it, and hold what comes of it against the contract and the definition."""
    given = arguments(case)
    rules = {DAMAGES[name](given, argument, how) for name, argument, how in case.damages if name in DAMAGES}
    wanted = None if Refused in rules else _expectations(case.op, given, Unknown in rules)
    try:
        if ("gradient", "", None) in case.damages:
            return _verdict(_gradient_differences(case.op, given))
        found = answered(case.op, given)
    except ValueError as error:
        return said(str(error)) if rules & {Refused, Unknown} else Verdict(DEFECT, f"a good input is refused: {error}")
    if wanted is None:
        return Verdict(DEFECT, "an input against the contract is taken")
    return _verdict(differences(found, *wanted, found["y"].dtype))


def _verdict(wrong: str | None) -> Verdict:
    return Verdict(DEFECT, wrong) if wrong else Verdict(RIGHT, "")


def _expectations(op: str, given: Arguments, may_fail: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """What the definition gives, in float64 and in the dtypes as they are; of tensors without data, nothing."""
    if any(isinstance(value, Tensor) and value.is_meta for value in given.values()):
        return {}, {}
    try:
        return expected(op, given, double=True), expected(op, given, double=False)
    except Exception:
        if may_fail:
            return None
        raise


def _gradient_differences(op: str, given: Arguments) -> str | None:
    """The gradient of everything through a scan or a convolution, against that of the definition in float64."""
    named = ("u", "x", "weight", "bias", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    tensors = {name: value for name, value in given.items() if name in named}
    options = {name: value for name, value in given.items() if name not in named}
    draw = Draw(1)
    outputs = expected(op, given, double=False)
    y, state = (draw(*out.shape, dtype=out.dtype) for out in outputs.values())
    case = Case(tensors, (y, state), options)
    found = case.run(OPS[op])
    forward = reference.scan_forward if op == "selective_scan" else reference.conv_forward
    if not outputs["y"].numel():
        # Nothing depends on anything, which torch's own autograd refuses to differentiate.
        exact = replace(case, options=options | {"backend": "reference"}).double().run(OPS[op])
        return differences(found, exact, exact, outputs["y"].dtype, by_row=False)
    kept = {name: value for name, value in options.items() if name not in ("backend", "return_final_state")}
    if "activation" in kept:
        kept["activation"] = kept["activation"] or ""
    exact = replace(case, options=kept).double().run(forward)
    return differences(found, exact, exact, outputs["y"].dtype, by_row=False)


def differences(
    found: Mapping[str, Tensor],
    double: Mapping[str, Tensor],
    same: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    by_row: bool = True,
) -> str | None:
    """What is wrong, or None. NaN and infinities must stand where the definition has them in either precision;
    a finite number is held against float64, on the scale of its own row (of gradients, in which what flows from the
    state may cancel the rest: of the tensor), where both precisions have one."""
    # What an infinity times a complex number is, no standard says: there, not finite is not finite.
    sort = _is_infinite if any(tensor.is_complex() for tensor in found.values()) else _sort
    for name, tensor in found.items():
        if tensor.is_meta:
            continue
        wanted, rounded = double[name], same[name]
        if tensor.shape != wanted.shape:
            return f"{name} has shape {tuple(tensor.shape)}, not {tuple(wanted.shape)}"
        pairs = [(tensor, wanted, rounded)]
        if tensor.is_complex():
            pairs = [tuple(t.resolve_conj().real for t in pairs[0]), tuple(t.resolve_conj().imag for t in pairs[0])]
        for actual, exact, near in pairs:
            if wrong := _difference(actual.double(), exact.double(), near.double(), TOLERANCE[dtype], by_row, sort):
                return f"{name}: {wrong}"
    return None


def _difference(actual: Tensor, exact: Tensor, near: Tensor, tolerance: float, by_row: bool, sort: Sort) -> str | None:
    settled = sort(exact) == sort(near)
    if (other := settled & (sort(actual) != sort(exact))).any():
        where = tuple(other.nonzero()[0].tolist())
        return f"{actual[where].item()} at {where}, not {exact[where].item()}"
    finite = settled & exact.isfinite()
    zero = torch.zeros_like(exact)
    error = torch.where(finite, (actual - exact).abs(), zero)
    size = torch.where(finite, exact.abs(), zero)
    # A sum of large terms that cancel is as good as rounding lets it be, for the definition as well.
    slack = 20 * torch.where(finite, (near - exact).abs(), zero)
    allowed = 20 * tolerance * (_largest_of_row(size) if by_row else _largest(size)) + slack
    if (error > allowed).any():
        where = tuple((error > allowed).nonzero()[0].tolist())
        return f"{actual[where].item()} at {where}, not {exact[where].item()}"
    return None


def _sort(tensor: Tensor) -> Tensor:
    """Of each number: 0 finite, 1 and -1 the infinities, 2 NaN."""
    return torch.where(tensor.isnan(), 2, tensor.isposinf().int() - tensor.isneginf().int())


def _is_infinite(tensor: Tensor) -> Tensor:
    return ~tensor.isfinite()


def _largest_of_row(size: Tensor) -> Tensor:
    """The largest of each batch row's channel: a huge number planted in one hides nothing in another."""
    return size.amax(1, keepdim=True) if size.dim() == 3 and size.shape[1] else _largest(size)


def _largest(size: Tensor) -> Tensor:
    return size.amax() if size.numel() else size
