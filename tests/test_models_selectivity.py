"""Every subset of {Δ, B, C} and every A is one function in chunks and steps, with the parameters it should have."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from mambalab.models import Mamba, checkpoint
from mambalab.models.long_conv import causal_convolution
from mambalab.models.mamba import MambaMixer
from mambalab.models.registry import A_INITS, MambaConfig
from models_cases import TOLERANCE, assert_same_states, distance, tiny, tokens

FLAGS = ("selective_delta", "selective_B", "selective_C")
SUBSETS = [dict(zip(FLAGS, subset, strict=True)) for subset in product((True, False), repeat=3)]
STATIC = dict.fromkeys(FLAGS, False)
RELEASED = [-2.210902, -2.0184, -200.571567]
SETTINGS = [
    *SUBSETS,
    *({"A_init": init} for init in A_INITS[1:]),
    *({"A_init": "complex"} | subset for subset in SUBSETS[1:]),
    {"discretisation": "zoh", "dt_rank": 1, "d_state": 1},
    {"discretisation": "zoh", "A_init": "complex"} | STATIC,
]


def named(settings):
    return " ".join(f"{name.removeprefix('selective_')}={value}" for name, value in settings.items())


def one_layer(**settings):
    return tiny(n_layer=1, **settings)


def in_steps(model, ids):
    state = model.empty_state(len(ids))
    return torch.stack([model.step(column, state) for column in ids.unbind(1)], 1), state


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_chunks_and_steps_equal_one_forward(settings):
    model, ids = one_layer(**settings).double(), tokens(2, 9)
    want, want_state = model(ids)
    first, state = model(ids[:, :4])
    second, state = model(ids[:, 4:], state=state)
    stepped, stepped_state = in_steps(model, ids)
    assert distance(torch.cat([first, second], 1), want) < TOLERANCE[torch.float64]
    assert distance(stepped, want) < TOLERANCE[torch.float64]
    assert_same_states(state, want_state, TOLERANCE[torch.float64])
    assert_same_states(stepped_state, want_state, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [STATIC, {"A_init": "complex"}], ids=named)
def test_steps_equal_one_forward_in_narrower_types(settings, dtype):
    model, ids = one_layer(**settings).to(dtype), tokens(2, 9)
    want, want_state = model(ids)
    stepped, state = in_steps(model, ids)
    assert distance(stepped, want) < TOLERANCE[dtype]
    assert_same_states(state, want_state, TOLERANCE[dtype])


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_the_reference_gives_the_same(settings):
    model, ids = one_layer(**settings).double(), tokens(2, 5)
    got, _ = model(ids)
    model.backend = "reference"
    assert distance(got, model(ids)[0]) < TOLERANCE[torch.float64]
    assert distance(in_steps(model, ids)[0], got) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_the_closed_form_counts_the_parameters(settings):
    config = replace(MambaConfig(d_model=24, n_layer=3, vocab_size=61, d_state=5), **settings)
    model = Mamba(config, seed=None)
    assert config.n_parameters == sum(p.numel() for p in model.parameters())


def test_a_static_tensor_takes_the_place_of_its_projection():
    """Tables 9 and 10 have as many parameters with static B and C as with selective ones, but for the projection."""
    d, n, r = 48, 5, 2
    counts = {
        (): d * r + d * r + 2 * (n * d),
        ("selective_delta",): 2 * (n * d),
        ("selective_B",): d * r + d * r + 2 * (n * d),
        ("selective_delta", "selective_B", "selective_C"): 2 * (d * n),
    }
    for off, projections in counts.items():
        config = replace(MambaConfig(d_model=24, n_layer=1, vocab_size=8, d_state=n), **dict.fromkeys(off, False))
        assert config.selective_parameters(d) == projections + d + d * n + d


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_gradients_reach_every_parameter(settings):
    model, ids = one_layer(**settings), tokens(2, 6)
    logits, _ = model(ids)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_static_delta_is_one_number_a_channel_whatever_the_input():
    mixer = tiny(selective_delta=False).layers[0].mixer
    _, delta, B, C = mixer.select(torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0)))
    assert delta.stride() == (0, 0, 0)
    assert (B.shape, C.shape) == ((2, 7, 5), (2, 7, 5))
    *_, B, C = tiny(selective_B=False, selective_C=False).layers[0].mixer.select(torch.ones(2, 7, 48))
    assert (B.shape, C.shape) == ((48, 5), (48, 5))


@pytest.mark.parametrize(
    ("A_init", "want"),
    [
        ("-(n+1)", [-1, -2, -3, -4]),
        ("-1/2", [-0.5] * 4),
        ("complex", [-0.5, -0.5 + 1j, -0.5 + 2j, -0.5 + 3j]),
    ],
)
def test_A_starts_as_table_8_has_it(A_init, want):
    mixer = Mamba(MambaConfig(d_model=16, n_layer=1, vocab_size=8, d_state=4, A_init=A_init)).layers[0].mixer
    assert torch.allclose(mixer.A.detach(), torch.tensor(want, dtype=mixer.A.dtype).expand(32, 4))


def test_a_random_A_is_log_normal_and_negative():
    mixer = Mamba(MambaConfig(d_model=64, n_layer=1, vocab_size=8, A_init="random")).layers[0].mixer
    logs = torch.log(-mixer.A.detach())
    assert abs(float(logs.mean())) < 0.1
    assert abs(float(logs.std()) - 1) < 0.1


@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
@pytest.mark.parametrize("A_init", A_INITS)
def test_a_fully_static_block_is_a_causal_convolution(A_init, discretisation):
    """Time-invariant, so that y = kernel * u + D u with kernel_k = C·Ā^k·B̄ (Mamba, eq. 3)."""
    config = MambaConfig(
        d_model=8, n_layer=1, vocab_size=8, d_state=3, A_init=A_init, discretisation=discretisation, **STATIC
    )
    mixer = MambaMixer(config)
    mixer.initialise(config, torch.Generator().manual_seed(0))
    mixer = mixer.double()
    u = torch.randn(2, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got, _ = mixer.scan(u, None, None, None, None)
    *_, B, C = mixer.select(u)
    delta = F.softplus(mixer.dt_proj.bias)[:, None]
    decay = torch.exp(delta * mixer.A)
    written = delta * B if discretisation == "euler" else (decay - 1) / mixer.A * B
    powers = torch.stack([decay**k for k in range(11)])
    kernel = (powers * C * written).sum(-1).mT
    kernel = 2 * kernel.real if config.is_complex else kernel
    direct = sum(kernel[:, k] * F.pad(u, (0, 0, k, 0))[:, :11] for k in range(11))
    assert distance(got - mixer.D * u, direct) < TOLERANCE[torch.float64]
    assert distance(causal_convolution(u, kernel), direct) < TOLERANCE[torch.float64]


def test_the_released_draws_stay_as_they_were():
    """Sums over parameters of a default model, as of version 0.1 of this package."""
    state = Mamba(MambaConfig(d_model=24, n_layer=2, vocab_size=61), seed=5).state_dict()
    name = "backbone.layers.1.mixer."
    sums = [float(state[name + end].double().sum()) for end in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias")]
    assert sums == pytest.approx(RELEASED, rel=1e-5)


@pytest.mark.parametrize("layout", ["mamba_ssm", "hf"])
@pytest.mark.parametrize("settings", [{"selective_B": False}, {"A_init": "-1/2"}], ids=named)
def test_a_published_layout_refuses_what_it_cannot_say(layout, settings, tmp_path):
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))} = .* cannot be saved: the {layout} layout has no"):
        checkpoint.save(one_layer(**settings), tmp_path, layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selective_B": "no"}, "selective_B must be true or false, not 'no'"),
        ({"A_init": "S4D"}, r"A_init must be one of -\(n\+1\), -1/2, random, complex, not 'S4D'"),
        ({"A_init": ["complex"]}, r"A_init must be one of .*, not \['complex'\]"),
        ({"dt_rank": 0}, "dt_rank must be a positive integer, not 0"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_model_is_refused(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        MambaConfig(**{"d_model": 16, "n_layer": 1, "vocab_size": 8, **changes})
