"""The ops as torch sees them: schemas, fake kernels, autograd registration, and compilation as one graph."""

from functools import partial

import pytest
import torch
from ext_cases import (
    assert_same,
    bare_conv,
    bare_scan,
    conv_case,
    device_of,
    every_backend,
    on_device,
    scan_case,
    usable,
)
from mambalab.ext import step_
from test_ext_step import mixer, states, stepped

pytestmark = pytest.mark.usefixtures("unchecked")

OPS = torch.ops.mambalab
SCANS = {
    "everything": {"n": 3},
    "bare": {"without": ("D", "z", "delta_bias", "initial_state"), "selective": ""},
    "packed": {"b": 1, "bounds": (0, 4, 4, 9), "discretisation": "zoh"},
    "short": {"dtype": torch.bfloat16},
    "complex": {"complex_names": ("A", "B", "C")},
}
CONVS = {
    "everything": {"k": 3, "activation": "silu"},
    "bare": {"without": ("bias", "initial_state")},
    "packed": {"b": 1, "bounds": (0, 4, 4, 9)},
    "no width": {"k": 1},
}


@pytest.fixture(autouse=True)
def forget_compiled_graphs():
    torch.compiler.reset()


def scan_on(backend, settings):
    """The backend's name, its scan, and a case on its device."""
    name = usable(backend, complex_A="complex_names" in settings)
    return name, bare_scan(name), scan_case(**settings).on(device_of(name))


def conv_on(backend, settings):
    """The backend's name, its convolution, and a case on its device."""
    name = usable(backend)
    return name, bare_conv(name), conv_case(**settings).on(device_of(name))


def scan_arguments(backend, case):
    options = case.options
    settings = options.get("cu_seqlens"), options["delta_softplus"], options.get("discretisation", "euler")
    return *case.tensors.values(), *settings, backend


def conv_arguments(backend, case):
    return *case.tensors.values(), case.options.get("cu_seqlens"), case.options.get("activation") or "", backend


def step_on(device, given, x):
    """The mixer, x and the two states, on a device."""
    there = {name: None if tensor is None else on_device(tensor, device) for name, tensor in given.items()}
    x, conv_state, scan_state = (on_device(tensor, device) for tensor in (x, *states(given, len(x))))
    return there, x, conv_state, scan_state


def leaves(arguments):
    return tuple(argument.clone().requires_grad_() if differentiable(argument) else argument for argument in arguments)


def differentiable(argument):
    return isinstance(argument, torch.Tensor) and (argument.is_floating_point() or argument.is_complex())


@every_backend
@pytest.mark.parametrize("settings", SCANS.values(), ids=SCANS.keys())
def test_scan_is_a_well_formed_op(backend, settings):
    name, _, case = scan_on(backend, settings)
    arguments = scan_arguments(name, case)
    for keep in (False, True) if backend.scan_keeping else (False,):
        torch.library.opcheck(OPS.selective_scan.default, (*leaves(arguments), keep))
        states = OPS.selective_scan(*arguments, keep)[2] if keep else None
        torch.library.opcheck(OPS.selective_scan_backward.default, (*case.weights, *arguments, states))


@every_backend
@pytest.mark.parametrize("settings", CONVS.values(), ids=CONVS.keys())
def test_convolution_is_a_well_formed_op(backend, settings):
    name, _, case = conv_on(backend, settings)
    arguments = conv_arguments(name, case)
    torch.library.opcheck(OPS.causal_conv1d.default, leaves(arguments))
    torch.library.opcheck(OPS.causal_conv1d_backward.default, (*case.weights, *arguments))


@every_backend
@pytest.mark.parametrize("selective", ["", "ΔBC"])
def test_step_is_a_well_formed_op(backend, selective):
    name = usable(backend)
    given, x, conv_state, scan_state = step_on(device_of(name), mixer(torch.float32, selective), torch.ones(2, 5))
    B, C = given.pop("B"), given.pop("C")
    arguments = (x, x, *given.values(), conv_state, scan_state, B, C, "silu", True, "euler", name)
    torch.library.opcheck(OPS.step_.default, arguments)


@every_backend
@pytest.mark.parametrize("settings", SCANS.values(), ids=SCANS.keys())
def test_scan_compiles_as_one_graph(backend, settings):
    _, op, case = scan_on(backend, settings)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same(case.run(compiled), case.run(op), case.dtype)


@every_backend
@pytest.mark.parametrize("settings", CONVS.values(), ids=CONVS.keys())
def test_convolution_compiles_as_one_graph(backend, settings):
    _, op, case = conv_on(backend, settings)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same(case.run(compiled), case.run(op), case.dtype)


@every_backend
def test_steps_compile_as_one_graph(backend):
    name = usable(backend)
    step = partial(step_, backend=name)
    given, x, conv_state, scan_state = step_on(device_of(name), mixer(torch.float32), torch.randn(2, 2, 5))
    compiled = torch.compile(partial(stepped, step), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        actual = compiled(given, x, x, conv_state, scan_state)
        assert_same(actual, stepped(step, given, x, x, conv_state, scan_state), x.dtype)


@every_backend
def test_one_compiled_graph_serves_every_length(backend):
    cases = [scan_on(backend, {"length": length, "without": ("initial_state",)}) for length in (6, 9, 17)]
    op = cases[0][1]
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=counting)
    with torch.no_grad():
        for _, _, case in cases:
            y, _ = compiled(**case.tensors)
            assert_same({"y": y}, {"y": op(**case.tensors)[0]}, case.dtype)
    assert len(graphs) == 1


def test_a_second_derivative_is_refused():
    x = torch.ones(1, 3, 2, requires_grad=True)
    y, _ = bare_conv("reference")(x, torch.ones(2, 2), activation="silu")
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        dx.sum().backward()
