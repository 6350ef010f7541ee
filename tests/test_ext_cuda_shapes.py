"""The CUDA convolution, norm and step at the shapes for which their kernels are cut differently, emulated."""

from itertools import product
from types import SimpleNamespace

import cuda_emulator
import pytest
import torch
from cuda_emulated_row import EMULATED
from ext_cases import (
    Case,
    Draw,
    assert_same,
    conv_case,
    conv_with,
    expected_conv,
    norm_with,
    over,
    scan_case,
    step_with,
    strange,
    usable,
)
from mambalab.ext import cuda, cuda_conv, cuda_geometry, cuda_launch, cuda_norm, cuda_step, kept, reference, self_test
from test_ext_step import mixer, states

emulated = over([EMULATED])
SINGLE, DOUBLE, SHORT, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16

CONVS = {
    "several blocks of channels": {"b": 1, "length": 70, "d": 260},
    "short dtype read in fours": {"b": 1, "length": 70, "d": 132, "dtype": SHORT},
    "packed, read in fours": {"b": 1, "length": 70, "d": 12, "bounds": (0, 1, 1, 3, 40, 41, 70)},
    "runs of several lengths": {"b": 9, "length": 130, "d": 8},
    "three taps read in fours": {"length": 40, "d": 16, "k": 3},
    "more taps than are unrolled": {"length": 70, "d": 8, "k": 19},
    "more taps than steps": {"b": 1, "length": 20, "d": 5, "k": 19, "bounds": (0, 2, 2, 20)},
}


@emulated
@pytest.mark.parametrize("settings", CONVS.values(), ids=CONVS)
def test_the_convolution_is_right_however_it_is_cut(backend, settings):
    case = conv_case(activation="silu", **settings)
    assert_same(case.run(conv_with(usable(backend))), expected_conv(case), case.dtype)


@emulated
def test_the_convolution_gives_the_same_bits_in_fours_and_one_by_one(backend):
    case = conv_case(length=40, d=16, activation="silu")
    laid = Case({name: strange(tensor) for name, tensor in case.tensors.items()}, case.weights, case.options)
    op = conv_with(usable(backend))
    plain, apart = case.run(op), laid.run(op)
    assert all(apart[name].equal(plain[name]) for name in ("y", "final_state", "dx", "dinitial_state"))


@emulated
@pytest.mark.parametrize("columns", [4, 128, 1300, 2048, 9000])
@pytest.mark.parametrize(("x_dtype", "dtype"), [(SINGLE, SHORT), (SHORT, SHORT), (HALF, SINGLE), (SINGLE, DOUBLE)])
def test_the_norm_is_right_at_any_width_and_mix_of_dtypes(backend, columns, x_dtype, dtype):
    draw, norm = Draw(0), norm_with(usable(backend))
    x, weight, dy = draw(9, columns, dtype=x_dtype), draw(columns, dtype=dtype), draw(9, columns, dtype=dtype)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = norm(*leaves)
    actual = dict(enumerate((y.detach(), *torch.autograd.grad(y, leaves, dy))))
    wide = dy.double(), x.double(), weight.double()
    expected = dict(enumerate((reference.norm_forward(*wide[1:], 1e-5), *reference.norm_backward(*wide, 1e-5))))
    assert [tensor.dtype for tensor in actual.values()] == [dtype, x_dtype, dtype]
    coarsest = max((x_dtype, dtype), key=lambda one: torch.finfo(one).eps)
    for key, tensor in expected.items():
        assert tensor is not None
        assert_same({"found": actual[key]}, {"found": tensor}, coarsest)


def stepped(step, dtype, b, d, n, r, k):
    """y and both states after a token."""
    given, draw = mixer(dtype, d=d, n=n, r=r, k=k), Draw(2)
    # Sums over many channels, of the size that trained weights give them.
    given["x_proj"], given["dt_proj"] = given["x_proj"] / d**0.5, given["dt_proj"] / r**0.5
    conv_state, scan_state = states(given, b)
    x, z = draw(b, d, dtype=dtype), draw(b, d, dtype=dtype)
    y = step(x, z, **given, conv_state=conv_state, scan_state=scan_state)
    return {"y": y, "conv_state": conv_state, "scan_state": scan_state}


