"""The selective scan: every backend against the definition, forward and backward, whole, packed and in chunks."""

from itertools import combinations
from random import Random

import jaxtyping
import pytest
import torch
from ext_cases import (
    LENGTHS,
    SELECTIVE,
    Case,
    amid_nan,
    assert_same,
    bare_scan,
    device_of,
    every_backend,
    expected_scan,
    repeated,
    scan_case,
    scan_with,
    separately,
    strange,
    threads,
    usable,
)
from mambalab.ext import reference, selective_scan

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
# Few channels for many processors: sequences are cut along l where a backend does that.
LONG = {
    "whole": {"length": 700},
    "static": {"length": 700, "selective": "", "discretisation": "zoh"},
    "few long sequences": {"length": 700, "d": 40, "bounds": (0, 650, 700), "dtype": torch.bfloat16},
    "many sequences": {"length": 700, "bounds": (0, 3, 3, 250, 699, 700)},
    "without states": {"length": 1025, "d": 3, "n": 1, "without": ("initial_state",)},
    "float64": {"length": 300, "n": 17, "dtype": torch.float64},
}


@every_backend
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_backend_agrees_with_reference_at_any_length(backend, length, discretisation):
    case = scan_case(length=length, discretisation=discretisation)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16, 17, 64, 300])
@pytest.mark.parametrize("d", [1, 3, 37])
def test_backend_agrees_with_reference_at_any_width(backend, d, n):
    case = scan_case(d=d, n=n, length=5)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [33, 100, 256])
def test_many_states_agree(backend, n, dtype):
    case = scan_case(d=37, n=n, length=19, dtype=dtype)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("settings", LONG.values(), ids=LONG.keys())
def test_a_long_sequence_of_few_channels_agrees(backend, settings):
    case = scan_case(b=1, **settings)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("selective", SELECTIVE)
@pytest.mark.parametrize("without", [(), ("initial_state",)], ids=["state", "no state"])
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_all_static_and_selective_combinations_agree(backend, selective, without, discretisation):
    case = scan_case(selective=selective, without=without, discretisation=discretisation, n=16)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("without", [names for k in range(5) for names in combinations(OPTIONAL, k)], ids=str)
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_every_option_may_be_left_out(backend, without, delta_softplus):
    case = scan_case(length=4, without=without, delta_softplus=delta_softplus)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("selective", ["ΔBC", ""])
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_other_dtypes_agree(backend, dtype, selective, discretisation):
    case = scan_case(length=33, n=16, dtype=dtype, selective=selective, discretisation=discretisation)
    actual = case.run(scan_with(usable(backend)))
    assert_same(actual, expected_scan(case), dtype)
    for name, tensor in case.tensors.items():
        assert tensor is None or actual[f"d{name}"].dtype == tensor.dtype, name
    assert (actual["y"].dtype, actual["final_state"].dtype) == (dtype, reference.accumulation_dtype(dtype))


