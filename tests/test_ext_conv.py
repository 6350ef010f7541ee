"""The causal convolution: every backend against the definition, forward and backward, whole, packed and in chunks."""

from itertools import combinations
from random import Random

import pytest
import torch
import torch.nn.functional as F
from ext_cases import (
    LENGTHS,
    Case,
    amid_nan,
    assert_same,
    bare_conv,
    conv_case,
    conv_with,
    device_of,
    every_backend,
    expected_conv,
    repeated,
    separately,
    strange,
    threads,
    usable,
)

OPTIONAL = ("bias", "initial_state")
WIDTHS = (1, 2, 3, 4)
ACTIVATIONS = (None, "silu")


@every_backend
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("k", WIDTHS)
def test_backend_agrees_with_reference_at_any_length(backend, length, k):
    case = conv_case(length=length, k=k, activation="silu")
    assert_same(case.run(conv_with(usable(backend))), expected_conv(case), case.dtype)


@every_backend
@pytest.mark.parametrize("d", [1, 3, 37])
@pytest.mark.parametrize("without", [names for k in range(3) for names in combinations(OPTIONAL, k)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_option_may_be_left_out(backend, d, without, activation):
    case = conv_case(d=d, without=without, activation=activation)
    assert_same(case.run(conv_with(usable(backend))), expected_conv(case), case.dtype)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_agree(backend, dtype):
    case = conv_case(length=33, dtype=dtype, activation="silu")
    actual = case.run(conv_with(usable(backend)))
    assert_same(actual, expected_conv(case), dtype)
    assert all(tensor.dtype == dtype for tensor in actual.values())


@every_backend
def test_parameters_may_be_float32_beside_short_activations(backend):
    case = conv_case(length=33, dtype=torch.bfloat16, activation="silu")
    wide = {name: case.tensors[name].float() for name in ("weight", "bias")}
    case = Case({**case.tensors, **wide}, case.weights, case.options)
    actual = case.run(conv_with(usable(backend)))
    assert_same(actual, expected_conv(case), torch.bfloat16)
    assert (actual["dweight"].dtype, actual["dbias"].dtype) == (torch.float32, torch.float32)


@every_backend
@pytest.mark.parametrize("k", WIDTHS)
def test_it_is_the_depthwise_convolution_of_torch(backend, k):
    x, weight, bias, _ = conv_case(length=20, k=k, dtype=torch.float64).tensors.values()
    y, state = conv_with(usable(backend))(x, weight, bias)
    padded = F.pad(x.mT, (k - 1, 0))
    expected = {"y": F.conv1d(padded, weight[:, None], bias, groups=5).mT, "state": padded[:, :, 20:].mT}
    assert_same({"y": y, "state": state}, expected, torch.float64)


@every_backend
@pytest.mark.parametrize("bounds", [(0, 4, 4, 17, 18, 20, 33), (0, 33), (0, 0, 33, 33)], ids=str)
@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("without", [(), ("initial_state",)], ids=["state", "no state"])
def test_packed_equals_separate(backend, bounds, k, without):
    case = conv_case(b=1, length=33, k=k, bounds=bounds, without=without, activation="silu")
    op = conv_with(usable(backend))
    packed = case.run(op)
    assert_same(packed, separately(case, op), case.dtype)
    assert_same(packed, expected_conv(case), case.dtype)


@every_backend
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunked_equals_whole(backend, seed, dtype):
    length = 30
    case = conv_case(length=length, dtype=dtype, seed=seed, activation="silu")
    # The chunks' gradients are added up by torch, in the parameters' dtype.
    wide = {name: case.tensors[name].float() for name in ("weight", "bias")}
    case = Case({**case.tensors, **wide}, case.weights, case.options)
    cuts = sorted({0, 1, 2, 4, length, *Random(seed).sample(range(length), 5)})

    def in_chunks(x, weight, bias, initial_state, **options):
        state, outputs = initial_state, []
        for at in map(slice, cuts, cuts[1:]):
            y, state = conv_with(backend.name)(x[:, at], weight, bias, initial_state=state, **options)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    op = conv_with(usable(backend))
    assert_same(case.run(in_chunks), case.run(op), dtype)


@every_backend
@pytest.mark.parametrize(("b", "length"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_to_filter_returns_a_copy_of_the_state(backend, b, length):
    case = conv_case(b=b, length=length)
    actual = case.run(conv_with(usable(backend)))
    assert actual["y"].shape == (b, length, 5)
    assert actual["final_state"].equal(case.tensors["initial_state"])
    assert actual["dinitial_state"].equal(case.weights[1])
    assert not actual["dweight"].any()
    there = case.on(device_of(backend.name)).tensors
    _, state = bare_conv(backend.name)(**there)
    assert b == 0 or state.data_ptr() != there["initial_state"].data_ptr()


@every_backend
@pytest.mark.parametrize("bounds", [(0,), (0, 0, 0), (0, 3, 3)])
def test_an_empty_sequence_keeps_its_state(backend, bounds):
    case = conv_case(b=1, length=bounds[-1], bounds=bounds)
    final_state = case.run(conv_with(usable(backend)))["final_state"]
    assert final_state.shape == (len(bounds) - 1, 3, 5)
    assert final_state[1:].equal(case.tensors["initial_state"][1:])


@every_backend
@pytest.mark.parametrize("laid", [strange, repeated, amid_nan])
def test_any_strides_are_taken_as_they_are(backend, laid):
    case = conv_case(length=37, activation="silu")
    case = Case({name: laid(tensor) for name, tensor in case.tensors.items()}, case.weights, case.options)
    assert not case.tensors["x"].is_contiguous()
    assert_same(case.run(conv_with(usable(backend))), expected_conv(case), case.dtype)


@every_backend
@pytest.mark.parametrize("laid", [strange, repeated])
def test_strided_gradients_are_taken_as_they_are(backend, laid):
    case = conv_case(length=37, activation="silu")
    case = Case(case.tensors, (laid(case.weights[0]), laid(case.weights[1])), case.options)
    leaf = case.tensors["x"].clone().requires_grad_()
    outputs = conv_with(usable(backend))(**{**case.tensors, "x": leaf}, **case.options)
    (dx,) = torch.autograd.grad(outputs, leaf, case.weights)
    assert_same({"dx": dx}, {"dx": expected_conv(case)["dx"]}, case.dtype)


@every_backend
@pytest.mark.parametrize("bounds", [None, (0, 2, 2, 6)], ids=["whole", "packed"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(backend, bounds, activation):
    case = conv_case(b=1, length=6, d=2, k=3, dtype=torch.float64, bounds=bounds, activation=activation)
    op = conv_with(usable(backend))
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]
    with threads(1):
        assert torch.autograd.gradcheck(
            lambda *t: op(**dict(zip(case.tensors, t, strict=True)), **case.options), leaves
        )


@every_backend
@pytest.mark.parametrize("bounds", [None, (0, 50, 50, 130)], ids=["whole", "packed"])
def test_two_runs_and_any_number_of_threads_give_the_same_bits(backend, bounds):
    case = conv_case(b=1 if bounds else 3, length=130, d=37, bounds=bounds, activation="silu")
    op = conv_with(usable(backend))
    first = case.run(op)
    for count in (2, 1, 3):
        with threads(count):
            again = case.run(op)
        assert all(again[name].equal(first[name]) for name in first)


@every_backend
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 100.0, -100.0])
def test_extreme_numbers_come_out_as_from_the_definition(backend, bad):
    case = conv_case(length=37, d=21, activation="silu")
    case.tensors["x"][0, (5, 6, 36), (2, 20, 7)] = bad
    actual, expected = (case.run(conv_with(name)) for name in (usable(backend), "reference"))
    for name, tensor in actual.items():
        wanted, scale = expected[name], expected[name][expected[name].isfinite()].abs().max()
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6 * float(scale), equal_nan=True)