STEPS = {
    "read in fours": (SINGLE, 2, 256, 16, 16, 4),
    "short": (SHORT, 1, 256, 16, 16, 4),
    "several parts of the projection": (SINGLE, 8, 300, 16, 48, 4),
    "several fours a lane": (SHORT, 1, 2100, 4, 4, 4),
    "a rank not read in fours": (HALF, 3, 40, 20, 7, 2),
    "double": (DOUBLE, 2, 40, 16, 4, 4),
    "many rows": (SINGLE, cuda_step.FEW + 1, 64, 16, 4, 4),
    "more taps than a block moves": (SINGLE, 2, 40, 16, 4, 7),
    "a large rank": (SINGLE, 1, 24, 16, 500, 4),
}


@emulated
@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_the_step_is_right_however_it_is_cut(backend, shape):
    actual = stepped(step_with(usable(backend)), *shape)
    assert_same(actual, stepped(step_with("reference"), *shape), shape[0])


@emulated
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda name: conv_case(**CONVS["packed, read in fours"]).run(conv_with(name)), id="conv"),
        pytest.param(lambda name: {"y": norm_with(name)(torch.ones(5, 1300), torch.ones(1300))}, id="norm"),
        *(pytest.param(lambda name, key=key: stepped(step_with(name), *STEPS[key]), id=key) for key in list(STEPS)[:3]),
    ],
)
def test_every_order_gives_the_same_bits(backend, run):
    first, *others = [in_order(order, run, usable(backend)) for order in cuda_emulator.ORDERS]
    assert all(other[key].equal(first[key]) for other in others for key in first)


def in_order(order, run, name):
    with cuda_emulator.order(*order):
        return run(name)


class _Recorder:
    """Stands where the launcher does; notes what is asked for and runs nothing."""

    def __init__(self):
        self.asked = set()

    def kernel(self, device, source, name, defines):
        self.asked.add((source, name, defines))
        return self

    def launch(self, blocks, threads, shared, words):
        assert 1 <= threads <= 1024
        assert all(isinstance(word, int) for word in words)


