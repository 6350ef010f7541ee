"""S4, Hyena, attention and the gated RNN against their equations, written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from mambalab.ext import selective_scan
from mambalab.models.architectures import S4_INITS, SequenceConfig
from mambalab.models.attention import Attention, LearntPositions, SinusoidalPositions, placed
from mambalab.models.gated_rnn import GatedRNN
from mambalab.models.h3 import H3
from mambalab.models.hyena import Hyena
from mambalab.models.long_conv import causal_convolution, fft_length
from mambalab.models.s4 import S4
from models_cases import TOLERANCE, distance

D = 5
F64 = torch.float64


def draws(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def config(mixer, **settings):
    return SequenceConfig(**{"mixer": mixer, "d_model": D, "n_layer": 1, "vocab_size": 8, **settings})


def operator(kind, mixer, **settings):
    module = kind(config(mixer, **settings), D)
    module.initialise(torch.Generator().manual_seed(0))
    return module.double()


def s4(init, how="zoh"):
    return operator(S4, "s4", d_state=6, s4_init=init, s4_discretisation=how, dt_min=0.05, dt_max=1.0)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_the_long_convolution_and_its_gradients_are_those_of_the_sum_it_says(batch, length):
    leaves = u, kernel = draws(batch, length, 3).requires_grad_(), draws(3, length, seed=1).requires_grad_()
    weights = draws(batch, length, 3, seed=2)
    direct = sum(kernel[:, k] * F.pad(u, (0, 0, k, 0))[:, :length] for k in range(length))
    assert isinstance(direct, torch.Tensor)
    found, want = ((y, *torch.autograd.grad(y, leaves, weights)) for y in (causal_convolution(u, kernel), direct))
    for ours, theirs in zip(found, want, strict=True):
        assert distance(ours, theirs) < TOLERANCE[F64]


@pytest.mark.parametrize("least", [1, 2, 7, 11, 64, 511, 512, 513, 8256, 16385])
def test_an_fft_length_is_the_next_without_large_factors(least):
    def is_smooth(n):
        for prime in (2, 3, 5, 7):
            while n % prime == 0:
                n //= prime
        return n == 1

    assert fft_length(least) == next(n for n in range(least, 2 * least + 1) if is_smooth(n))


@pytest.mark.parametrize("init", S4_INITS)
def test_s4_is_the_scan_with_static_parameters(init):
    """ZOH against the selective scan, whose Δ, B and C are made constant."""
    module, u = s4(init), draws(2, 130, D)
    C = torch.complex(*module.C.chunk(2, -1)) if module.is_complex else module.C
    want, want_state = selective_scan(
        u, torch.exp(module.log_delta).expand_as(u), module.A, torch.ones_like(module.A.real), C, module.D,
        discretisation="zoh", return_final_state=True, backend="reference",
    )  # fmt: skip
    got, state = module(u, None, None)
    assert distance(got, want) < TOLERANCE[F64]
    assert distance(state, want_state) < TOLERANCE[F64]


@pytest.mark.parametrize("init", S4_INITS)
def test_a_bilinear_s4_is_the_recurrence_of_the_trapezoid(init):
    """(1 - ΔA/2) h_t = (1 + ΔA/2) h_{t-1} + Δ u_t, also where Ā is negative."""
    module, u = s4(init, "bilinear"), draws(2, 70, D)
    half = torch.exp(module.log_delta)[:, None] * module.A / 2
    C = torch.complex(*module.C.chunk(2, -1)) if module.is_complex else module.C
    assert module.is_complex or bool(((1 + half) / (1 - half) < 0).any())
    h, outputs = torch.zeros(2, *module.A.shape, dtype=module.A.dtype), []
    for u_t in u.unbind(1):
        h = ((1 + half) * h + torch.exp(module.log_delta)[:, None] * u_t[..., None]) / (1 - half)
        y = (C * h).sum(-1)
        outputs.append((2 * y.real if module.is_complex else y) + module.D * u_t)
    got, state = module(u, None, None)
    assert distance(got, torch.stack(outputs, 1)) < TOLERANCE[F64]
    assert distance(state, h) < TOLERANCE[F64]


def test_s4_in_float32_agrees_with_its_recurrence_over_a_long_sequence():
    module = operator(S4, "s4", d_state=64).float()
    u = draws(1, 4128, D).float()
    want, _ = module.double()(u.double(), None, None)
    got, state = module.float()(u[:, :4127], None, None)
    last, _ = module(u[:, 4127:], state, None)
    assert distance(torch.cat([got, last], 1), want) < 2e-5


def test_s4_starts_from_the_matrices_of_s4d():
    n, N = torch.arange(3, dtype=F64), 6
    want = {
        "s4d-lin": -0.5 + 1j * math.pi * n,
        "s4d-inv": -0.5 + 1j * N / math.pi * (N / (2 * n + 1) - 1),
        "s4d-real": -torch.arange(1, 7, dtype=F64),
    }
    for init, A in want.items():
        assert distance(s4(init).A, A.expand(D, -1)) < 1e-6
    delta = torch.exp(s4("s4d-lin").log_delta)
    assert bool(((delta >= 0.05 - 1e-6) & (delta <= 1 + 1e-6)).all())


@pytest.mark.parametrize("init", S4_INITS)
def test_the_kernel_of_s4_is_its_response_to_an_impulse(init):
    module, impulse = s4(init), F.pad(torch.ones(1, 1, D, dtype=F64), (0, 0, 0, 69))
    response = module(impulse, None, None)[0][0].mT
    response[:, 0] -= module.D
    assert distance(module.kernel(70), response) < TOLERANCE[F64]


def test_the_filter_of_hyena_does_not_depend_on_how_far_it_is_asked():
    module = operator(Hyena, "h3-hyena", filter_length=16, filter_features=7, filter_width=8)
    assert torch.equal(module.kernel(16), module.kernel(100)[:, :16])
    assert bool(module.kernel(100).isfinite().all())


def test_the_window_of_hyena_reaches_a_hundredth_from_0_3_to_1_5_of_its_length():
    module = operator(Hyena, "h3-hyena", filter_length=1000, filter_features=7, filter_width=8)
    with torch.no_grad():
        # A network whose output is 1 everywhere.
        for parameter in module.layers.parameters():
            parameter.fill_(0 if parameter.dim() == 2 else math.pi / 2)
        module.frequency.fill_(1)
        module.readout.weight.fill_(1 / 8)
    kernel = module.kernel(2000).detach()
    assert float(kernel[0, 300]) == pytest.approx(0.01)
    assert float(kernel[-1, 1500]) == pytest.approx(0.01)
    assert bool((kernel.diff() < 0).all())


def test_h3_is_its_equation():
    """q · S4(shift(k) · v), the shift a filter over the last three keys."""
    block = H3(config("h3-s4", d_conv=3, d_state=4))
    block.initialise(config("h3-s4", d_conv=3, d_state=4), torch.Generator().manual_seed(0))
    block = block.double()
    x = draws(2, 9, D)
    q, k, v = block.in_proj(x).chunk(3, -1)
    taps = block.shift.weight[:, 0]
    shifted = sum(taps[:, 2 - j] * F.pad(k, (0, 0, j, 0))[:, :9] for j in range(3))
    want = block.out_proj(q * block.operator(shifted * v, None, None)[0])
    assert distance(block(x, None, None, None)[0], want) < TOLERANCE[F64]


def test_attention_is_the_softmax_of_products_with_the_past():
    c = config("attention", d_model=8, n_head=2, positions="sinusoidal")
    block = Attention(c)
    block.initialise(c, torch.Generator().manual_seed(0))
    block = block.double()
    x = draws(2, 6, 8)
    q, k, v = (part.reshape(2, 6, 2, 4).transpose(1, 2) for part in block.in_proj(x).chunk(3, -1))
    scores = q @ k.mT / 2
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    want = block.out_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 8))
    assert distance(block(x, None, None, None)[0], want) < TOLERANCE[F64]


@pytest.mark.parametrize("decays", [False, True])
def test_turned_products_depend_on_the_distance_alone(decays):
    q, k = (draws(1, 1, 1, 8, seed=s).expand(1, 1, 40, 8) for s in (0, 1))
    products = torch.matmul(*_mT(*placed(q, k, decays=decays)))[0, 0]
    for distance_apart in (0, 3, 17):
        along = products.diagonal(-distance_apart)
        assert torch.allclose(along, along[0].expand_as(along), rtol=1e-10)


def _mT(q, k):
    return q, k.mT


def test_rotary_turns_the_first_pair_by_one_radian_a_position():
    q = torch.zeros(1, 1, 9, 4, dtype=F64)
    q[..., 0] = 1
    turned, _ = placed(q, q, decays=False)
    angle = torch.arange(9, dtype=F64) - 4
    assert torch.allclose(turned[0, 0, :, 0], angle.cos())
    assert torch.allclose(turned[0, 0, :, 2], angle.sin())


def test_xpos_decays_by_zeta_to_the_distance_over_512():
    """With all of q and k in pair i, q·k = ζ_i^(distance / 512) cos(distance θ_i) (arXiv:2212.10554, section 2)."""
    for i in (0, 3):
        q = torch.zeros(1, 1, 1025, 8, dtype=F64)
        q[..., i] = 1
        turned, other = placed(q, q, decays=True)
        zeta, theta = (2 * i / 8 + 0.4) / 1.4, 10000 ** (-2 * i / 8)
        for apart in (1, 512, 1024):
            product = (turned[0, 0, 1024] * other[0, 0, 1024 - apart]).sum()
            assert float(product) == pytest.approx(zeta ** (apart / 512) * math.cos(apart * theta))


def test_xpos_stays_finite_to_its_last_position():
    q = torch.ones(1, 1, 2**16, 4)
    for scaled in placed(q, q, decays=True):
        assert bool(scaled.isfinite().all())
        assert bool((scaled.abs().amax(-1) > 0).all())


def test_absolute_positions_are_added_to_what_is_read():
    learnt = LearntPositions(config("attention", d_model=8, n_head=2, positions="absolute", max_length=12))
    learnt.initialise(torch.Generator().manual_seed(0))
    x = torch.zeros(2, 7, 8)
    assert torch.equal(learnt(x), learnt.weight[:7].expand(2, 7, 8))
    fixed = SinusoidalPositions()(x)[0] / (0.02 * math.sqrt(2))
    assert torch.allclose(fixed[:, 0], torch.arange(7.0).sin(), atol=1e-6)
    assert torch.allclose(fixed[:, 4], torch.arange(7.0).cos(), atol=1e-6)


def test_the_selective_ssm_with_one_state_is_a_gated_rnn():
    """Theorem 1: n = 1, A = -1, B = 1, Δ = softplus(Linear(x)), ZOH."""
    rnn, x = GatedRNN(D).double(), draws(3, 40, D)
    A, ones = -torch.ones(D, 1, dtype=F64), torch.ones(3, 40, 1, dtype=F64)
    past = draws(3, D, seed=1)
    for state in (None, past):
        want, want_state = rnn(x, state)
        got, last = selective_scan(
            x, F.linear(x, rnn.gate.weight), A, ones, ones, delta_bias=rnn.gate.bias, delta_softplus=True,
            discretisation="zoh", initial_state=None if state is None else state[..., None], return_final_state=True,
        )  # fmt: skip
        assert distance(got, want) < 1e-14
        assert distance(last[..., 0], want_state) < 1e-14


def test_euler_is_no_gated_rnn():
    """The control: the released discretisation does not satisfy the theorem."""
    rnn, x = GatedRNN(D).double(), draws(3, 40, D)
    A, ones = -torch.ones(D, 1, dtype=F64), torch.ones(D, 1, dtype=F64)
    got = selective_scan(x, rnn.gate(x), A, ones, ones, delta_softplus=True)
    assert distance(got, rnn(x)[0]) > 0.1
