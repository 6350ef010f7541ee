"""The ops as torch sees them: schemas, fake kernels, autograd registration, and compilation as one graph."""

import pytest
import torch
from ext_cases import assert_same, conv_case, conv_with, every_backend, scan_case, scan_with, usable
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


def scan_arguments(backend, case):
    options = case.options
    settings = options.get("cu_seqlens"), options["delta_softplus"], options.get("discretisation", "euler")
    return *case.tensors.values(), *settings, backend


def conv_arguments(backend, case):
    return *case.tensors.values(), case.options.get("cu_seqlens"), case.options.get("activation") or "", backend


def leaves(arguments):
    return tuple(argument.clone().requires_grad_() if differentiable(argument) else argument for argument in arguments)


def differentiable(argument):
    return isinstance(argument, torch.Tensor) and (argument.is_floating_point() or argument.is_complex())


@every_backend
@pytest.mark.parametrize("settings", SCANS.values(), ids=SCANS.keys())
def test_scan_is_a_well_formed_op(backend, settings):
    case = scan_case(**settings)
    arguments = scan_arguments(usable(backend), case)
    torch.library.opcheck(OPS.selective_scan.default, leaves(arguments))
    torch.library.opcheck(OPS.selective_scan_backward.default, (*case.weights, *arguments))


@every_backend
@pytest.mark.parametrize("settings", CONVS.values(), ids=CONVS.keys())
def test_convolution_is_a_well_formed_op(backend, settings):
    case = conv_case(**settings)
    arguments = conv_arguments(usable(backend), case)
    torch.library.opcheck(OPS.causal_conv1d.default, leaves(arguments))
    torch.library.opcheck(OPS.causal_conv1d_backward.default, (*case.weights, *arguments))


@every_backend
@pytest.mark.parametrize("selective", ["", "ΔBC"])
def test_step_is_a_well_formed_op(backend, selective):
    given, x = mixer(torch.float32, selective), torch.ones(2, 5)
    B, C = given.pop("B"), given.pop("C")
    arguments = (x, x, *given.values(), *states(given, 2), B, C, "silu", True, "euler", usable(backend))
    torch.library.opcheck(OPS.step_.default, arguments)


@every_backend
@pytest.mark.parametrize("settings", SCANS.values(), ids=SCANS.keys())
def test_scan_compiles_as_one_graph(backend, settings):
    case = scan_case(**settings)
    op = scan_with(usable(backend))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same(case.run(compiled), case.run(op), case.dtype)


@every_backend
@pytest.mark.parametrize("settings", CONVS.values(), ids=CONVS.keys())
def test_convolution_compiles_as_one_graph(backend, settings):
    case = conv_case(**settings)
    op = conv_with(usable(backend))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same(case.run(compiled), case.run(op), case.dtype)


@every_backend
def test_steps_compile_as_one_graph(backend):
    given, x, name = mixer(torch.float32), torch.randn(2, 2, 5), usable(backend)
    compiled = torch.compile(stepped, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        actual = compiled(name, given, x, x, *states(given, 2))
        assert_same(actual, stepped(name, given, x, x, *states(given, 2)), x.dtype)


@every_backend
def test_one_compiled_graph_serves_every_length(backend):
    op = scan_with(usable(backend))
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=counting)
    with torch.no_grad():
        for length in (6, 9, 17):
            case = scan_case(length=length, without=("initial_state",))
            y, _ = compiled(**case.tensors)
            assert_same({"y": y}, {"y": op(**case.tensors)[0]}, case.dtype)
    assert len(graphs) == 1


def test_a_second_derivative_is_refused():
    x = torch.ones(1, 3, 2, requires_grad=True)
    y, _ = conv_with("reference")(x, torch.ones(2, 2), activation="silu")
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        dx.sum().backward()