@pytest.fixture
def recorder(monkeypatch):
    recorder = _Recorder()
    monkeypatch.setattr(cuda_launch, "kernel", recorder.kernel)
    monkeypatch.setattr(cuda_launch, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(cuda_launch, "shared_memory", lambda device: 227 * 1024)
    return recorder


AHEAD = {tuple(row) for module in (cuda, cuda_conv, cuda_norm, cuda_step) for row in module.variants()}


def test_what_the_self_test_asks_is_compiled_ahead_of_time(recorder):
    row = SimpleNamespace(
        scan_forward=cuda.scan_forward,
        scan_backward=cuda.scan_backward,
        scan_keeping=cuda.scan_keeping,
        conv_forward=cuda_conv.conv_forward,
        conv_backward=cuda_conv.conv_backward,
        norm_forward=cuda_norm.norm_forward,
        norm_backward=cuda_norm.norm_backward,
        step=cuda_step.step,
    )
    for question in (*self_test.QUESTIONS, self_test.long_scan):
        question(row, lambda *shape: torch.zeros(shape))
    assert recorder.asked
    assert recorder.asked <= AHEAD


@pytest.mark.parametrize("dtype", [SINGLE, SHORT, HALF], ids=str)
@pytest.mark.parametrize("m", [768, 1024, 1536, 2048, 2560])
@pytest.mark.parametrize("rows", [1, 64])
def test_what_a_released_model_asks_is_compiled_ahead_of_time(recorder, dtype, m, rows):
    d, n, r, k = 2 * m, 16, m // 16, 4
    u, z = torch.zeros(rows, 2 * d, dtype=dtype).chunk(2, -1)
    state, weight = torch.zeros(rows, k - 1, d, dtype=dtype), torch.zeros(d, k, dtype=dtype)
    bias, A, D = torch.zeros(d, dtype=dtype), torch.zeros(d, n), torch.zeros(d)
    projections = torch.zeros(r + 2 * n, d, dtype=dtype), torch.zeros(d, r, dtype=dtype)
    cuda_step.step(
        u, z, weight, bias, *projections, A, D, D, state, torch.zeros(rows, d, n), None, None, "silu", True, "euler"
    )
    for bounds in (None, torch.tensor([0, rows], dtype=torch.int32)):
        given = u[None], weight, bias, state[:1], bounds, "silu"
        cuda_conv.conv_forward(*given)
        cuda_conv.conv_backward(u[None], state[:1], *given)
    low = torch.zeros(1, rows, -(-r // 8) * 8 + 2 * n, dtype=dtype)
    inner = torch.zeros(1, rows, d, dtype=dtype)
    for gate in (z[None], None):
        given = inner, inner, A, low[..., -2 * n : -n], low[..., -n:], D, gate, D, None, None, True, "euler"
        cuda.scan_forward(*given)
        y, final, states = cuda.scan_keeping(*given)
        cuda.scan_backward(y, final, *given, states)
    residual, scale = torch.zeros(rows, m), torch.zeros(m, dtype=dtype)
    cuda_norm.norm_forward(residual, scale, 1e-5)
    cuda_norm.norm_backward(residual.to(dtype), residual, scale, 1e-5)
    assert recorder.asked <= AHEAD


@pytest.mark.parametrize("room", [99, 163, 227])
@pytest.mark.parametrize("dtype", [SHORT, HALF, SINGLE, torch.float64], ids=str)
def test_every_block_has_room_in_the_shared_memory(dtype, room):
    flags = ("zoh", "softplus", "gated", "static_B", "static_C")
    for n in range(1, cuda_geometry.most_states(dtype, room * 1024) + 1):
        for values in product((False, True), repeat=len(flags)):
            kind = cuda_geometry.Kind(dtype=dtype, n=n, aligned=True, **dict(zip(flags, values, strict=True)))
            forward = cuda_geometry.forward_geometry(kind)
            assert forward.shared <= room * 1024, kind
            for lanes in (1, 2) if n <= 16 and not kind.wide else (1,):
                backward = cuda_geometry.backward_geometry(kind, lanes=lanes)
                rows = sum(1 if static else kept.CHECKPOINT for static in (kind.static_B, kind.static_C))
                tile = kind.real * (3 * kept.CHECKPOINT * backward.channels + rows * backward.padded)
                assert backward.shared + tile <= room * 1024, kind


FULL = {"zoh": False, "softplus": True, "gated": True, "static_B": False, "static_C": False, "aligned": True}
H200 = 132  # multiprocessors


@pytest.mark.parametrize(
    ("b", "d", "length", "n", "dtype", "lanes", "pieces"),
    [
        (8, 1536, 2048, 16, SHORT, 2, 2),
        (8, 5120, 2048, 16, SHORT, 2, 1),
        (8, 1536, 2048, 64, SHORT, 1, 1),
        (64, 128, 4096, 16, SINGLE, 2, 3),
        (1, 128, 2**20, 16, SINGLE, 2, 198),
        (1, 16, 64, 16, SINGLE, 1, 1),
    ],
)
def test_the_backward_pass_is_cut_as_was_quickest_on_an_h200(b, d, length, n, dtype, lanes, pieces):
    kind, work = (
        cuda_geometry.Kind(dtype=dtype, n=n, **FULL),
        cuda_geometry.Work(sequences=b, length=length, channels=d),
    )
    geometry, found = cuda_geometry.backward_plan(kind, work, H200)
    assert (geometry.lanes, found) == (lanes, pieces)


@emulated
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 40, 70])
def test_gradients_are_the_same_whether_states_were_kept_or_not(backend, n):
    usable(backend)
    case = scan_case(2, 90, n=n)
    dy, dstate = case.weights
    given = *case.tensors.values(), None, True, "euler"
    y, final_state, states = backend.scan_keeping(*given)
    assert states.shape == kept.shape(y, case.tensors["A"], None)
    plain = backend.scan_forward(*given)
    assert y.equal(plain[0])
    assert final_state.equal(plain[1])
    grads = backend.scan_backward(dy, dstate, *given), backend.scan_backward(dy, dstate, *given, states)
    assert all(late.equal(early) for late, early in zip(*grads, strict=True))
