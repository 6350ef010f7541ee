"""Inputs for the ops, the one oracle that judges them and the one table of tolerances."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from cuda_emulated_row import EMULATED
from mambalab.ext import causal_conv1d, reference, rms_norm, selective_scan, step_
from mambalab.ext.backends import BACKENDS, Backend
from torch import Tensor

# Relative, on the norm of a whole tensor; for the short dtypes it is the rounding of the tensor itself.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
LENGTHS = (1, 2, 63, 64, 65, 257)
SELECTIVE = ("", "Δ", "B", "C", "ΔB", "ΔC", "BC", "ΔBC")

ROWS = (*BACKENDS, EMULATED)


def over(rows: Iterable[Backend]) -> pytest.MarkDecorator:
    """Run a test on each of the rows, as its argument `backend`."""
    gpu = {"cuda": [pytest.mark.gpu]}
    return pytest.mark.parametrize(
        "backend", [pytest.param(row, id=row.name, marks=gpu.get(row.device, [])) for row in rows]
    )


every_backend = over(ROWS)
# All but the definition, in which torch chooses the order of a sum.
every_kernel = over(row for row in ROWS if row.name != "reference")


def usable(backend: Backend, *, complex_A: bool = False) -> str:
    """The backend's name for the ops; skips the test where the backend is missing or lacks that, with its reason."""
    reason = backend.missing()
    if reason is None and complex_A and not backend.complex_A:
        reason = "takes a real A only"
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")
    return backend.name


