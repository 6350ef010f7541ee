"""What only a GPU can show of the ops: the same bits every time, graphs, streams, a second GPU, fresh memory."""

import logging
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from ext_cases import (
    ROWS,
    Draw,
    assert_same,
    bare_conv,
    bare_scan,
    conv_case,
    expected_scan,
    fill_free_memory,
    on_device,
    over,
    scan_case,
    usable,
)
from mambalab.ext import backends, rms_norm, step_
from test_ext_norm import drawn, results
from test_ext_step import mixer, states, stepped

every_gpu = over(row for row in ROWS if row.device == "cuda")
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"needs two GPUs, here are {torch.cuda.device_count()}"
)


def scan_call(**settings):
    """A function of a backend's name and a device: a scan's tensors, and the call that reads them, both ways."""

    def make(name, device="cuda"):
        case = scan_case(**settings).on(device)
        return case.tensors, lambda: case.run(bare_scan(name))

    return make


def conv_call(**settings):
    def make(name, device="cuda"):
        case = conv_case(**settings).on(device)
        return case.tensors, lambda: case.run(bare_conv(name))

    return make


def norm_call(rows, columns):
    def make(name, device="cuda"):
        x, weight, dy = drawn(rows, columns), drawn(columns, seed=1), drawn(rows, columns, seed=2)
        there = {"x": x.to(device), "weight": weight.to(device), "dy": dy.to(device)}
        keys = ("y", "dx", "dweight")
        return there, lambda: dict(zip(keys, results(partial(rms_norm, backend=name), **there), strict=True))

    return make


def step_call(rows):
    def make(name, device="cuda"):
        given: dict[str, Any] = mixer(torch.float32, d=64, n=16)
        x = Draw(2)(rows, 3, 64, dtype=torch.float32)
        kept = dict(zip(("conv_state", "scan_state"), states(given, rows), strict=True))
        there = {key: None if t is None else on_device(t, device) for key, t in (given | kept | {"x": x}).items()}

        def run():
            with torch.no_grad():
                inputs = {key: there[key] for key in given}
                x, conv_state, scan_state = (there[key] for key in ("x", *kept))
                return stepped(partial(step_, backend=name), inputs, x, x, conv_state, scan_state)

        return there, run

    return make


CALLS = {
    "scan": scan_call(length=300, d=37, n=16),
    "scan of many states": scan_call(length=70, d=40, n=64, discretisation="zoh"),
    "scan in bfloat16": scan_call(length=300, d=64, n=16, dtype=torch.bfloat16),
    "packed scan": scan_call(b=1, length=300, d=64, n=16, bounds=(0, 100, 100, 257, 300)),
    "scan cut along its length": scan_call(b=1, length=5000, d=40, n=16),
    "convolution": conv_call(length=300, d=37, activation="silu"),
    "packed convolution": conv_call(b=1, length=300, d=64, bounds=(0, 100, 100, 257, 300), dtype=torch.float16),
    "long convolution": conv_call(b=1, length=5000, d=64),
    "norm": norm_call(3000, 768),
    "steps of few rows": step_call(2),
    "steps of many rows": step_call(50),
}
every_call = pytest.mark.parametrize("make", CALLS.values(), ids=CALLS.keys())


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor.cpu(), expected[name].cpu()), name


@every_gpu
@every_call
def test_twenty_repetitions_give_the_same_bits(backend, make):
    _, run = make(usable(backend))
    first = run()
    for repetition in range(19):
        fill_free_memory("cuda", (torch.nan, 1e30, -1.0)[repetition % 3])
        assert_same_bits(run(), first)


@every_gpu
@every_call
def test_fresh_memory_is_never_read(backend, make):
    _, run = make(usable(backend))
    expected = run()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # What torch's own products say of themselves in this mode, in which fresh memory is NaN.
            warnings.simplefilter("ignore")
            actual = run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(actual, expected)


@every_gpu
@every_call
def test_a_captured_call_replays_as_it_would_run(backend, make):
    tensors, run = make(usable(backend))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    before = {name: tensor.clone() for name, tensor in captured.items()}
    for _ in range(2):
        for tensor in tensors.values():
            if tensor is not None:
                tensor.mul_(0.75)
        graph.replay()
        assert_same_bits(captured, run())
    assert not torch.equal(captured["y"], before["y"])


@every_gpu
@every_call
def test_a_call_follows_the_current_stream(backend, make):
    tensors, run = make(usable(backend))
    expected = run()
    kept = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    for name in kept:
        tensors[name].zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        for name, tensor in kept.items():
            tensors[name].copy_(tensor)
        actual = run()
    side.synchronize()
    assert_same_bits(actual, expected)


@needs_two_gpus
@every_gpu
@every_call
def test_a_gpu_that_is_not_the_current_one_gives_the_same_bits(backend, make):
    name = usable(backend)
    torch.cuda.set_device(0)
    _, here = make(name, "cuda:0")
    _, there = make(name, "cuda:1")
    assert_same_bits(there(), here())
    assert torch.cuda.current_device() == 0


@every_gpu
def test_a_first_use_inside_a_capture_says_what_to_call_before(backend, monkeypatch):
    name = usable(backend)
    case = scan_case().on("cuda")
    tensors = {key: tensor.detach() for key, tensor in case.tensors.items()}
    backends.pick("cuda", name)
    monkeypatch.setattr(backends, "_picked", {})
    monkeypatch.setattr(backends, "_verdicts", {})
    counter = torch.zeros(1, device="cuda")

    def capture():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            counter.add_(1)
            bare_scan(name)(**tensors, **case.options)

    with pytest.raises(RuntimeError, match=r"call mambalab\.ext\.prepare\('cuda:0'\) before it"):
        capture()
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_complex_A_goes_to_a_backend_that_takes_it(caplog, monkeypatch):
    rows = [row for row in backends.BACKENDS if row.device == "cuda" and row.complex_A and not row.missing()]
    if not rows:
        pytest.skip("no GPU backend that takes a complex A can run here")
    monkeypatch.setattr(backends, "_picked", {})
    case = scan_case(complex_names=("A", "B"))
    with caplog.at_level(logging.INFO, "mambalab.ext"):
        actual = case.on("cuda").run(bare_scan(None))
    assert_same({name: tensor.cpu() for name, tensor in actual.items()}, expected_scan(case), case.dtype)
    assert f"backend {rows[0].name} on cuda:0 for a complex A" in caplog.text
