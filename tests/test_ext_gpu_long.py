"""Sizes that only a GPU has room for: millions of tokens in chunks, and offsets beyond 2^31 elements."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from ext_cases import ROWS, TOLERANCE, bare_conv, bare_scan, conv_case, over, scan_case, usable
from mambalab.ext import rms_norm, step_
from mambalab.ext.backends import keeps
from test_ext_gpu import assert_same_bits
from test_ext_step import mixer, states

every_gpu = over(row for row in ROWS if row.device == "cuda")

OPS = torch.ops.mambalab
# Elements between neighbours along the first axis longer than one: 260 of them pass 2^31.
GAP = 2**23
FAR = 260
# More than 2^31 of them make a tensor.
LONG, WIDE = 2**21 + 64, 1024


@pytest.fixture(autouse=True)
def room():
    """The tests here take up to 100 GiB, which is given back after each."""
    if torch.cuda.is_available() and (free := torch.cuda.mem_get_info()[0] / 2**30) < 100:
        pytest.skip(f"needs 100 GiB of GPU memory, {free:.0f} are free")
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def scan_tensors(length, d, n, dtype=torch.float32, seed=0):
    """A scan with Δ near 0.05 and decays from slow to fast, drawn on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype, device="cuda")

    uniform = torch.rand(d, n, generator=generator, device="cuda")
    rows = {"u": draw(1, length, d), "delta": draw(1, length, d).mul_(0.5), "z": draw(1, length, d)}
    matrices = {"B": draw(1, length, n), "C": draw(1, length, n)}
    bias = torch.linspace(-4, -2, d, device="cuda")
    return rows | matrices | {"A": -16 * uniform - 0.1, "D": uniform[:, 0] + 0.5, "delta_bias": bias}


def part(tensors, begin, end):
    """Those steps of everything that has steps."""
    return {name: tensor[:, begin:end] if tensor.dim() == 3 else tensor for name, tensor in tensors.items()}


def in_chunks(name, tensors, chunk):
    """y, and the final state, of a scan whose state is carried from chunk to chunk."""
    length, outputs, state = tensors["u"].shape[1], [], None
    for begin in range(0, length, chunk):
        given = part(tensors, begin, begin + chunk)
        y, state = bare_scan(name)(**given, delta_softplus=True, initial_state=state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def distance(actual, expected):
    """Relative, by the norm of the whole, in float64; in pieces, for the tensors are large."""
    pieces = zip(actual.flatten().split(2**28), expected.flatten().split(2**28), strict=True)
    sums = [((a.double() - e.double()).square().sum().item(), e.double().square().sum().item()) for a, e in pieces]
    return math.sqrt(sum(error for error, _ in sums) / sum(scale for _, scale in sums))


@every_gpu
def test_a_million_tokens_in_chunks_are_those_in_one_shot(backend):
    name, tensors = usable(backend), scan_tensors(2**20, 128, 16)
    y, state = bare_scan(name)(**tensors, delta_softplus=True)
    for chunk in (2**16, 100_003):
        y_chunked, state_chunked = in_chunks(name, tensors, chunk)
        assert distance(y_chunked, y) < 2e-6
        assert distance(state_chunked, state) < 2e-6


@every_gpu
def test_sixteen_million_tokens_run_in_chunks_in_the_memory_of_one(backend):
    name, chunk, peaks = usable(backend), 2**19, []
    tensors = scan_tensors(chunk, 128, 16)
    fixed = {key: tensors.pop(key) for key in ("A", "D", "delta_bias")}
    state = torch.zeros(1, 128, 16, device="cuda")
    for seed in range(2**24 // chunk):
        generator = torch.Generator("cuda").manual_seed(seed)
        for tensor in tensors.values():
            tensor.normal_(generator=generator)
        torch.cuda.reset_peak_memory_stats()
        y, state = bare_scan(name)(**tensors, **fixed, delta_softplus=True, initial_state=state)
        assert y.isfinite().all()
        assert y.abs().amax() > 0
        del y
        peaks.append(torch.cuda.max_memory_allocated())
    assert state.isfinite().all()
    assert len(set(peaks[1:])) == 1


def test_far_apart_means_beyond_32_bits():
    assert GAP * (FAR - 1) > 2**31
    assert LONG * WIDE > 2**31


def far_apart(tensors, axis):
    """The same tensors, all in one piece of memory in which neighbours along `axis` lie GAP elements apart."""
    memory = torch.empty(FAR * GAP, device="cuda")
    moved, begin = {}, 0
    for name, tensor in tensors.items():
        strides = list(tensor[:1].contiguous().stride() if axis == 0 else tensor[:, :1].contiguous().stride())
        strides[axis] = GAP
        moved[name] = memory.as_strided(tensor.shape, strides, begin)
        moved[name].copy_(tensor)
        begin += tensor.numel() // tensor.shape[axis]
    assert begin <= GAP
    return moved


@every_gpu
@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "length"])
def test_a_scan_reads_tensors_of_any_extent(backend, axis):
    name = usable(backend)
    b, length = (FAR, 3) if axis == 0 else (1, FAR)
    case = scan_case(b, length, d=32, n=16).on("cuda")
    dy, dstate = case.weights
    along = {key: case.tensors[key] for key in ("u", "delta", "B", "C", "z")} | {"dy": dy}
    if axis == 0:
        along |= {"initial_state": case.tensors["initial_state"], "dfinal_state": dstate}
    near = case.tensors | {"dy": dy, "dfinal_state": dstate}
    given = [run_scan(name, inputs) for inputs in (near, near | far_apart(along, axis))]
    assert_same_bits(*given)


