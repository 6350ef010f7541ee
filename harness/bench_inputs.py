"""Inputs of a scan benchmark, drawn from a seed, and what the scan makes of them exactly, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ext import selective_scan

CHUNK = 128  # steps whose float64 graph is alive at once
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {
    "normal": "most values normal, delta 0.5 x normal with a bias uniform in [-4, -2], A = -16 x uniform - 0.1",
    "released": "Δ and A as the released models begin: a bias whose softplus is log-uniform in [1e-3, 1e-1], "
    "delta normal / 3, A = -1 ... -n; the rest normal",
}


@dataclass(frozen=True)
class Shape:
    """b, d, l, n of a scan, and its dtype where it is not the run's."""

    b: int
    d: int
    l: int  # noqa: E741  (the letter of DESIGN's axes)
    n: int
    dtype: str = ""

    def __post_init__(self) -> None:
        if min(self.b, self.d, self.l, self.n) < 1:
            raise ValueError(f"shape {self} must be four positive integers B,D,L,N")
        if self.dtype not in ("", *DTYPES):
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read "1,128,4096,16" or "1,128,4096,16,bfloat16"; anything else is a one-line ValueError."""
        numbers, dtype = [part.strip() for part in text.split(",")], ""
        if numbers[-1] in DTYPES:
            dtype = numbers.pop()
        if len(numbers) != 4 or not all(part.isdecimal() for part in numbers):
            raise ValueError(
                f"shape {text!r} must be four positive integers B,D,L,N, such as 1,128,4096,16, "
                f"and may end in a dtype: {', '.join(DTYPES)}"
            )
        b, d, l, n = map(int, numbers)  # noqa: E741
        return cls(b, d, l, n, dtype)

    def __str__(self) -> str:
        return f"{self.b},{self.d},{self.l},{self.n}"

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


def draw(
    shape: Shape, dtype: torch.dtype, seed: int, kind: str = "normal", device: torch.device | str = "cpu"
) -> tuple[Inputs, Tensor]:
    """Inputs of a kind of KINDS, and the gradient of the output, from a seed: other numbers on another device.

    Time steps are of about 0.05 ("normal") or 0.01 ("released").
    """
    random = torch.Generator(device).manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, device=device)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=random, device=device)

    whole = (shape.b, shape.l, shape.d)
    inputs = Inputs(
        u=normal(*whole).to(dtype),
        delta=(normal(*whole) * (0.5 if kind == "normal" else 1 / 3)).to(dtype),
        A=(_A(uniform(shape.d, shape.n), kind)).to(wide),
        B=normal(shape.b, shape.l, shape.n).to(dtype),
        C=normal(shape.b, shape.l, shape.n).to(dtype),
        D=normal(shape.d).to(wide),
        z=normal(*whole).to(dtype),
        delta_bias=_bias(uniform(shape.d), kind).to(wide),
    )
    return inputs, normal(*whole).to(dtype)


def _A(uniform: Tensor, kind: str) -> Tensor:
    if kind == "normal":
        return -16 * uniform - 0.1
    return -torch.arange(1.0, uniform.shape[1] + 1, device=uniform.device).expand(uniform.shape).contiguous()


def _bias(uniform: Tensor, kind: str) -> Tensor:
    if kind == "normal":
        return 2 * uniform - 4
    delta = torch.exp(uniform * math.log(1e-1 / 1e-3)) * 1e-3
    return delta + torch.log(-torch.expm1(-delta))


def window(tensor: Tensor, steps: slice) -> Tensor:
    """Those steps of a tensor with a length axis (rank 3); any other as it is."""
    return tensor[:, steps] if tensor.dim() == 3 else tensor


def exact(inputs: Inputs, dy: Tensor | None, rows: int = 1) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and with `dy` the gradients, in float64 by the definition, in memory that does not grow with l x n.

    A sequence runs chunk by chunk with carried states; gradients go back through the chunks from the states kept.
    Cut into `rows` equal pieces, which run side by side, it takes as many steps fewer, each of them gone twice: once
    from zero, which says by h_end = h_end(0) + exp(A ΣΔ) h_start what every piece starts from, and once from there;
    the gradient of the state likewise.
    """
    wide = [_cut(t.double(), rows) for t in inputs.tensors()]
    zero = wide[2].new_zeros(wide[0].shape[0], *wide[2].shape)
    y, states = _forward(wide, zero)
    decay = _decay(wide)
    if rows > 1:
        y, states = _forward(wide, _carried(states[-1], decay, rows))
    if dy is None:
        return _joined(y, rows), ()
    dy = _cut(dy.double(), rows)
    grads, dstate = _backward(wide, states, dy, zero)
    if rows > 1:
        grads, _ = _backward(wide, states, dy, _carried(dstate, decay, rows, backward=True))
    return _joined(y, rows), tuple(_joined(grad, rows) for grad in grads)


def _cut(tensor: Tensor, rows: int) -> Tensor:
    """(b l d) as (b·rows l/rows d); any other rank as it is."""
    return tensor.unflatten(1, (rows, -1)).flatten(0, 1) if tensor.dim() == 3 else tensor


def _joined(tensor: Tensor, rows: int) -> Tensor:
    """What `_cut` has cut, whole."""
    return tensor.unflatten(0, (-1, rows)).flatten(1, 2) if tensor.dim() == 3 else tensor


def _decay(wide: list[Tensor]) -> Tensor:
    """exp(A ΣΔ) of every row, (b d n): what is left at its end of the state that it started from."""
    _, delta, A, *_, bias = wide
    return torch.exp(torch.nn.functional.softplus(delta + bias).sum(1)[..., None] * A)


def _carried(local: Tensor, decay: Tensor, rows: int, *, backward: bool = False) -> Tensor:
    """What each row starts from, given what each leaves at its end when it starts from zero; backwards, its ends."""
    ends, decays = (list(t.unflatten(0, (-1, rows)).unbind(1)) for t in (local, decay))
    if backward:
        ends, decays = ends[::-1], decays[::-1]
    starts = [torch.zeros_like(ends[0])]
    for end, kept in zip(ends[:-1], decays[:-1], strict=True):
        starts.append(end + kept * starts[-1])
    return torch.stack(starts[::-1] if backward else starts, 1).flatten(0, 1)


def _chunks(wide: list[Tensor]) -> list[slice]:
    length = wide[0].shape[1]
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _forward(wide: list[Tensor], state: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and the state before each chunk and after the last."""
    states, outputs = [state], []
    for steps in _chunks(wide):
        y, state = _definition([window(t, steps) for t in wide], states[-1])
        outputs.append(y)
        states.append(state)
    return torch.cat(outputs, 1), states


def _backward(
    wide: list[Tensor], states: list[Tensor], dy: Tensor, dstate: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The gradients of the inputs and of the first state, from those of the output and of the last state."""
    grads = tuple(torch.zeros_like(t) for t in wide)
    for steps, state in reversed(list(zip(_chunks(wide), states[:-1], strict=True))):
        leaves = [t.detach().requires_grad_() for t in (*(window(t, steps) for t in wide), state)]
        outs = _definition(leaves[:-1], leaves[-1])
        *found, dstate = torch.autograd.grad(outs, leaves, (window(dy, steps), dstate))
        for whole, some in zip(grads, found, strict=True):
            window(whole, steps).add_(some)
    return grads, dstate


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
