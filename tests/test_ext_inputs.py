"""What the ops refuse, each in one line that names both sides."""

import numpy
import pytest
import torch
from ext_cases import conv_case, scan_case
from mambalab.ext import causal_conv1d, selective_scan, step_
from test_ext_step import mixer, states

pytestmark = pytest.mark.usefixtures("unchecked")

HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


# What replaces the good argument of a scan with b = 2, l = 9, d = 5, n = 4, and the words the refusal holds.
BAD_SCANS = {
    "u of rank 2": ({"u": torch.zeros(9, 5)}, ("u has shape (9, 5)", "(b l d)")),
    "u of integers": ({"u": torch.zeros(2, 9, 5, dtype=torch.int64)}, ("u is torch.int64", "torch.float32")),
    "u without channels": ({"u": torch.zeros(2, 9, 0)}, ("(2, 9, 0)", "d at least 1")),
    "a longer delta": ({"delta": torch.zeros(2, 10, 5)}, ("delta has shape (2, 10, 5)", "(b l d) = (2, 9, 5)")),
    "a delta of rank 2": ({"delta": torch.zeros(9, 5)}, ("delta has shape (9, 5)", "(b l d) = (2, 9, 5)")),
    "a short delta": ({"delta": torch.zeros(2, 9, 5, dtype=HALF)}, ("torch.float16", "torch.float32")),
    "a long delta": ({"delta": torch.zeros(2, 9, 5, dtype=DOUBLE)}, ("torch.float64", "torch.float32")),
    "A of other channels": ({"A": torch.zeros(6, 4)}, ("A has shape (6, 4)", "(d n) = (5, 4)")),
    "A of rank 1": ({"A": torch.zeros(5)}, ("A has shape (5,)", "(d n)")),
    "A without states": ({"A": torch.zeros(5, 0)}, ("A has shape (5, 0)", "n at least 1")),
    "a short A": ({"A": torch.zeros(5, 4, dtype=HALF)}, ("A is torch.float16", "torch.float32")),
    "a double A": ({"A": torch.zeros(5, 4, dtype=DOUBLE)}, ("A is torch.float64", "torch.float32")),
    "a double complex A": ({"A": torch.zeros(5, 4, dtype=torch.complex128)}, ("complex128", "complex64")),
    "B of other states": ({"B": torch.zeros(2, 9, 3)}, ("B has shape (2, 9, 3)", "(b l n) = (2, 9, 4)")),
    "static B of other states": ({"B": torch.zeros(5, 3)}, ("B has shape (5, 3)", "(d n) = (5, 4)")),
    "B for groups": ({"B": torch.zeros(2, 9, 1, 4)}, ("B has rank 4", "reserved for groups")),
    "C for groups": ({"C": torch.zeros(2, 9, 1, 4)}, ("C has rank 4", "reserved for groups")),
    "C of rank 1": ({"C": torch.zeros(4)}, ("C has shape (4,)", "(b l n) = (2, 9, 4)")),
    "a double C": ({"C": torch.zeros(2, 9, 4, dtype=DOUBLE)}, ("C is torch.float64", "torch.float32")),
    "a short static C": ({"C": torch.zeros(5, 4, dtype=HALF)}, ("C is torch.float16", "torch.float32")),
    "complex C, real A": ({"C": torch.zeros(2, 9, 4, dtype=torch.complex64)}, ("C is torch.complex64", "float32")),
    "a longer D": ({"D": torch.zeros(6)}, ("D has shape (6,)", "(d) = (5,)")),
    "a short D": ({"D": torch.zeros(5, dtype=HALF)}, ("D is torch.float16", "torch.float32")),
    "a shorter z": ({"z": torch.zeros(2, 8, 5)}, ("z has shape (2, 8, 5)", "(2, 9, 5)")),
    "a short z": ({"z": torch.zeros(2, 9, 5, dtype=HALF)}, ("z is torch.float16", "torch.float32")),
    "a bias for each state": ({"delta_bias": torch.zeros(5, 4)}, ("delta_bias has shape (5, 4)", "(d) = (5,)")),
    "a state of another batch": ({"initial_state": torch.zeros(3, 5, 4)}, ("(3, 5, 4)", "(b d n) = (2, 5, 4)")),
    "a short state": ({"initial_state": torch.zeros(2, 5, 4, dtype=HALF)}, ("torch.float16", "torch.float32")),
    "a complex state": ({"initial_state": torch.zeros(2, 5, 4, dtype=torch.complex64)}, ("complex64", "float32")),
    "a tensor elsewhere": ({"D": torch.zeros(5, device="meta")}, ("D is on meta", "u is on cpu")),
    "a list for u": ({"u": [[1.0]]}, ("u is a list", "it must be a tensor")),
    "no delta": ({"delta": None}, ("delta is None", "it must be a tensor")),
    "an array for z": ({"z": numpy.zeros((2, 9, 5))}, ("z is a ndarray", "it must be a tensor or None")),
    "a class for A": ({"A": torch.Tensor}, ("A is a _TensorMeta", "it must be a tensor")),
    "a sparse B": ({"B": torch.zeros(2, 9, 4).to_sparse()}, ("B is a sparse_coo tensor", "a dense one")),
    "a nested u": (
        {"u": torch.nested.nested_tensor([torch.zeros(9, 5)], layout=torch.jagged)},
        ("u is a nested tensor", "a dense one"),
    ),
    "a word for a flag": ({"delta_softplus": "yes"}, ("delta_softplus must be True or False", "'yes'")),
    "an empty backend": ({"backend": ""}, ("backend must be the name of one, or None", "''")),
    "a list for a backend": ({"backend": ["cpu"]}, ("backend must be the name of one, or None", "['cpu']")),
    "an endless discretisation": (
        {"discretisation": "x" * 9999},
        ("'xxx", "x…; nearest: 'euler'"),
    ),
    "packing of a batch": ({"cu_seqlens": ints(0, 9)}, ("b must be 1", "b = 2")),
    "an unknown discretisation": ({"discretisation": "bilinear"}, ("'bilinear'", "'euler', 'zoh'")),
    "a misspelt discretisation": ({"discretisation": "zho"}, ("'zho'", "nearest: 'zoh'")),
    "a misspelt backend": ({"backend": "refrence"}, ("'refrence'", "nearest: reference")),
    "an unknown backend": ({"backend": "metal"}, ("'metal'", "cpu, cuda, numba-cuda, reference")),
}
BAD_PACKINGS = {
    "int64": (ints(0, 9, dtype=torch.int64), ("cu_seqlens is torch.int64", "torch.int32")),
    "rank 2": (ints(0, 9)[None], ("(1, 2)", "(s+1)")),
    "nothing": (ints(), ("(0,)", "(s+1)")),
    "late": (ints(1, 9), ("from 1 to 9", "from 0 to l = 9")),
    "too short": (ints(0, 8), ("from 0 to 8", "from 0 to l = 9")),
    "too long": (ints(0, 10), ("from 0 to 10", "from 0 to l = 9")),
    "decreasing": (ints(0, 5, 4, 9), ("from 5 down to 4", "never decrease")),
    "negative": (ints(0, -1, 9), ("from 0 down to -1", "never decrease")),
    "elsewhere": (ints(0, 9).to("meta"), ("cu_seqlens is on meta", "is on cpu")),
}
# The same for a convolution with b = 2, l = 9, d = 5, k = 4.
BAD_CONVS = {
    "x of rank 2": ({"x": torch.zeros(9, 5)}, ("x has shape (9, 5)", "(b l d)")),
    "x of integers": ({"x": torch.zeros(2, 9, 5, dtype=torch.int64)}, ("x is torch.int64", "torch.float32")),
    "weight of rank 3": ({"weight": torch.zeros(5, 1, 4)}, ("weight has shape (5, 1, 4)", "(d k)")),
    "weight of no width": ({"weight": torch.zeros(5, 0)}, ("weight has shape (5, 0)", "k at least 1")),
    "weight of other channels": ({"weight": torch.zeros(6, 4)}, ("weight has shape (6, 4)", "(d k) = (5, 4)")),
    "a short weight": ({"weight": torch.zeros(5, 4, dtype=HALF)}, ("weight is torch.float16", "torch.float32")),
    "a bias unlike the weight": ({"bias": torch.zeros(5, dtype=HALF)}, ("bias is torch.float16", "torch.float32")),
    "a longer bias": ({"bias": torch.zeros(6)}, ("bias has shape (6,)", "(d) = (5,)")),
    "a state of k": ({"initial_state": torch.zeros(2, 4, 5)}, ("(2, 4, 5)", "(b k-1 d) = (2, 3, 5)")),
    "a long state": ({"initial_state": torch.zeros(2, 3, 5, dtype=DOUBLE)}, ("torch.float64", "torch.float32")),
    "an unknown activation": ({"activation": "swish"}, ("'swish'", "None, 'silu'")),
    "a misspelt activation": ({"activation": "slu"}, ("'slu'", "nearest: 'silu'")),
}
# The same for a step with b = 2, d = 5, k = 4, n = 4, r = 2.
BAD_STEPS = {
    "x of rank 3": ({"x": torch.zeros(2, 1, 5)}, ("x has shape (2, 1, 5)", "(b d)")),
    "z of another batch": ({"z": torch.zeros(3, 5)}, ("z has shape (3, 5)", "(b d) = (2, 5)")),
    "x_proj without C": ({"x_proj": torch.zeros(6, 5)}, ("x_proj has shape (6, 5)", "(p d) = (10, 5)")),
    "x_proj with a static B": ({"B": torch.zeros(5, 4)}, ("x_proj has shape (10, 5)", "(p d) = (6, 5)")),
    "x_proj in float64": ({"x_proj": torch.zeros(10, 5, dtype=DOUBLE)}, ("torch.float64", "torch.float32")),
    "dt_proj of other channels": ({"dt_proj": torch.zeros(6, 2)}, ("dt_proj has shape (6, 2)", "(d r) = (5, 2)")),
    "dt_proj of rank 1": ({"dt_proj": torch.zeros(5)}, ("dt_proj has shape (5,)", "(d r)")),
    "no Δ at all": ({"dt_proj": None, "delta_bias": None}, ("dt_proj and delta_bias are both None",)),
    "a conv_state of k": ({"conv_state": torch.zeros(2, 4, 5)}, ("conv_state has shape (2, 4, 5)", "= (2, 3, 5)")),
    "a short scan_state": ({"scan_state": torch.zeros(2, 5, 4, dtype=HALF)}, ("torch.float16", "torch.float32")),
    "a selective C": ({"C": torch.zeros(2, 5, 4), "x_proj": torch.zeros(6, 5)}, ("C has shape", "(d n) = (5, 4)")),
    "a short D": ({"D": torch.zeros(5, dtype=HALF)}, ("D is torch.float16", "torch.float32")),
    "an unknown activation": ({"activation": "gelu"}, ("'gelu'", "'silu'")),
    "an unknown discretisation": ({"discretisation": "zohh"}, ("'zohh'", "'zoh'")),
    "a number for D": ({"D": 1.0}, ("D is a float", "it must be a tensor or None")),
    "a number for a backend": ({"backend": 1}, ("backend must be the name of one, or None", "not 1")),
    "a state in one place": ({"scan_state": torch.zeros(1, 5, 4).expand(2, 5, 4)}, ("scan_state has strides", "share")),
    "a state that overlaps": ({"scan_state": torch.zeros(9).as_strided((2, 5, 4), (1, 1, 1))}, ("share memory",)),
    "a state negated lazily": ({"scan_state": torch.zeros(2, 5, 4, dtype=torch.complex64).conj().imag}, ("lazily",)),
    "a state with a gradient": ({"conv_state": torch.zeros(2, 3, 5, requires_grad=True)}, ("step_ has no gradient",)),
}