def run_scan(name, tensors):
    """Forward and backward, of tensors that are handed to the op as they are."""
    inputs = dict(tensors)
    above = inputs.pop("dy"), inputs.pop("dfinal_state")
    given = (*inputs.values(), None, True, "euler", name)
    y, final_state, states = OPS.selective_scan(*given, keeps("cuda", name, False))
    outputs = y, final_state, *OPS.selective_scan_backward(*above, *given, states if states.numel() else None)
    return {str(place): tensor for place, tensor in enumerate(outputs)} | {"y": outputs[0]}


@every_gpu
@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "length"])
def test_a_convolution_reads_tensors_of_any_extent(backend, axis):
    name = usable(backend)
    b, length = (FAR, 5) if axis == 0 else (1, FAR)
    case = conv_case(b, length, d=32).on("cuda")
    x, weight, bias, state = case.tensors.values()
    far = far_apart({"x": x, "dy": case.weights[0]}, axis)
    results = []
    for given, dy in ((x, case.weights[0]), (far["x"], far["dy"])):
        arguments = (given, weight, bias, state, None, "silu", name)
        outputs = (*OPS.causal_conv1d(*arguments), *OPS.causal_conv1d_backward(dy, case.weights[1], *arguments))
        results.append({str(place): tensor for place, tensor in enumerate(outputs)})
    assert_same_bits(*results)


@every_gpu
def test_a_norm_reads_tensors_of_any_extent(backend):
    name = usable(backend)
    x, dy, weight = (
        torch.randn(FAR, 64, device="cuda"),
        torch.randn(FAR, 64, device="cuda"),
        torch.rand(64, device="cuda"),
    )
    far = far_apart({"x": x, "dy": dy}, 0)
    results = []
    for given, above in ((x, dy), (far["x"], far["dy"])):
        dx, dweight = OPS.rms_norm_backward(above, given, weight, 1e-5, name)
        results.append({"y": OPS.rms_norm(given, weight, 1e-5, name), "dx": dx, "dweight": dweight})
    assert_same_bits(*results)


@every_gpu
def test_a_step_writes_states_of_any_extent(backend):
    name = usable(backend)
    given: dict[str, Any] = {
        key: None if t is None else t.cuda() for key, t in mixer(torch.float32, d=32, n=16).items()
    }
    conv_state, scan_state = (state.cuda() for state in states(given, FAR))
    x = torch.randn(FAR, 32, device="cuda")
    near = {"x": x, "z": x.flip(0), "conv_state": conv_state, "scan_state": scan_state}
    far = far_apart(near, 0)
    results = []
    with torch.no_grad():
        for tensors in (near, far):
            y = step_(**tensors, **given, backend=name)
            results.append({"y": y, "conv_state": tensors["conv_state"], "scan_state": tensors["scan_state"]})
    assert_same_bits(*results)


