"""The questions a backend has to answer before it is trusted: small fixed inputs against the float64 reference."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import reference

# Relative, on the norm of a whole tensor: about a hundred times what float32 rounding leaves at these sizes.
TOLERANCE = 1e-4

Draw = Callable[..., Tensor]


def failure(row: Any, device: torch.device) -> str | None:
    """Why the backend `row` must not be used on `device`: its first wrong answer or error; None when all are right."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        for question in (*QUESTIONS, long_scan) if row.splits else QUESTIONS:
            name = question.__name__
            try:
                answers = question(row, _normal(device, torch.float32))
                error = max(map(_relative_error, answers, _expected(question)))
            except Exception as problem:
                lines = str(problem).splitlines() or ["no message"]
                return f"self-test of {name}: {type(problem).__name__}: {lines[0]}"
            if not error <= TOLERANCE:
                return f"self-test of {name}: relative error {error:.1e}, allowed {TOLERANCE:.0e}"
    return None


def scan(row: Any, draw: Draw) -> list[Tensor]:
    """Everything selective, every option given, Euler, across chunk and tile edges."""
    b, length, d, n = 2, 67, 19, 16
    u, delta, z, dy = (draw(b, length, d) for _ in range(4))
    B, C = draw(b, length, n), draw(b, length, n)
    A, D, bias = -draw(d, n).abs(), draw(d), draw(d)
    initial_state, dfinal_state = draw(b, d, n), draw(b, d, n)
    given = (u, delta, A, B, C, D, z, bias, initial_state, None, True, "euler")
    return _scanned(row, dy, dfinal_state, given)


def packed_scan(row: Any, draw: Draw) -> list[Tensor]:
    """Static B and C, nothing optional but states, ZOH, three sequences of which one is empty."""
    length, d, n = 9, 5, 3
    u, delta, dy = draw(1, length, d), draw(1, length, d).abs(), draw(1, length, d)
    A, B, C = -draw(d, n).abs(), draw(d, n), draw(d, n)
    initial_state, dfinal_state = draw(3, d, n), draw(3, d, n)
    given = (u, delta, A, B, C, None, None, None, initial_state, _bounds(u, 0, 4, 4, length), False, "zoh")
    return _scanned(row, dy, dfinal_state, given)


def long_scan(row: Any, draw: Draw) -> list[Tensor]:
    """So few channels for its length that a GPU would idle, were the sequence not cut into three pieces at least."""
    length, d, n = 1700, 3, 2
    u, delta, dy = draw(1, length, d), draw(1, length, d).abs() / 500, draw(1, length, d)
    A, B, C = -draw(d, n).abs(), draw(1, length, n), draw(1, length, n)
    initial_state, dfinal_state = draw(1, d, n), draw(1, d, n)
    given = (u, delta, A, B, C, None, None, None, initial_state, None, False, "euler")
    return _scanned(row, dy, dfinal_state, given)


def _scanned(row: Any, dy: Tensor, dfinal_state: Tensor, given: tuple[Any, ...]) -> list[Tensor]:
    """The results and gradients of a scan; from the states that it kept, where the backend keeps any."""
    scan_keeping = getattr(row, "scan_keeping", None)
    if scan_keeping is None:
        return _present(*row.scan_forward(*given), *row.scan_backward(dy, dfinal_state, *given))
    y, final_state, states = scan_keeping(*given)
    return _present(y, final_state, *row.scan_backward(dy, dfinal_state, *given, states))


def conv(row: Any, draw: Draw) -> list[Tensor]:
    """Bias, state and SiLU at the width of the published models."""
    b, length, d, k = 2, 67, 19, 4
    x, dy, weight, bias = draw(b, length, d), draw(b, length, d), draw(d, k), draw(d)
    initial_state, dfinal_state = draw(b, k - 1, d), draw(b, k - 1, d)
    given = (x, weight, bias, initial_state, None, "silu")
    return _present(*row.conv_forward(*given), *row.conv_backward(dy, dfinal_state, *given))


def packed_conv(row: Any, draw: Draw) -> list[Tensor]:
    """No bias, state or activation; three sequences, one empty and one shorter than the width."""
    length, d, k = 9, 5, 4
    x, dy, weight, dfinal_state = draw(1, length, d), draw(1, length, d), draw(d, k), draw(3, k - 1, d)
    given = (x, weight, None, None, _bounds(x, 0, 2, 2, length), "")
    return _present(*row.conv_forward(*given), *row.conv_backward(dy, dfinal_state, *given))


def step(row: Any, draw: Draw) -> list[Tensor]:
    """One token with everything selective, its two states included."""
    b, d, n, k, r = 2, 19, 16, 4, 3
    x, z, weight, bias = draw(b, d), draw(b, d), draw(d, k), draw(d)
    # Small enough that Δ does not make the state be forgotten.
    x_proj, dt_proj = draw(r + 2 * n, d) / 5, draw(d, r) / 5
    A, D, delta_bias = -draw(d, n).abs(), draw(d), draw(d)
    states = draw(b, k - 1, d), draw(b, d, n)
    options = (None, None, "silu", True, "euler")
    return [row.step(x, z, weight, bias, x_proj, dt_proj, A, D, delta_bias, *states, *options), *states]


def norm(row: Any, draw: Draw) -> list[Tensor]:
    """More rows than a thread takes at once, of a width that fills no vector."""
    x, weight, dy = draw(67, 19), draw(19), draw(67, 19)
    return [row.norm_forward(x, weight, 1e-5), *row.norm_backward(dy, x, weight, 1e-5)]


QUESTIONS = (scan, packed_scan, conv, packed_conv, step, norm)


@cache
def _expected(question: Callable[..., list[Tensor]]) -> list[Tensor]:
    return question(reference, _normal(torch.device("cpu"), torch.float64))


def _normal(device: torch.device, dtype: torch.dtype) -> Draw:
    """A source of the same float32 normal numbers for every device and dtype."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)

    return draw


def _bounds(like: Tensor, *bounds: int) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int32, device=like.device)


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _relative_error(answer: Tensor, expected: Tensor) -> float:
    if answer.shape != expected.shape:
        raise ValueError(f"shape {tuple(answer.shape)} instead of {tuple(expected.shape)}")
    return float((answer.cpu().double() - expected).norm() / expected.norm())
