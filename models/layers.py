"""Pieces every model here shares: the norm, and modules whose chosen parameters never leave float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Inexact, Int64
from torch import Generator, Tensor, nn

from ..ext import rms_norm


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream and of kept parameters: float32, or float64 for a float64 model."""
    return torch.promote_types(dtype, torch.float32)


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast takes matrix products in on its device, or as it is where there is none."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def gated(y: Tensor, z: Tensor) -> Tensor:
    """y * silu(z), rounded once to y's dtype."""
    return (y * F.silu(z.to(widened(z.dtype)))).to(y.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 (float64 for a float64 x), and returned in the weight's dtype or autocast's."""

    def __init__(self, d_model: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*batch m"], backend: str | None = None) -> Float[Tensor, "*batch m"]:
        return rms_norm(x, autocast(self.weight), epsilon=self.epsilon, backend=backend)


class Embedding(nn.Embedding):
    """A row of the weight for each token.

    Where there are few symbols its gradient is a product with their one-hot rows: on a GPU that is quicker than torch's
    own, which sorts or takes turns at each row, and the same bits every time. There it is taken as long as the one-hot
    rows hold up to `MOST` numbers.
    """

    FEW, MOST = 64, 2**27

    def forward(self, input: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch m"]:
        is_small = self.num_embeddings <= self.FEW or (
            input.is_cuda and self.num_embeddings * input.numel() <= self.MOST
        )
        if is_small and torch.is_grad_enabled() and self.weight.requires_grad:
            return _Looked.apply(input, self.weight)  # pyright: ignore[reportReturnType]
        return super().forward(input)


class _Looked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.symbols = len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (tokens,) = ctx.saved_tensors
        symbols = torch.arange(ctx.symbols, device=grad.device)
        one_hot = (tokens.reshape(-1, 1) == symbols).to(grad.dtype)
        return None, one_hot.mT @ grad.flatten(0, -2)


class KeepsFloat32(nn.Module):
    """A module whose parameters in `float32_names` follow the others to a device, but never to a 16-bit dtype.

    `.half()` and `.to(torch.bfloat16)` keep their bits as they are: nothing is rounded on the way.
    """

    float32_names: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeepsFloat32:
        parameters = [p for p in (getattr(self, name) for name in self.float32_names) if p is not None]
        kept = {id(t): t for p in parameters for t in (p, p.grad)}

        def convert(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return tensor.to(out.device, torch.float32) if id(tensor) in kept and out.itemsize < 4 else out

        return super()._apply(convert, recurse)


class DiagonalState(nn.Module):
    """A state space whose state matrix is diagonal: -exp(A_log), and i A_imag where there is one."""

    A_log: nn.Parameter
    A_imag: nn.Parameter | None

    @property
    def A(self) -> Inexact[Tensor, "d n"]:
        """The diagonal of the state matrix, its real part negative by construction."""
        decay = -torch.exp(self.A_log)
        return decay if self.A_imag is None else torch.complex(decay, self.A_imag)

    def empty_state(self, batch: int) -> Inexact[Tensor, "b d n"]:
        """The state of `batch` rows that have read nothing."""
        return self.A.detach().new_zeros(batch, *self.A_log.shape)


class DeltaProjection(KeepsFloat32, nn.Linear):
    """The low-rank Δ projection; its bias stays float32, and is left to the scan's softplus instead of added here."""

    float32_names = ("bias",)

    def forward(self, input: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch d"]:
        """Of the last columns of the input, where it has some before them."""
        before = input.shape[-1] - self.in_features
        return F.linear(input, F.pad(self.weight, (before, 0)) if before else self.weight)

    @torch.no_grad()
    def initialise(self, dt_min: float, dt_max: float, generator: Generator) -> None:
        """Weights uniform within rank^-1/2, and `initialise_delta` for the bias."""
        bound = self.in_features**-0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        initialise_delta(self.bias, dt_min, dt_max, generator)


class StaticDelta(KeepsFloat32):
    """In the place of the projection for a Δ that is not selective: a bias alone, one Δ a channel."""

    float32_names = ("bias",)

    def __init__(self, d: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(d))

    def forward(self, input: Float[Tensor, "*batch 0"]) -> Float[Tensor, "*batch d"]:
        """Zeros, for the scan to add the bias to: one number, expanded."""
        return input.new_zeros(()).expand(*input.shape[:-1], len(self.bias))

    def initialise(self, dt_min: float, dt_max: float, generator: Generator) -> None:
        """`initialise_delta` for the bias."""
        initialise_delta(self.bias, dt_min, dt_max, generator)


@torch.no_grad()
def initialise_delta(bias: Float[Tensor, " d"], dt_min: float, dt_max: float, generator: Generator) -> None:
    """A bias whose softplus, Δ, is log-uniform in [dt_min, dt_max] (at least 1e-4).

    As github.com/state-spaces/mamba, mamba_simple.py, draws it; the paper's section 3.6 says uniform.
    """
    log_delta = torch.empty_like(bias).uniform_(math.log(dt_min), math.log(dt_max), generator=generator)
    delta = log_delta.exp().clamp(min=1e-4)
    # softplus(bias) = Δ, solved for the bias in the form that keeps small Δ exact.
    bias.copy_(delta + torch.log(-torch.expm1(-delta)))


@torch.no_grad()
def initialise_by_fan_in(module: nn.Linear | nn.Conv1d, generator: Generator) -> None:
    """torch's own default for these layers, weight and bias uniform within fan_in^-1/2, from an explicit generator."""
    bound = module.weight[0].numel() ** -0.5
    for parameter in module.parameters(recurse=False):
        parameter.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def initialise_residual(linear: nn.Linear, n_layer: int, generator: Generator) -> None:
    """A map that ends a residual branch: weight by fan-in over sqrt(n_layer), bias zero."""
    initialise_by_fan_in(linear, generator)
    linear.weight.div_(math.sqrt(n_layer))
    if linear.bias is not None:
        linear.bias.zero_()