@every_gpu
def test_a_scan_of_more_than_2_31_elements_is_that_of_its_halves(backend):
    name = usable(backend)
    tensors = scan_tensors(LONG, WIDE, 4, torch.float16)
    with torch.no_grad():
        y, state = bare_scan(name)(**tensors, delta_softplus=True)
        carried = None
        for begin, end in pairwise((0, LONG // 2, LONG)):
            half, carried = bare_scan(name)(**part(tensors, begin, end), delta_softplus=True, initial_state=carried)
            assert distance(half, y[:, begin:end]) < TOLERANCE[torch.float16]
        assert carried is not None
        assert distance(carried, state) < TOLERANCE[torch.float32]


@every_gpu
def test_a_gradient_of_more_than_2_31_elements_is_that_of_its_halves(backend):
    name = usable(backend)
    tensors = scan_tensors(LONG, WIDE, 4, torch.float16)
    dy = tensors["u"].flip(1)
    dstate = torch.ones(1, WIDE, 4, device="cuda")
    halves = [(0, LONG // 2), (LONG // 2, LONG)]
    with torch.no_grad():
        _, middle = bare_scan(name)(**part(tensors, *halves[0]), delta_softplus=True)
        whole = gradients(name, tensors, dy, dstate, None)
        for (begin, end), start in zip(reversed(halves), (middle, torch.zeros_like(middle)), strict=True):
            *found, dstate = gradients(name, part(tensors, begin, end), dy[:, begin:end], dstate, start)
            for place, grad in enumerate(found):
                assert distance(grad, whole[place][:, begin:end]) < TOLERANCE[torch.float16], place


def gradients(name, tensors, dy, dstate, start):
    """Of u, delta, B, C, z and, where there is one, the initial state."""
    keys = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    grads = OPS.selective_scan_backward(dy, dstate, *map(tensors.get, keys), start, None, True, "euler", name, None)
    kept = {0, 1, 3, 4, 6, 8}
    return [grad for place, grad in enumerate(grads) if place in kept]


@every_gpu
def test_a_convolution_of_more_than_2_31_elements_is_that_of_its_halves(backend):
    name = usable(backend)
    x = torch.randn(1, LONG, WIDE, dtype=torch.float16, device="cuda")
    weight, bias = torch.randn(WIDE, 4, device="cuda").half(), torch.randn(WIDE, device="cuda").half()
    dy, dstate = x.flip(1), torch.zeros(1, 3, WIDE, dtype=torch.float16, device="cuda")
    y, state = bare_conv(name)(x, weight, bias)
    dx = OPS.causal_conv1d_backward(dy, dstate, x, weight, bias, None, None, "", name)[0]
    carried = None
    for begin, end in pairwise((0, LONG // 2, LONG)):
        half, carried = bare_conv(name)(x[:, begin:end], weight, bias, initial_state=carried)
        assert distance(half, y[:, begin:end]) < TOLERANCE[torch.float16]
    assert carried is not None
    assert torch.equal(carried, state)
    last = OPS.causal_conv1d_backward(
        dy[:, LONG // 2 :], dstate, x[:, LONG // 2 :], weight, bias, x[:, LONG // 2 - 3 : LONG // 2], None, "", name
    )[0]
    assert distance(last, dx[:, LONG // 2 :]) < TOLERANCE[torch.float16]


@every_gpu
def test_a_norm_of_more_than_2_31_elements_is_that_of_its_halves(backend):
    name = usable(backend)
    x, weight = torch.randn(LONG, WIDE, dtype=torch.float16, device="cuda"), torch.rand(WIDE, device="cuda").half()
    y, (dx, _) = rms_norm(x, weight, backend=name), OPS.rms_norm_backward(x, x, weight, 1e-5, name)
    for rows in (slice(0, LONG // 2), slice(LONG // 2, LONG)):
        assert distance(rms_norm(x[rows], weight, backend=name), y[rows]) < TOLERANCE[torch.float16]
        half, _ = OPS.rms_norm_backward(x[rows], x[rows], weight, 1e-5, name)
        assert distance(half, dx[rows]) < TOLERANCE[torch.float16]