def assert_refused(op, arguments, words):
    with pytest.raises(ValueError, match=r".") as refusal:
        op(**arguments)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("bad", "words"), BAD_SCANS.values(), ids=BAD_SCANS.keys())
def test_a_bad_scan_is_refused(bad, words):
    assert_refused(selective_scan, {**scan_case().tensors, **bad}, words)


@pytest.mark.parametrize(("bad", "words"), BAD_CONVS.values(), ids=BAD_CONVS.keys())
def test_a_bad_convolution_is_refused(bad, words):
    assert_refused(causal_conv1d, {**conv_case().tensors, **bad}, words)


@pytest.mark.parametrize(("bad", "words"), BAD_STEPS.values(), ids=BAD_STEPS.keys())
def test_a_bad_step_is_refused(bad, words):
    given = mixer(SINGLE)
    good = dict(zip(("conv_state", "scan_state"), states(given, 2), strict=True))
    x = torch.zeros(2, 5)
    assert_refused(step_, {"x": x, "z": x, **given, **good, **bad}, words)


@pytest.mark.parametrize(("bad", "words"), BAD_PACKINGS.values(), ids=BAD_PACKINGS.keys())
@pytest.mark.parametrize("op", [selective_scan, causal_conv1d])
def test_bad_packing_is_refused(op, bad, words):
    case = scan_case(b=1) if op is selective_scan else conv_case(b=1)
    assert_refused(op, {**case.tensors, "initial_state": None, "cu_seqlens": bad}, words)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_stay_float32_beside_short_activations(dtype):
    case = scan_case(dtype=dtype)
    bad = {"A": case.tensors["A"].to(dtype)}
    assert_refused(selective_scan, {**case.tensors, **bad}, (f"A is {dtype}", f"u in {dtype}", "torch.float32"))


def test_float64_takes_float64_parameters():
    case = scan_case(dtype=DOUBLE)
    bad = {"D": case.tensors["D"].float()}
    assert_refused(selective_scan, {**case.tensors, **bad}, ("D is torch.float32", "torch.float64"))
