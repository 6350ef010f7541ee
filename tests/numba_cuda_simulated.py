"""The numba-cuda backend in numba's CUDA simulator, on CPU tensors: run by test_ext_numba_cuda in a process of its own.

The simulator runs a Python thread a CUDA thread, so shapes are small; it has to be on before numba.cuda is imported.
"""

import sys
from dataclasses import replace

import numpy
import pytest
import torch
from ext_cases import (
    SELECTIVE,
    TOLERANCE,
    Case,
    Draw,
    amid_nan,
    assert_same,
    bare_conv,
    bare_scan,
    conv_case,
    expected_conv,
    expected_scan,
    repeated,
    scan_case,
    strange,
)
from mambalab.ext import backends, numba_cuda_segments, reference, rms_norm, self_test, step_
from mambalab.ext.numba_cuda_arrays import SIMULATED, one_more_than
from mambalab.ext.numba_cuda_math import elements
from mambalab.ext.numba_cuda_plan import Plan
from numba.cuda.simulator.kernelapi import FakeCUDAShared
from numba.np.numpy_support import as_dtype
from test_ext_step import mixer, states

NAME = "numba-cuda-simulated"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PACKED = {"b": 1, "length": 12, "bounds": (0, 3, 3, 10, 12)}
SCAN, CONV = bare_scan(NAME), bare_conv(NAME)


@pytest.fixture(scope="module", autouse=True)
def simulated_row():
    """The row on the CPU, trusted without its self-test, which takes half a minute here."""
    assert SIMULATED
    row, before, interval = simulated(), backends.BACKENDS, sys.getswitchinterval()
    backends.BACKENDS = (*before, row)
    backends._verdicts[row, torch.device("cpu")] = None
    # The simulator waits for its threads in a loop that holds the interpreter's lock.
    sys.setswitchinterval(1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCUDAShared, "array", shared_array)
        yield
    backends.BACKENDS = before
    sys.setswitchinterval(interval)


def simulated():
    """The row of numba-cuda, as one of the CPU."""
    (row,) = (row for row in backends.BACKENDS if row.name == "numba-cuda")
    return replace(row, name=NAME, device="cpu")


def shared_array(self, shape, dtype):
    """As the simulator's own, which hands two threads that ask at the same moment two arrays; NaN at first."""
    caller = sys._getframe(1)
    return self._allocations.setdefault((caller.f_code, caller.f_lineno), numpy.full(shape, numpy.nan, as_dtype(dtype)))


@pytest.mark.parametrize("selective", SELECTIVE)
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_all_static_and_selective_combinations_agree(selective, discretisation):
    case = scan_case(length=5, d=3, n=5, selective=selective, discretisation=discretisation)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


@pytest.mark.parametrize("n", [1, 3, 16, 17, 64])
def test_scan_agrees_at_any_number_of_states(n):
    case = scan_case(b=1, length=3, d=1, n=n)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


@pytest.mark.parametrize("d", [1, 3, 37])
def test_scan_agrees_at_any_number_of_channels(d):
    case = scan_case(b=1, length=3, d=d, n=3)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


@pytest.mark.parametrize("length", [1, 33, 65, 131])
def test_scan_agrees_across_tiles_and_kept_states(length):
    case = scan_case(b=1, length=length, d=2, n=2)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


@pytest.mark.parametrize("without", ["D", "z", "delta_bias", "initial_state"])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_every_option_may_be_left_out(without, delta_softplus):
    case = scan_case(b=1, length=4, d=3, without=(without,), delta_softplus=delta_softplus)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("selective", ["ΔBC", ""])
def test_every_dtype_agrees(dtype, selective):
    case = scan_case(length=9, d=3, dtype=dtype, selective=selective)
    actual = case.run(SCAN)
    assert_same(actual, expected_scan(case), dtype)
    assert (actual["y"].dtype, actual["final_state"].dtype) == (dtype, reference.accumulation_dtype(dtype))
    assert all(actual[f"d{name}"].dtype == tensor.dtype for name, tensor in case.tensors.items())


