"""Small models that the tests of models/ share."""

import torch
from mambalab.models import Mamba
from mambalab.models.registry import MambaConfig

TINY = MambaConfig(d_model=24, n_layer=3, vocab_size=61, d_state=5)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def tiny(seed=0, **changes):
    """A small model with odd sizes, its norms and D shaken so that none of them is an identity."""
    model = Mamba(MambaConfig(**{**TINY.__dict__, **changes}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".D", "norm.weight", "norm_f.weight", "proj.bias", "A_log")):
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator))
            if name.endswith("embedding.weight"):
                parameter.mul_(20)
    return model


def tokens(*shape, seed=0, vocabulary=61):
    """Random token ids."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def distance(got, want):
    """The relative distance of two tensors, by the norm of the whole."""
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def assert_same_states(got, want, tolerance):
    """Both states of every layer agree."""
    for name in ("conv", "scan"):
        for i, (a, b) in enumerate(zip(getattr(got, name), getattr(want, name), strict=True)):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert distance(a, b) < tolerance, (name, i)
