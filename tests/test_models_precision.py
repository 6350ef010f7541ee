"""What must be float32 is, whatever the weights' dtype, and a model starts as the released code draws it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mambalab.models import Mamba
from mambalab.models.layers import RMSNorm
from mambalab.models.registry import MambaConfig
from models_cases import TINY, TOLERANCE, distance, tiny, tokens


@pytest.mark.parametrize(
    "narrow",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.to(torch.bfloat16).to(torch.float16),
    ],
    ids=["half", "bfloat16", "to", "to with device", "twice"],
)
def test_sixteen_bit_weights_keep_the_float32_parts_bit_for_bit(narrow):
    model, want = tiny(), tiny().state_dict()
    model.layers[0].mixer.A_log.grad = torch.full_like(model.layers[0].mixer.A_log, 1 + 2**-20)
    model = narrow(model)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {name for name in want if name.endswith(("A_log", ".D", "dt_proj.bias"))}
    assert all(torch.equal(model.state_dict()[name], want[name]) for name in kept)
    assert float(model.layers[0].mixer.A_log.grad[0, 0]) == 1 + 2**-20
    assert len({p.dtype for p in model.parameters()}) == 2


def test_a_float64_model_is_float64_throughout():
    assert {p.dtype for p in tiny().double().parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_residual_stream_and_scan_states_are_float32_in_sixteen_bits(dtype):
    model = tiny().to(dtype)
    streams = []
    for block in model.layers:
        block.register_forward_hook(lambda _, args, out: streams.append((args[0].dtype, out[0].dtype)))
    logits, state = model(tokens(2, 5))
    assert set(streams) == {(torch.float32, torch.float32)}
    assert logits.dtype == dtype
    assert {t.dtype for t in state.scan} == {torch.float32}
    assert {t.dtype for t in state.conv} == {dtype}
    empty = model.empty_state(2)
    assert [t.dtype for t in (*empty.conv, *empty.scan)] == [t.dtype for t in (*state.conv, *state.scan)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_logits_are_near_float32(dtype):
    ids = tokens(2, 9)
    want, _ = tiny()(ids)
    assert distance(tiny().to(dtype)(ids)[0], want) < 3 * TOLERANCE[dtype]


def test_training_under_autocast_keeps_float32_gradients():
    model, ids = tiny(), tokens(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(ids)
    assert logits.dtype == torch.bfloat16
    F.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_head_stays_tied_when_the_model_moves():
    for model in (tiny().half(), tiny().to("meta").to_empty(device="cpu"), tiny().double()):
        assert model.lm_head.weight is model.backbone.embedding.weight


def test_the_norm_is_taken_in_float32():
    norm = RMSNorm(64).to(torch.float16)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 300
    # In float16 the squares would overflow.
    want = (x / x.square().mean(-1, keepdim=True).sqrt()).half()
    assert norm(x).dtype == torch.float16
    assert torch.equal(norm(x), want)


@torch.no_grad()
def test_it_starts_as_the_released_code_does():
    config = MambaConfig(d_model=64, n_layer=4, vocab_size=300, tie_embeddings=False)
    model = Mamba(config, seed=3)
    for block in model.layers:
        mixer = block.mixer
        delta = F.softplus(mixer.dt_proj.bias)
        assert config.dt_min * 0.999 <= float(delta.min()) < 0.0015
        assert 0.07 < float(delta.max()) <= config.dt_max * 1.001
        # Log-uniform: as many below the geometric middle as above it.
        assert 0.3 < float((delta < math.sqrt(config.dt_min * config.dt_max)).float().mean()) < 0.7
        assert distance(mixer.A, -torch.arange(1.0, 17).expand(128, 16)) < 1e-6
        assert torch.equal(mixer.D, torch.ones(128))
        assert_uniform(mixer.dt_proj.weight, 4**-0.5)
        assert_uniform(mixer.in_proj.weight, 64**-0.5)
        assert mixer.x_proj is not None
        assert_uniform(mixer.x_proj.weight, 128**-0.5)
        assert_uniform(mixer.out_proj.weight, 128**-0.5 / math.sqrt(4))
        assert_uniform(mixer.conv1d.weight, 4**-0.5)
        assert_uniform(mixer.conv1d.bias, 4**-0.5)
        assert torch.equal(block.norm.weight, torch.ones(64))
    assert abs(float(model.backbone.embedding.weight.std()) - 0.02) < 0.001
    assert_uniform(model.lm_head.weight, 64**-0.5)


def assert_uniform(weight, bound):
    """Within the bound, near it at the most, and as spread as a uniform draw is."""
    assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert abs(float(weight.std()) / (bound / math.sqrt(3)) - 1) < 0.15


def test_projection_biases_start_at_zero():
    mixer = Mamba(MambaConfig(d_model=8, n_layer=1, vocab_size=8, bias=True)).layers[0].mixer
    assert not mixer.in_proj.bias.any()
    assert not mixer.out_proj.bias.any()


def test_the_seed_is_the_only_randomness():
    before = torch.get_rng_state()
    first, again, other = (Mamba(TINY, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [n for n in first if not n.endswith(("A_log", ".D", "norm.weight", "norm_f.weight"))]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("rank", [3, 8])
def test_columns_that_align_the_projections_change_nothing_but_the_rounding(rank):
    """What 16 bits have before the columns of Δ, so that B and C begin where tensor cores like to read."""
    settings = replace(TINY, dt_rank=rank)
    ids = tokens(2, 9)
    want, _ = Mamba(settings)(ids)
    assert distance(Mamba(settings).bfloat16()(ids)[0], want) < 3 * TOLERANCE[torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(Mamba(settings)(ids)[0], want) < 3 * TOLERANCE[torch.bfloat16]
