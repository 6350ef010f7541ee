"""Where a tensor goes two ways: gradients that meet in place, and are neither joined nor added where they need not be.

torch would copy or add them in passes of their own over the largest tensors of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .layers import autocast


def taken(x: Float[Tensor, "*batch m"], at: Int64[Tensor, " p"] | None) -> Tensor:
    """The rows of x at these flat positions, (p m); all of x for None."""
    return x if at is None else x.flatten(0, -2).index_select(0, at.to(x.device))


def with_rows(x: Float[Tensor, "*batch m"], at: Int64[Tensor, " p"] | None) -> tuple[Tensor, Tensor]:
    """x, for one reader whose gradient is its own, and `taken(x, at)`."""
    if at is None or not (torch.is_grad_enabled() and x.requires_grad):
        return x, taken(x, at)
    return _WithRows.apply(x, at)  # pyright: ignore[reportReturnType]


class _WithRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(at)
        return x.view_as(x), taken(x, at)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, drows: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (at,) = ctx.saved_tensors
        return _flat(dx).index_add_(0, at.to(dx.device), drows).view_as(dx), None


def with_product(
    x: Float[Tensor, "*batch d"], weight: Float[Tensor, "r d"]
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch r"]]:
    """x, for one reader whose gradient is its own, and x weight^T."""
    narrowed = autocast(weight)
    if torch.is_grad_enabled() and x.requires_grad and x.dtype == narrowed.dtype:
        return _WithProduct.apply(x, narrowed)  # pyright: ignore[reportReturnType]
    return x, F.linear(x, weight)


class _WithProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        return x.view_as(x), F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        dy = dy.flatten(0, -2)
        return _flat(dx).addmm_(dy, weight).view_as(x), dy.mT @ x.flatten(0, -2)


def _flat(grad: Tensor) -> Tensor:
    """A gradient as rows that can be added to: one that was expanded is copied."""
    return grad.contiguous().flatten(0, -2)


class HalvedLinear(nn.Linear):
    """A linear map whose output's two halves go different ways: backward, their gradients are never joined.

    torch's own `chunk` would copy both into one tensor first.
    """

    def halves(
        self, input: Float[Tensor, "*batch m"], at: Int64[Tensor, " p"] | None = None
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "..."]]:
        """The first half of the output's columns, and the second: at these flat positions, (p d), or all of it."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            bias = self.bias if self.bias is None else autocast(self.bias)
            return _Halved.apply(autocast(input), autocast(self.weight), bias, at)  # pyright: ignore[reportReturnType]
        return _halves(input, self.weight, self.bias, at)


def _halves(x: Tensor, weight: Tensor, bias: Tensor | None, at: Tensor | None) -> tuple[Tensor, Tensor]:
    if at is None:
        first, second = F.linear(x, weight, bias).chunk(2, -1)
        return first, second
    upper, lower = weight.chunk(2)
    one, other = (None, None) if bias is None else bias.chunk(2)
    return F.linear(x, upper, one), F.linear(taken(x, at), lower, other)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, at: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, at)
        return _halves(x, weight, bias, at)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight, at = ctx.saved_tensors
        rows = x.flatten(0, -2)
        first, second = (grad.flatten(0, -2) for grad in grads)
        upper, lower = weight.chunk(2)
        needs_x, _, needs_bias, _ = ctx.needs_input_grad
        dx = None
        if needs_x:
            dx = first @ upper
            dx = dx.addmm_(second, lower) if at is None else dx.index_add_(0, at.to(dx.device), second @ lower)
            dx = dx.view_as(x)
        dbias = torch.cat((first.sum(0), second.sum(0))) if needs_bias else None
        return dx, torch.cat((first.mT @ rows, second.mT @ taken(rows, at))), dbias, None