@every_backend
@pytest.mark.parametrize("complex_names", [("A",), ("A", "B"), ("A", "C"), ("A", "B", "C")], ids="".join)
@pytest.mark.parametrize("selective", ["ΔBC", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
def test_complex_dynamics_agree(backend, complex_names, selective, dtype, discretisation):
    case = scan_case(
        complex_names=complex_names, selective=selective, dtype=dtype, discretisation=discretisation, length=7
    )
    assert_same(case.run(scan_with(usable(backend, complex_A=True))), expected_scan(case), dtype)


@every_backend
@pytest.mark.parametrize("value", [0.0, -1e-8, -1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zoh_is_right_where_its_quotient_cancels(backend, value, dtype):
    case = scan_case(dtype=dtype, discretisation="zoh")
    case.tensors["A"].fill_(value)
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), dtype)


@every_backend
@pytest.mark.parametrize("value", [-3e38, 3e-38])
def test_rates_at_the_ends_of_float32_stay_numbers(backend, value):
    case = scan_case(length=9)
    case.tensors["A"][1, 1] = value
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("bounds", [(0, 4, 4, 17, 18, 33), (0, 33), (0, 0, 33, 33)], ids=str)
@pytest.mark.parametrize("selective", ["ΔBC", ""])
@pytest.mark.parametrize("without", [(), ("initial_state", "z")], ids=["all", "bare"])
def test_packed_equals_separate(backend, bounds, selective, without):
    case = scan_case(b=1, length=33, bounds=bounds, selective=selective, without=without)
    op = scan_with(usable(backend))
    packed = case.run(op)
    assert_same(packed, separately(case, op), case.dtype)
    assert_same(packed, expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunked_equals_whole(backend, seed, dtype):
    length = 70
    case = scan_case(length=length, dtype=dtype, seed=seed)
    random = Random(seed)
    cuts = sorted({0, 1, 2, length, *random.sample(range(length), 5)})

    def in_chunks(u, delta, A, B, C, D, z, delta_bias, initial_state, **options):
        state, outputs = initial_state, []
        for at in map(slice, cuts, cuts[1:]):
            y, state = scan_with(backend.name)(
                u[:, at], delta[:, at], A, B[:, at], C[:, at], D, z[:, at], delta_bias, initial_state=state, **options
            )
            outputs.append(y)
        return torch.cat(outputs, 1), state

    op = scan_with(usable(backend))
    assert_same(case.run(in_chunks), case.run(op), dtype)


@every_backend
def test_a_packed_chunk_goes_on_from_its_rows(backend):
    op = scan_with(usable(backend))
    case = scan_case(b=1, length=24, bounds=(0, 10, 24))
    whole = case.run(op)
    u, delta, A, B, C, D, z, bias, state = case.tensors.values()
    outputs = []
    for first, second in ((slice(0, 4), slice(10, 17)), (slice(4, 10), slice(17, 24))):
        at = torch.cat([torch.arange(24)[first], torch.arange(24)[second]])
        bounds = torch.tensor([0, first.stop - first.start, len(at)], dtype=torch.int32)
        y, state = op(
            u[:, at], delta[:, at], A, B[:, at], C[:, at], D, z[:, at], bias,
            delta_softplus=True, initial_state=state, cu_seqlens=bounds,
        )  # fmt: skip
        outputs.append(y.split([first.stop - first.start, second.stop - second.start], 1))
    y = torch.cat([outputs[0][0], outputs[1][0], outputs[0][1], outputs[1][1]], 1)
    pieces = {"y": y, "final_state": state}
    assert_same(pieces, {name: whole[name] for name in pieces}, case.dtype)


@every_backend
@pytest.mark.parametrize(("b", "length"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_to_scan_returns_a_copy_of_the_state(backend, b, length):
    case = scan_case(b=b, length=length)
    actual = case.run(scan_with(usable(backend)))
    assert actual["y"].shape == (b, length, 5)
    assert actual["final_state"].equal(case.tensors["initial_state"])
    assert actual["dinitial_state"].equal(case.weights[1])
    assert all(not grad.any() for name, grad in actual.items() if name[0] == "d" and name != "dinitial_state")
    bare = scan_case(b=b, length=length, without=("initial_state",)).run(scan_with(backend.name))
    assert not bare["final_state"].any()


@every_backend
@pytest.mark.parametrize("bounds", [(0,), (0, 0, 0), (0, 3, 3)])
def test_an_empty_sequence_keeps_its_state(backend, bounds):
    case = scan_case(b=1, length=bounds[-1], bounds=bounds)
    final_state = case.run(scan_with(usable(backend)))["final_state"]
    assert final_state.shape == (len(bounds) - 1, 5, 4)
    assert final_state[1:].equal(case.tensors["initial_state"][1:])


@every_backend
def test_outputs_are_fresh_tensors(backend):
    name = usable(backend)
    case = scan_case(length=0).on(device_of(name))
    state = case.tensors["initial_state"]
    _, final_state = bare_scan(name)(**case.tensors)
    assert final_state.data_ptr() != state.data_ptr()


@every_backend
@pytest.mark.parametrize("laid", [strange, repeated])
def test_any_strides_are_taken_as_they_are(backend, laid):
    case = scan_case(length=37, n=16)
    tensors = {name: laid(tensor) for name, tensor in case.tensors.items()}
    case = Case(tensors, (laid(case.weights[0]), laid(case.weights[1])), case.options)
    assert not case.tensors["u"].is_contiguous()
    assert_same(case.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
def test_halves_of_one_projection_are_taken_as_they_are(backend):
    case = scan_case(length=37, n=16)
    u, z = torch.cat([case.tensors["u"], case.tensors["z"]], -1).chunk(2, -1)
    halves = Case({**case.tensors, "u": u, "z": z}, case.weights, case.options)
    assert_same(halves.run(scan_with(usable(backend))), expected_scan(case), case.dtype)


@every_backend
def test_strided_gradients_are_taken_as_they_are(backend):
    case = scan_case(length=37, n=16)
    leaf = case.tensors["u"].clone().requires_grad_()
    outputs = scan_with(usable(backend))(**{**case.tensors, "u": leaf}, **case.options)
    weights = [strange(weight) for weight in case.weights]
    (du,) = torch.autograd.grad(outputs, leaf, weights)
    assert_same({"du": du}, {"du": expected_scan(case)["du"]}, case.dtype)


@every_backend
def test_memory_past_the_end_does_not_leak(backend):
    case = scan_case(length=37, n=16)
    planted = {name: amid_nan(tensor) for name, tensor in case.tensors.items()}
    actual = Case(planted, case.weights, case.options).run(scan_with(usable(backend)))
    assert_same(actual, expected_scan(case), case.dtype)


@every_backend
def test_offsets_past_two_to_the_31_are_reached(backend):
    case = scan_case(b=2, dtype=torch.float16)
    # Only the pages that are written take memory.
    far = torch.empty(2**31 + 2**20, dtype=torch.float16)
    planted = {name: far.as_strided((2, 9, 5), (2**31, 5, 1), at) for name, at in (("u", 0), ("z", 4096))}
    for name, tensor in planted.items():
        tensor.copy_(case.tensors[name])
    actual = Case({**case.tensors, **planted}, case.weights, case.options).run(scan_with(usable(backend)))
    assert_same(actual, expected_scan(case), case.dtype)


@every_backend
@pytest.mark.parametrize("complex_names", [(), ("A", "B", "C")], ids=["real", "complex"])
@pytest.mark.parametrize("discretisation", ["euler", "zoh"])
@pytest.mark.parametrize("selective", ["ΔBC", ""])
def test_gradcheck(backend, complex_names, discretisation, selective):
    case = scan_case(
        length=3, d=2, n=2, dtype=torch.float64, complex_names=complex_names, selective=selective,
        discretisation=discretisation,
    )  # fmt: skip
    op = scan_with(usable(backend, complex_A="A" in complex_names))
    leaves = [t.clone().requires_grad_() for t in case.tensors.values() if t is not None]
    with threads(1):
        assert torch.autograd.gradcheck(
            lambda *t: op(**dict(zip(case.tensors, t, strict=True)), **case.options), leaves
        )


@every_backend
@pytest.mark.parametrize("bounds", [None, (0, 50, 50, 70)], ids=["whole", "packed"])
def test_two_runs_and_any_number_of_threads_give_the_same_bits(backend, bounds):
    case = scan_case(b=1 if bounds else 3, length=70, d=37, n=16, bounds=bounds)
    op = scan_with(usable(backend))
    first = case.run(op)
    for count in (2, 1, 3):
        with threads(count):
            again = case.run(op)
        assert all(again[name].equal(first[name]) for name in first)


@every_backend
def test_a_constant_system_is_a_causal_convolution(backend):
    length, d, n = 40, 3, 4
    u, _, A, B, C, *_ = scan_case(b=2, length=length, d=d, n=n, selective="", dtype=torch.float64).tensors.values()
    step = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    y, _ = scan_with(usable(backend))(u, step.expand_as(u), A, B, C)
    powers = torch.arange(length)[:, None, None]
    kernel = (C * torch.exp(powers * step[:, None] * A) * step[:, None] * B).sum(-1)
    expected = torch.stack(
        [torch.einsum("jd,bjd->bd", kernel[: t + 1].flip(0), u[:, : t + 1]) for t in range(length)], 1
    )
    assert_same({"y": y}, {"y": expected}, torch.float64)


def test_shapes_are_checked_from_the_signature_while_tests_run():
    case = scan_case()
    with pytest.raises(jaxtyping.TypeCheckError, match="selective_scan"):
        selective_scan(**{**case.tensors, "D": torch.ones(6)})
