"""Small models that the tests of models/ share."""

import torch
from mambalab.models import Mamba
from mambalab.models.registry import MambaConfig

TINY = MambaConfig(d_model=24, n_layer=3, vocab_size=61, d_state=5, dt_min=0.05, dt_max=1.0)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# A fresh model hardly uses its states; with these factors, losing one changes the logits by as much as their norm.
LOUDER = {"in_proj.weight": 3, "x_proj.weight": 3, "conv1d.weight": 2, "embedding.weight": 5}


@torch.no_grad()
def tiny(seed=0, **changes):
    """A small model with odd sizes whose every parameter matters: no norm, no D and no bias is an identity."""
    model = Mamba(MambaConfig(**{**TINY.__dict__, **changes}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith((".D", "norm.weight", "norm_f.weight", "in_proj.bias", "out_proj.bias", "A_log")):
            parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator))
        parameter.mul_(next((factor for ending, factor in LOUDER.items() if name.endswith(ending)), 1))
    return model


def tokens(*shape, seed=0, vocabulary=61):
    """Random token ids."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def distance(got, want):
    """The relative distance of two tensors, by the norm of the whole."""
    wide = torch.complex128 if want.is_complex() else torch.float64
    got, want = got.detach().to(wide), want.detach().to(wide)
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def assert_same_states(got, want, tolerance):
    """Both states of every layer agree."""
    for name in ("conv", "scan"):
        for i, (a, b) in enumerate(zip(getattr(got, name), getattr(want, name), strict=True)):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert distance(a, b) < tolerance, (name, i)
