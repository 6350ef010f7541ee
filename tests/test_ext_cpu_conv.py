"""What is special to the convolution's CPU kernels: how work is parted, bits, sums, edges of lanes and compilation."""

from typing import Any

import pytest
import torch
from ext_cases import Case, amid_nan, assert_same, conv_case, conv_with, expected_conv, threads

pytest.importorskip("numba", reason="the CPU kernels are compiled by Numba")
from mambalab.ext import cpu_conv, cpu_conv_kernels

conv = conv_with("cpu")
PACKED = (0, 1, 1, 3, 6, 6, 10, 29, 31, 70)
WIDTHS = (1, 2, 3, 4, 5, 9, 40)


@pytest.fixture
def fine(monkeypatch):
    """Ranges of a step or a few, slabs of twice the lanes, and a thread for each that may have one."""
    monkeypatch.setattr(cpu_conv, "GRAIN", 1)
    monkeypatch.setattr(cpu_conv, "SHARE", 1)
    monkeypatch.setattr(cpu_conv, "SLAB", 32)


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("bounds", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_ranges_and_slabs_may_end_anywhere(fine, k, bounds, activation):
    for d in (7, 32, 100):
        case = conv_case(
            b=1 if bounds else 3, length=70 if bounds else 23, d=d, k=k, bounds=bounds, activation=activation
        )
        assert_same(case.run(conv), expected_conv(case), case.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_parted_likewise(fine, dtype):
    case = conv_case(b=1, length=70, d=37, dtype=dtype, bounds=PACKED, activation="silu")
    assert_same(case.run(conv), expected_conv(case), dtype)


@pytest.mark.parametrize("shape", [{"b": 1, "length": 9000, "d": 130}, {"b": 9, "length": 300, "d": 560}], ids=str)
def test_the_number_of_threads_and_the_run_change_no_bit(shape):
    case, results = conv_case(**shape, activation="silu"), []
    for count in (1, 2, 3, 3):
        with threads(count):
            results.append(case.run(conv))
    for other in results[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in results[0].items())


@pytest.mark.parametrize("bounds", [None, PACKED], ids=["whole", "packed"])
def test_the_number_of_threads_changes_no_bit_of_small_parts(fine, bounds):
    case = conv_case(b=1 if bounds else 3, length=70, d=100, bounds=bounds, activation="silu")
    with threads(1):
        alone = case.run(conv)
    for count in (2, 3):
        with threads(count):
            together = case.run(conv)
        assert all(torch.equal(tensor, alone[name]) for name, tensor in together.items())


@pytest.mark.parametrize("k", WIDTHS)
def test_parting_changes_no_bit_of_the_outputs(k, request):
    case = conv_case(b=1, length=70, d=100, k=k, bounds=PACKED, activation="silu")
    whole = conv(**case.tensors, **case.options)
    request.getfixturevalue("fine")
    assert all(map(torch.equal, conv(**case.tensors, **case.options), whole))


def test_chunks_give_the_bits_of_the_whole():
    case = conv_case(b=2, length=100, d=37, activation="silu")
    y, final = conv(**case.tensors, **case.options)
    rows, state = [], case.tensors["initial_state"]
    for begin, end in ((0, 1), (1, 3), (3, 64), (64, 100)):
        part = {**case.tensors, "x": case.tensors["x"][:, begin:end], "initial_state": state}
        out, state = conv(**part, **case.options)
        rows.append(out)
    assert torch.equal(torch.cat(rows, 1), y)
    assert torch.equal(state, final)


@pytest.mark.parametrize("d", [5, 16, 37, 530])
def test_nothing_beyond_the_edges_of_a_tensor_is_read(d):
    case = conv_case(length=37, d=d, activation="silu")
    laid = Case({name: amid_nan(tensor) for name, tensor in case.tensors.items()}, case.weights, case.options)
    actual, expected = laid.run(conv), case.run(conv)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_nan_reaches_the_k_outputs_that_read_it():
    case = conv_case(b=1, length=80, d=40, k=4, activation="silu")
    case.tensors["x"][0, 50, 21] = torch.nan
    y, final = conv(**case.tensors, **case.options)
    assert y[0].isnan().nonzero().tolist() == [[t, 21] for t in range(50, 54)]
    assert not final.isnan().any()


def test_errors_of_sums_over_steps_do_not_grow_with_length():
    case = conv_case(b=1, length=200_000, d=16, activation="silu")
    actual, exact = case.run(conv), case.double().run(conv)
    errors = {name: float((tensor - exact[name]).norm() / exact[name].norm()) for name, tensor in actual.items()}
    assert max(errors.values()) < 8e-7, errors


def test_no_call_compiles_more_than_four_signatures():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        conv_case(dtype=dtype).run(conv)
    kernels: Any = cpu_conv_kernels.conv_forward, cpu_conv_kernels.conv_backward
    assert sum(len(kernel.signatures) for kernel in kernels) <= 4
    assert not any(kernel._can_compile for kernel in kernels)
