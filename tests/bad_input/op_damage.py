"""What is done to the arguments of an op, and what the contract says of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ext_cases import amid_nan, repeated, strange
from torch import Tensor

Arguments = dict[str, Any]


class Fine:
    """The contract has an answer for it."""


class Refused:
    """It breaks the contract."""


class Unknown:
    """Either will do, but an answer must be right."""


Rule = type[Fine] | type[Refused] | type[Unknown]
STATES = ("conv_state", "scan_state")
# Written in place, each element needs a place of its own.
IN_ONE_PLACE = ("repeated", "overlapping")


def _overlapping(tensor: Tensor) -> Tensor:
    """A view in which neighbouring rows share all their elements but one."""
    sizes = tensor.shape
    store = tensor.flatten()[:1].repeat(sum(sizes) + 1) if tensor.numel() else tensor.new_zeros(sum(sizes) + 1)
    store.copy_(torch.linspace(-1, 1, len(store)))
    if tensor.dtype.is_floating_point and (tensor >= 0).all():
        store.abs_()
    if tensor.numel() and tensor.dim() == 2 and (tensor.real < 0).all():
        store = -store.abs() - 0.1 if not tensor.is_complex() else store - 2
    return store.as_strided(sizes, (1,) * len(sizes))


def _negated(tensor: Tensor) -> Tensor:
    """The same numbers, negated lazily in memory."""
    return torch._neg_view(tensor.neg())  # type: ignore[reportPrivateImportUsage]


def _conjugated(tensor: Tensor) -> Tensor:
    """The same numbers, conjugated lazily in memory."""
    return tensor.conj().resolve_conj().conj() if tensor.is_complex() else _negated(tensor)


def _offset(tensor: Tensor) -> Tensor:
    """The same numbers at an odd place of an odd memory."""
    store = torch.full((tensor.numel() + 1,), torch.nan, dtype=tensor.dtype)
    return store[1:].view(tensor.shape).copy_(tensor)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strange": strange,
    "repeated": repeated,
    "amid NaN": amid_nan,
    "overlapping": _overlapping,
    "negated": _negated,
    "conjugated": _conjugated,
    "offset": _offset,
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
}


def layout(given: Arguments, name: str, how: str) -> Rule:
    tensor = given[name]
    given[name] = LAYOUTS[how](tensor)
    if name in STATES and (given[name].is_neg() or given[name].is_conj()):
        return Refused
    if name in STATES and how in IN_ONE_PLACE:
        return Unknown if _apart(given[name]) else Refused
    return Fine


def _apart(tensor: Tensor) -> bool:
    return len({tuple(i) for i in np.ndindex(tuple(tensor.shape))}) == len(
        {sum(a * b for a, b in zip(i, tensor.stride(), strict=True)) for i in np.ndindex(tuple(tensor.shape))}
    )


def value(given: Arguments, name: str, how: tuple[int, float]) -> Rule:
    """Plant a number; where depends on the first of `how`."""
    tensor = given[name].clone(memory_format=torch.contiguous_format)
    if tensor.numel():
        tensor.view(-1)[how[0] % tensor.numel()] = how[1]
    given[name] = tensor
    return Fine


def shape(given: Arguments, name: str, how: tuple[str, int]) -> Rule:
    tensor = given[name]
    if how[0] == "cut to a scalar":
        changed = torch.zeros((), dtype=tensor.dtype)
    else:
        changed = SHAPES[how[0]](tensor, how[1] % tensor.dim())
    given[name] = changed
    if changed.shape == tensor.shape:
        return Fine
    d, n = given["A"].shape if "A" in given and given["A"].dim() == 2 else (0, 0)
    static = name in ("B", "C") and changed.shape == (d, n)
    # A convolution's batch, length and width are whatever they are.
    return Unknown if static or (name in ("x", "weight") and "weight" in given) else Refused


SHAPES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "longer": lambda t, axis: torch.cat([t, t.new_zeros(t.shape).narrow(axis, 0, min(1, t.shape[axis]))], axis),
    "shorter": lambda t, axis: t.narrow(axis, 0, max(0, t.shape[axis] - 1)),
    "empty": lambda t, axis: t.narrow(axis, 0, 0),
    "doubled": lambda t, axis: torch.cat([t, t], axis),
    "one": lambda t, axis: t.narrow(axis, 0, min(1, t.shape[axis])),
    "another axis": lambda t, axis: t.unsqueeze(axis),
    "an axis less": lambda t, axis: (
        t.reshape(t.shape[:axis] + t.shape[axis + 1 :] + (-1,))[..., :1].squeeze(-1) if t.numel() else t.sum(axis)
    ),
    "turned": lambda t, axis: t.transpose(axis, -1),
}


def _activation(given: Arguments) -> Tensor:
    return given["u"] if "u" in given else given["x"]


def dtype(given: Arguments, name: str, how: str) -> Rule:
    """Another dtype for one tensor; beside a complex A, or for a whole filter, some are right."""
    tensor = given[name]
    changed = getattr(torch, how)
    given[name] = torch.zeros(tensor.shape, dtype=changed)
    if changed == tensor.dtype:
        given[name] = tensor
        return Fine
    activation = _activation(given)
    wide = torch.float64 if activation.dtype == torch.float64 else torch.float32
    alone = name in ("weight", "conv_weight") and given.get("bias", given.get("conv_bias")) is None
    if alone and changed == wide:
        return Unknown
    pair = {torch.float32: torch.complex64, torch.float64: torch.complex128}[wide]
    if name in ("A", "B", "C") and changed in (wide, pair, activation.dtype):
        return Unknown
    if "weight" in given and name == "x" and given["initial_state"] is None:
        return Unknown
    return Refused


def device(given: Arguments, name: str, how: str) -> Rule:
    if how == "all":
        for key, tensor in given.items():
            if isinstance(tensor, Tensor):
                given[key] = tensor.to("meta")
        return Unknown
    given[name] = given[name].to("meta")
    return Refused


def packing(given: Arguments, name: str, how: tuple[str, Any]) -> Rule:
    what, content = how
    length = _activation(given).shape[1]
    bounds = torch.tensor(content, dtype=torch.int32) if what == "bounds" else None
    if what == "dtype":
        bounds = torch.tensor([0, length]).to(getattr(torch, content))
    elif what == "shape":
        bounds = torch.zeros(content, dtype=torch.int32)
    elif what == "scaled":
        bounds = torch.tensor([round(length * share) for share in content], dtype=torch.int32)
    given["cu_seqlens"] = bounds
    given["initial_state"] = None
    tensor = _activation(given)
    is_right = (
        tensor.shape[0] == 1
        and bounds is not None
        and bounds.dtype == torch.int32
        and bounds.dim() == 1
        and len(bounds) > 0
        and bounds[0] == 0
        and bounds[-1] == length
        and bool((bounds[1:] >= bounds[:-1]).all())
    )
    return Fine if is_right else Refused


def option(given: Arguments, name: str, how: Any) -> Rule:
    given[name] = how
    good = {"discretisation": ("euler", "zoh"), "activation": ("silu", None, ""), "backend": ("cpu", "reference", None)}
    good["delta_softplus"] = (True, False)
    return Fine if isinstance(how, str | bool | None) and how in good[name] else Refused


THINGS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda tensor: None,
    "a list": lambda tensor: tensor.tolist(),
    "an array": lambda tensor: (
        tensor.resolve_conj().resolve_neg().double().numpy()
        if not tensor.is_complex()
        else np.zeros(tuple(tensor.shape))
    ),
    "a number": lambda tensor: 1.0,
    "a text": lambda tensor: "tensor",
    "a dict": lambda tensor: {"tensor": tensor},
    "a class": lambda tensor: Tensor,
    "sparse": lambda tensor: tensor.to_sparse(),
    "compressed": lambda tensor: torch.zeros(3, 4).to_sparse_csr(),
    "nested": lambda tensor: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=torch.jagged),
}
OPTIONAL = ("D", "z", "delta_bias", "initial_state", "bias", "conv_bias")


def thing(given: Arguments, name: str, how: str) -> Rule:
    given[name] = THINGS[how](given[name])
    return Unknown if how == "None" else Refused


def asks_gradient(given: Arguments, name: str, how: str) -> Rule:
    tensor = given[name]
    if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return Fine
    given[name] = tensor.detach().requires_grad_()
    return Refused if "scan_state" in given and (name in STATES or name == "x") else Unknown


DAMAGES: dict[str, Callable[[Arguments, str, Any], Rule]] = {
    "layout": layout,
    "value": value,
    "shape": shape,
    "dtype": dtype,
    "device": device,
    "packing": packing,
    "option": option,
    "thing": thing,
    "asks gradient": asks_gradient,
}