@pytest.mark.parametrize("complex_names", [("A",), ("A", "B"), ("A", "C"), ("A", "B", "C")], ids="".join)
@pytest.mark.parametrize("selective", ["ΔBC", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_complex_dynamics_agree(complex_names, selective, dtype, discretisation):
    case = scan_case(
        complex_names=complex_names, selective=selective, dtype=dtype, discretisation=discretisation, length=4, d=2, n=2
    )
    assert_same(case.run(SCAN), expected_scan(case), dtype)


@pytest.mark.parametrize("value", [0.0, -1e-8, -1e-4, -30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zoh_is_right_where_its_quotient_cancels(value, dtype):
    case = scan_case(dtype=dtype, length=4, d=3, discretisation="zoh")
    case.tensors["A"].fill_(value)
    assert_same(case.run(SCAN), expected_scan(case), dtype)


@pytest.mark.parametrize("selective", ["ΔBC", ""])
@pytest.mark.parametrize("without", [(), ("initial_state", "z")], ids=["all", "bare"])
def test_packed_sequences_agree(selective, without):
    case = scan_case(d=3, selective=selective, without=without, **PACKED)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


def test_many_packed_sequences_keep_their_states_apart():
    case = scan_case(b=1, length=140, d=1, n=1, bounds=(0, 64, 130, 131, 131, 140))
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


@pytest.mark.parametrize(("b", "length"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_to_scan_returns_a_copy_of_the_state(b, length):
    case = scan_case(b=b, length=length)
    actual = case.run(SCAN)
    assert actual["final_state"].equal(case.tensors["initial_state"])
    assert actual["dinitial_state"].equal(case.weights[1])
    assert all(not grad.any() for name, grad in actual.items() if name[0] == "d" and name != "dinitial_state")


@pytest.mark.parametrize("laid", [strange, repeated, amid_nan])
def test_any_strides_are_taken_as_they_are(laid):
    case = scan_case(length=7, d=3, n=5)
    case = Case({name: laid(tensor) for name, tensor in case.tensors.items()}, case.weights, case.options)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


def test_chunked_equals_whole():
    case = scan_case(b=1, length=20, d=3)

    def in_chunks(u, delta, A, B, C, D, z, delta_bias, initial_state, **options):
        state, outputs = initial_state, []
        for at in (slice(0, 1), slice(1, 13), slice(13, 20)):
            y, state = SCAN(
                u[:, at], delta[:, at], A, B[:, at], C[:, at], D, z[:, at], delta_bias, initial_state=state, **options
            )
            outputs.append(y)
        return torch.cat(outputs, 1), state

    assert_same(case.run(in_chunks), case.run(SCAN), case.dtype)


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of some 32 steps, as many as there may be."""
    monkeypatch.setattr(numba_cuda_segments, "LEAST", 32)


@pytest.mark.parametrize("length", [96, 97, 130])
@pytest.mark.parametrize("without", [(), ("initial_state", "z")], ids=["all", "bare"])
@pytest.mark.parametrize("selective", ["ΔBC", ""])
def test_segments_change_nothing(short_segments, length, without, selective):
    case = scan_case(b=2, length=length, d=2, n=2, without=without, selective=selective)
    assert_same(case.run(SCAN), expected_scan(case), case.dtype)


def test_the_self_test_s_long_sequence_is_cut():
    answers = self_test.long_scan(simulated(), self_test._normal(torch.device("cpu"), torch.float32))
    expected = self_test._expected(self_test.long_scan)
    assert max(map(self_test._relative_error, answers, expected)) <= self_test.TOLERANCE
    u = torch.zeros(1, 400, 3)
    plan = Plan(dtype=u.dtype, is_complex=False, n=2, room=4, selective_B=True, selective_C=True, zoh=False)
    assert numba_cuda_segments.cut(plan, u, None) == (3, 160)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_segments_change_nothing_with_complex_dynamics(short_segments, dtype):
    case = scan_case(length=100, d=2, n=2, complex_names=("A", "B", "C"), dtype=dtype, discretisation="zoh")
    assert_same(case.run(SCAN), expected_scan(case), dtype)


# As a GPU would do it without a word.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_state_of_nothing_stays_nothing_in_segments_that_would_blow_it_up(short_segments):
    case = scan_case(b=1, length=96, d=1, n=1, without=("initial_state", "delta_bias"), delta_softplus=False)
    case.tensors["delta"] = torch.full((1, 96, 1), 5.0)
    case.tensors["A"] = torch.ones(1, 1)
    case.tensors["u"] = torch.zeros(1, 96, 1)
    y, final_state = SCAN(**case.tensors, **case.options)
    assert not y.any()
    assert not final_state.any()


def test_two_runs_give_the_same_bits():
    cases = (scan_case(length=9, d=3, n=6), SCAN), (conv_case(length=70), CONV)
    for case, op in cases:
        first, again = case.run(op), case.run(op)
        assert all(again[name].equal(first[name]) for name in first)


@pytest.mark.parametrize("selective", ["", "ΔBC"])
@pytest.mark.parametrize("complex_A", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_agrees_with_reference(selective, complex_A, dtype):
    given, draw = mixer(dtype, selective, complex_A=complex_A), Draw(2)
    x, z = draw(2, 5, dtype=dtype), draw(2, 5, dtype=dtype)
    results: list[dict[str, torch.Tensor]] = []
    for name in (NAME, "reference"):
        conv_state, scan_state = (strange(state) for state in states(given, 2))
        y = step_(x, z, **given, conv_state=conv_state, scan_state=scan_state, backend=name)
        results.append({"y": y, "conv_state": conv_state, "scan_state": scan_state})
    assert_same(results[0], results[1], dtype)


@pytest.mark.parametrize("k", [1, 2, 4, 7])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("without", [(), ("bias", "initial_state")], ids=["all", "bare"])
def test_conv_agrees(k, activation, without):
    case = conv_case(k=k, length=5, activation=activation, without=without)
    assert_same(case.run(CONV), expected_conv(case), case.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("laid", [strange, amid_nan])
def test_conv_agrees_in_every_dtype_with_any_strides(dtype, laid):
    case = conv_case(length=70, d=3, dtype=dtype, activation="silu")
    case = Case({name: laid(tensor) for name, tensor in case.tensors.items()}, case.weights, case.options)
    assert_same(case.run(CONV), expected_conv(case), dtype)


@pytest.mark.parametrize("bounds", [(0, 4, 4, 17, 18, 20, 90), (0, 90), (0, 0, 90, 90), (0, 64, 90)], ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_packed_conv_agrees(bounds, k):
    case = conv_case(b=1, length=90, d=3, k=k, bounds=bounds, activation="silu")
    assert_same(case.run(CONV), expected_conv(case), case.dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (5, 19), (0, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_agrees(shape, dtype):
    draw = Draw(0)
    x, weight, dy = (draw(*size, dtype=dtype) for size in (shape, shape[-1:], shape))
    x.requires_grad_()
    weight.requires_grad_()
    results = []
    for name in (NAME, "reference"):
        y = rms_norm(x, weight, epsilon=1e-3, backend=name)
        results.append([y.detach(), *torch.autograd.grad(y, (x, weight), dy)])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() <= TOLERANCE[dtype] * (other.double().norm() + 0.1)


def test_bfloat16_is_rounded_as_torch_rounds_it():
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.3895e38, 1e-40, 1.00390625, 1.01171875])
    numbers = torch.cat([special, Draw(0)(200, dtype=torch.float32) * 1e3])
    widen, narrow = (element.fn for element in elements(torch.bfloat16))
    bits = torch.tensor([int(narrow(x)) for x in numbers.numpy()], dtype=torch.int16)
    assert bits.equal(numbers.bfloat16().view(torch.int16))
    assert torch.tensor([float(widen(x)) for x in bits.numpy()]).equal(numbers.bfloat16().float())
    quiet = torch.tensor([0x7F800001, -0x7FFFFF, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert torch.tensor([float(widen(narrow(x))) for x in quiet.numpy()]).isnan().all()


def test_the_probe_counts_to_two():
    assert one_more_than(1, torch.device("cpu")) == 2


def test_gradients_with_complex_dynamics_are_the_same_in_a_compiled_graph():
    case = scan_case(b=1, length=3, d=2, n=2, complex_names=("A", "B", "C"))
    backward = torch.ops.mambalab.selective_scan_backward
    given = (*case.weights, *case.tensors.values(), None, True, "euler", NAME, None)
    torch.library.opcheck(backward.default, given, test_utils=("test_aot_dispatch_dynamic",))
