"""The step: token by token it is the forward, states included, in every combination of static and selective."""

import pytest
import torch
import torch.nn.functional as F
from ext_cases import (
    SELECTIVE,
    Draw,
    assert_same,
    conv_with,
    device_of,
    every_backend,
    scan_with,
    step_with,
    strange,
    usable,
)
from mambalab.ext import reference, step_


def mixer(dtype, selective="ΔBC", *, k=4, d=5, n=4, r=2, complex_A=False):
    """The tensors of one mixer for `step_`, apart from x, z and the states."""
    draw, wide = Draw(0), reference.accumulation_dtype(dtype)
    A = -draw(d, n, dtype=wide).abs() - 0.1
    A = torch.complex(A, draw(d, n, dtype=wide)) if complex_A else A
    rows = r * ("Δ" in selective) + n * ("B" in selective) + n * ("C" in selective)
    return {
        "conv_weight": draw(d, k, dtype=dtype),
        "conv_bias": draw(d, dtype=dtype),
        "x_proj": draw(rows, d, dtype=dtype),
        "dt_proj": draw(d, r, dtype=dtype) if "Δ" in selective else None,
        "A": A,
        "D": draw(d, dtype=wide),
        "delta_bias": draw(d, dtype=wide),
        "B": None if "B" in selective else draw(d, n, dtype=A.dtype),
        "C": None if "C" in selective else draw(d, n, dtype=A.dtype),
    }


def states(mixer, b):
    """Normal numbers for both states."""
    draw, (d, k), n = Draw(1), mixer["conv_weight"].shape, mixer["A"].shape[1]
    return draw(b, k - 1, d, dtype=mixer["conv_weight"].dtype), draw(b, d, n, dtype=mixer["A"].dtype)


def forward(backend, mixer, x, z, conv_state, scan_state, discretisation="euler"):
    """The same mixer over a whole sequence (b l d), as a model computes it."""
    n, dt_proj = mixer["A"].shape[1], mixer["dt_proj"]
    mixed, conv_state = conv_with(backend)(
        x, mixer["conv_weight"], mixer["conv_bias"], activation="silu", initial_state=conv_state
    )
    widths = [0 if dt_proj is None else dt_proj.shape[1], *(n * (mixer[name] is None) for name in "BC")]
    low, B, C = F.linear(mixed, mixer["x_proj"]).split(widths, -1)
    y, scan_state = scan_with(backend)(
        mixed,
        torch.zeros_like(mixed) if dt_proj is None else F.linear(low, dt_proj),
        mixer["A"],
        B if mixer["B"] is None else mixer["B"],
        C if mixer["C"] is None else mixer["C"],
        mixer["D"],
        z,
        mixer["delta_bias"],
        delta_softplus=True,
        discretisation=discretisation,
        initial_state=scan_state,
    )
    return {"y": y, "conv_state": conv_state, "scan_state": scan_state}


def stepped(step, mixer, x, z, conv_state, scan_state, discretisation="euler"):
    """The same, one token after the other."""
    advanced = {"conv_state": conv_state.clone(), "scan_state": scan_state.clone()}
    outputs = [
        step(x[:, t], None if z is None else z[:, t], **mixer, **advanced, discretisation=discretisation)
        for t in range(x.shape[1])
    ]
    return {"y": torch.stack(outputs, 1), **advanced}


@every_backend
@pytest.mark.parametrize("selective", SELECTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_step_equals_forward(backend, selective, dtype):
    given, draw = mixer(dtype, selective), Draw(2)
    x, z = draw(2, 9, 5, dtype=dtype), draw(2, 9, 5, dtype=dtype)
    expected = forward(usable(backend), given, x, z, *states(given, 2))
    assert_same(stepped(step_with(backend.name), given, x, z, *states(given, 2)), expected, dtype)


@every_backend
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 3, 16, 17])
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_step_equals_forward_at_any_width(backend, k, n, discretisation):
    given, draw = mixer(torch.float32, k=k, d=19, n=n), Draw(2)
    x = draw(3, 5, 19, dtype=torch.float32)
    expected = forward(usable(backend), given, x, None, *states(given, 3), discretisation)
    assert_same(stepped(step_with(backend.name), given, x, None, *states(given, 3), discretisation), expected, x.dtype)


@every_backend
@pytest.mark.parametrize("selective", ["", "ΔBC"])
def test_step_equals_forward_with_complex_dynamics(backend, selective):
    given, draw = mixer(torch.float32, selective, complex_A=True), Draw(2)
    x = draw(2, 5, 5, dtype=torch.float32)
    expected = forward(usable(backend, complex_A=True), given, x, x, *states(given, 2))
    assert_same(stepped(step_with(backend.name), given, x, x, *states(given, 2)), expected, x.dtype)


@every_backend
@pytest.mark.parametrize("without", ["conv_bias", "D", "delta_bias"])
def test_every_option_may_be_left_out(backend, without):
    given, x = mixer(torch.float32) | {without: None}, Draw(2)(2, 5, 5, dtype=torch.float32)
    expected = forward(usable(backend), given, x, x, *states(given, 2))
    assert_same(stepped(step_with(backend.name), given, x, x, *states(given, 2)), expected, x.dtype)


@every_backend
def test_states_are_advanced_in_place_whatever_their_strides(backend):
    given, x = mixer(torch.float32), Draw(2)(2, 1, 5, dtype=torch.float32)
    expected = forward(usable(backend), given, x, x, *states(given, 2))
    laid = dict(zip(("conv_state", "scan_state"), map(strange, states(given, 2)), strict=True))
    y = step_with(backend.name)(strange(x[:, 0]), strange(x[:, 0]), **given, **laid)
    assert_same({"y": y[:, None], **laid}, expected, x.dtype)


@every_backend
def test_a_batch_of_none_is_stepped(backend):
    given, x = mixer(torch.float32), torch.zeros(0, 5)
    conv_state, scan_state = states(given, 0)
    y = step_with(usable(backend))(x, x, **given, conv_state=conv_state, scan_state=scan_state)
    assert y.shape == (0, 5)


@every_backend
def test_autocast_around_the_step_changes_nothing(backend):
    given, x = mixer(torch.float32), Draw(2)(2, 3, 5, dtype=torch.float32)
    expected = stepped(step_with(usable(backend)), given, x, x, *states(given, 2))
    with torch.autocast(device_of(backend.name), dtype=torch.bfloat16):
        actual = stepped(step_with(backend.name), given, x, x, *states(given, 2))
    assert all(actual[name].equal(expected[name]) for name in expected)


def test_a_step_that_would_need_a_gradient_is_refused():
    given, x = mixer(torch.float32), torch.zeros(2, 5, requires_grad=True)
    conv_state, scan_state = states(given, 2)
    with pytest.raises(ValueError, match=r"call it under torch.no_grad\(\)"):
        step_(x, None, **given, conv_state=conv_state, scan_state=scan_state)


@every_backend
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_parameters_may_ask_for_gradients_where_none_are_taken(backend, mode):
    given, x = mixer(torch.float32), Draw(2)(2, 3, 5, dtype=torch.float32)
    expected = stepped(step_with(usable(backend)), given, x, x, *states(given, 2))
    parameters = {name: None if tensor is None else tensor.requires_grad_() for name, tensor in given.items()}
    with mode():
        assert_same(stepped(step_with(backend.name), parameters, x, x, *states(given, 2)), expected, x.dtype)
