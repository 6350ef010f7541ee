"""The public root-mean-square norm: checks, custom op, fake kernel, autograd."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .backends import pick
from .checks import check_norm, check_options


def rms_norm(
    x: Float[Tensor, "*batch m"], weight: Float[Tensor, "m"], *, epsilon: float = 1e-5, backend: str | None = None
) -> Float[Tensor, "*batch m"]:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang & Sennrich, arXiv:1910.07467).

    Computed in float32, or in float64 for float64, and in weight's dtype in the end. x and weight have gradients, and
    any strides.

    Raises ValueError where a shape, dtype, device or name breaks these rules, or no backend can run.
    """
    check_options(backend)
    check_norm(x, weight, epsilon)
    return _norm(x.reshape(-1, x.shape[-1]), weight, epsilon, backend or "").view(x.shape)


@torch.library.custom_op("mambalab::rms_norm", mutates_args=())
def _norm(x: Tensor, weight: Tensor, epsilon: float, backend: str) -> Tensor:
    return pick(x.device, backend or None).norm_forward(x, weight, epsilon)


@torch.library.custom_op("mambalab::rms_norm_backward", mutates_args=())
def _norm_backward(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float, backend: str) -> tuple[Tensor, Tensor]:
    return pick(x.device, backend or None).norm_backward(dy, x, weight, epsilon)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return weight.new_empty(x.shape)


@_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_norm_backward(dy, *ctx.saved_tensors, *ctx.options), None, None


_norm.register_autograd(_differentiate, setup_context=_save)
