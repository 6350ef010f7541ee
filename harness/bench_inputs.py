"""Inputs of a scan benchmark, drawn from a seed, and what the scan makes of them exactly, in float64."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from ..ext import selective_scan

CHUNK = 128  # steps whose float64 graph is alive at once


@dataclass(frozen=True)
class Shape:
    """b, d, l, n of a scan."""

    b: int
    d: int
    l: int  # noqa: E741  (the letter of DESIGN's axes)
    n: int

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise ValueError(f"shape {self} must be four positive integers B,D,L,N")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read "1,128,4096,16"; anything else is a one-line ValueError."""
        parts = text.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"shape {text!r} must be four positive integers B,D,L,N, such as 1,128,4096,16")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))

    @property
    def elements(self) -> int:
        return self.b * self.d * self.l * self.n


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The tensors of one scan in the axes of ext; fields in the order of every peer's arguments."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    delta_bias: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def first(self, length: int) -> Inputs:
        """The first `length` steps."""
        return Inputs(**{f.name: window(getattr(self, f.name), slice(length)) for f in fields(self)})


def draw(shape: Shape, dtype: torch.dtype, seed: int) -> tuple[Inputs, Tensor]:
    """Inputs and the gradient of the output, from a seed: most values normal, time steps of about 0.05.

    delta is 0.5 normal, its bias uniform in [-4, -2], A = -16 uniform - 0.1.
    """
    random = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=random)

    whole = (shape.b, shape.l, shape.d)
    inputs = Inputs(
        u=normal(*whole).to(dtype),
        delta=(0.5 * normal(*whole)).to(dtype),
        A=(-16 * uniform(shape.d, shape.n) - 0.1).to(wide),
        B=normal(shape.b, shape.l, shape.n).to(dtype),
        C=normal(shape.b, shape.l, shape.n).to(dtype),
        D=normal(shape.d).to(wide),
        z=normal(*whole).to(dtype),
        delta_bias=(2 * uniform(shape.d) - 4).to(wide),
    )
    return inputs, normal(*whole).to(dtype)


def window(tensor: Tensor, steps: slice) -> Tensor:
    """Those steps of a tensor with a length axis (rank 3); any other as it is."""
    return tensor[:, steps] if tensor.dim() == 3 else tensor


def exact(inputs: Inputs, dy: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and with `dy` the gradients, in float64 by the definition, in memory that does not grow with l x n.

    The sequence runs chunk by chunk with carried states; gradients go back through the chunks from the states kept.
    """
    wide = [t.double() for t in inputs.tensors()]
    length = wide[0].shape[1]
    chunks = [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]
    states, outputs = [wide[2].new_zeros(wide[0].shape[0], *wide[2].shape)], []
    for steps in chunks:
        y, state = _definition([window(t, steps) for t in wide], states[-1])
        outputs.append(y)
        states.append(state)
    if dy is None:
        return torch.cat(outputs, 1), ()
    grads = [torch.zeros_like(t) for t in wide]
    dstate = torch.zeros_like(states[-1])
    for steps, state in reversed(list(zip(chunks, states, strict=False))):
        leaves = [t.detach().requires_grad_() for t in (*(window(t, steps) for t in wide), state)]
        outs = _definition(leaves[:-1], leaves[-1])
        *found, dstate = torch.autograd.grad(outs, leaves, (window(dy.double(), steps), dstate))
        for whole, some in zip(grads, found, strict=True):
            window(whole, steps).add_(some)
    return torch.cat(outputs, 1), tuple(grads)


def _definition(tensors: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    made = selective_scan(
        *tensors, delta_softplus=True, initial_state=state, return_final_state=True, backend="reference"
    )
    assert isinstance(made, tuple)
    return made


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted|| over the whole tensor; infinite where `found` holds NaN or has another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    size = float(wanted.norm())
    # What is exactly zero (the gradient of A at l = 1) must be zero.
    error = float((found.double() - wanted).norm()) / (size or 1.0)
    return error if error == error else float("inf")