def device_of(name: str) -> str:
    """The type of device on which the backend called `name` is tested."""
    (device,) = (row.device for row in ROWS if row.name == name)
    return "cpu" if device == "any" else device


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A scope in which torch runs on `count` threads; one is quickest for the reference, whose tensors are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """One call of an op: what it is given and with what its outputs are weighted before going backward."""

    tensors: dict[str, Any]
    weights: tuple[Tensor, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype

    def run(self, op: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Both outputs of `op` and the gradient of everything it was given."""
        leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in self.tensors.items()}
        given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        outputs = op(**leaves, **self.options)
        y, state = ((out * weight.conj()).real.sum() for out, weight in zip(outputs, self.weights, strict=True))
        found = torch.autograd.grad(y + state, list(given.values()), materialize_grads=True)
        grads = {f"d{name}": grad for name, grad in zip(given, found, strict=True)}
        return {"y": outputs[0].detach(), "final_state": outputs[1].detach(), **grads}

    def on(self, device: str) -> "Case":
        """The same on a device, strides kept."""
        moved = partial(on_device, device=device)
        tensors = {name: None if t is None else moved(t) for name, t in self.tensors.items()}
        options = {name: moved(value) if isinstance(value, Tensor) else value for name, value in self.options.items()}
        return Case(tensors, (moved(self.weights[0]), moved(self.weights[1])), options)

    def double(self) -> "Case":
        """The same numbers in float64."""
        tensors = {name: None if t is None else in_double(t) for name, t in self.tensors.items()}
        return replace(self, tensors=tensors, weights=tuple(map(in_double, self.weights)))


def in_double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def bare_scan(name: str | None) -> Callable[..., Any]:
    """The scan for tensors that are on the backend's device."""
    return partial(selective_scan, return_final_state=True, backend=name)


def bare_conv(name: str) -> Callable[..., Any]:
    """The convolution for tensors that are on the backend's device."""
    return partial(causal_conv1d, return_final_state=True, backend=name)


def scan_with(name: str) -> Callable[..., Any]:
    return _with(name, bare_scan(name))


def conv_with(name: str) -> Callable[..., Any]:
    return _with(name, bare_conv(name))


def norm_with(name: str) -> Callable[..., Any]:
    return _with(name, partial(rms_norm, backend=name))


def step_with(name: str) -> Callable[..., Any]:
    return _with(name, partial(step_, backend=name))


def _with(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` for tensors of the CPU: on the backend's device, whence its results, states and gradients come back."""
    device = device_of(name)
    if device == "cpu":
        return op

    def call(*given: Any, **named: Any) -> Any:
        here = [_moved(value, device) for value in given]
        there = {key: _moved(value, device) for key, value in named.items()}
        fill_free_memory(device)
        outputs = op(*here, **there)
        for state in {"conv_state", "scan_state"} & named.keys():
            named[state].copy_(there[state])
        return tuple(_moved(y, "cpu") for y in outputs) if isinstance(outputs, tuple) else _moved(outputs, "cpu")

    return call


def _moved(value: Any, device: str) -> Any:
    return _Move.apply(value, torch.device(device)) if isinstance(value, Tensor) else value


def fill_free_memory(device: str, value: float = torch.nan) -> None:
    """Leave a number in what torch keeps of freed memory, which is what the next op allocates from."""
    for size in (2**10, 2**16, 2**20):
        freed = [torch.full((size,), value, device=device) for _ in range(8)]
        del freed


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A copy on `device` with the same strides: everything that the tensor's memory holds is copied."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    memory = tensor.detach().as_strided((size,), (1,), 0).to(device, copy=True)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class _Move(torch.autograd.Function):
    """`on_device`, whose gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.device = tensor.device
        return on_device(tensor, device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return on_device(grads[0], ctx.device), None


def expected_scan(case: Case) -> dict[str, Tensor]:
    """The oracle: the definition in float64, differentiated by torch."""
    options = {"cu_seqlens": None, "delta_softplus": False, "discretisation": "euler", **case.options}
    with threads(1):
        return replace(case.double(), options=options).run(reference.scan_forward)


def expected_conv(case: Case) -> dict[str, Tensor]:
    """The oracle: the definition in float64, differentiated by torch."""
    options = {"cu_seqlens": None, **case.options, "activation": case.options.get("activation") or ""}
    with threads(1):
        return replace(case.double(), options=options).run(reference.conv_forward)


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Every tensor agrees in shape, and in norm to within the table's tolerance for `dtype`."""
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.shape == expected[name].shape, name
        wanted = in_double(expected[name])
        error, scale = (in_double(tensor) - wanted).norm(), wanted.norm()
        assert error <= TOLERANCE[dtype] * scale, f"{name}: {error / scale:.1e} > {TOLERANCE[dtype]:.0e}"


def scan_case(
    b: int = 2,
    length: int = 9,
    d: int = 5,
    n: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    selective: str = "ΔBC",
    bounds: tuple[int, ...] | None = None,
    without: tuple[str, ...] = (),
    complex_names: tuple[str, ...] = (),
    seed: int = 0,
    **options: Any,
) -> Case:
    """Normal numbers for a scan with Δ near 1/2; the named optional tensors are left out, the named others complex."""
    draw = Draw(seed)
    rows = b if bounds is None else len(bounds) - 1
    wide = reference.accumulation_dtype(dtype)
    shapes = {"B": (b, length, n) if "B" in selective else (d, n), "C": (b, length, n) if "C" in selective else (d, n)}
    A = -draw(d, n, dtype=wide).abs() - 0.1
    tensors = {
        "u": draw(b, length, d, dtype=dtype),
        "delta": draw(*((b, length) if "Δ" in selective else (1, 1)), d, dtype=dtype).expand(b, length, d),
        "A": torch.complex(A, draw(d, n, dtype=wide)) if "A" in complex_names else A,
    }
    state_dtype = tensors["A"].dtype
    for name, shape in shapes.items():
        real = dtype if name in selective else wide
        tensors[name] = draw(*shape, dtype=state_dtype if name in complex_names else real)
    tensors |= {
        "D": draw(d, dtype=wide),
        "z": draw(b, length, d, dtype=dtype),
        "delta_bias": draw(d, dtype=wide),
        "initial_state": draw(rows, d, n, dtype=state_dtype),
    }
    weights = draw(b, length, d, dtype=dtype), draw(rows, d, n, dtype=state_dtype)
    if bounds is not None:
        options["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    options = {"delta_softplus": True, **options}
    return Case({name: None if name in without else t for name, t in tensors.items()}, weights, options)


def conv_case(
    b: int = 2,
    length: int = 9,
    d: int = 5,
    k: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    bounds: tuple[int, ...] | None = None,
    without: tuple[str, ...] = (),
    seed: int = 0,
    **options: Any,
) -> Case:
    """Normal numbers for a convolution; the named optional tensors are left out."""
    draw = Draw(seed)
    rows = b if bounds is None else len(bounds) - 1
    tensors = {
        "x": draw(b, length, d, dtype=dtype),
        "weight": draw(d, k, dtype=dtype),
        "bias": draw(d, dtype=dtype),
        "initial_state": draw(rows, k - 1, d, dtype=dtype),
    }
    weights = draw(b, length, d, dtype=dtype), draw(rows, k - 1, d, dtype=dtype)
    if bounds is not None:
        options["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    return Case({name: None if name in without else t for name, t in tensors.items()}, weights, options)


class Draw:
    """A stream of normal numbers that depends on the seed alone."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype) -> Tensor:
        drawn_in = dtype if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=self.generator, dtype=drawn_in).to(dtype)


def separately(case: Case, op: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What a packed case gives when each of its sequences is run on its own."""
    options = dict(case.options)
    bounds = options.pop("cu_seqlens").tolist()
    parts = []
    for row, (begin, end) in enumerate(pairwise(bounds)):
        tensors = {name: _cut(name, tensor, row, begin, end) for name, tensor in case.tensors.items()}
        weights = case.weights[0][:, begin:end], case.weights[1][row : row + 1]
        parts.append(Case(tensors, weights, options).run(op))
    return {name: _joined([part[name] for part in parts], name) for name in parts[0]}


def _cut(name: str, tensor: Tensor | None, row: int, begin: int, end: int) -> Tensor | None:
    if tensor is None or tensor.dim() < 3:
        return tensor
    return tensor[row : row + 1] if name == "initial_state" else tensor[:, begin:end]


def _joined(parts: list[Tensor], name: str) -> Tensor:
    if parts[0].dim() < 3:
        return torch.stack(parts).sum(0)
    return torch.cat(parts, 0 if name in ("final_state", "dinitial_state") else 1)


def strange(tensor: Tensor) -> Tensor:
    """The same tensor with its axes in the opposite order in memory, and a gap after every element."""
    axes = tuple(reversed(range(tensor.dim())))
    return torch.stack([tensor.permute(axes)] * 2, -1)[..., 0].permute(axes)


def repeated(tensor: Tensor) -> Tensor:
    """A tensor of that shape in which all axes but the last have stride 0."""
    return tensor[(slice(1),) * (tensor.dim() - 1)].expand(tensor.shape)


def amid_nan(tensor: Tensor) -> Tensor:
    """The same tensor with NaN in memory before, after and between its rows."""
    around = torch.full([size + 3 for size in tensor.shape], torch.nan, dtype=tensor.dtype)
    inside = around[tuple(slice(1, 1 + size) for size in tensor.shape)]
    return inside.copy_(tensor)
