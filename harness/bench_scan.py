"""`mambalab bench scan`: our selective scan held against float64, then timed beside its peers and the floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from ..ext import backends, selective_scan
from ..reports.record import Record
from . import bench, bench_gpu, floor
from .bench import OURS, LeftOut, RedCheck, allow
from .bench_inputs import DTYPES, KINDS, Inputs, Shape, draw, exact, relative_error, window
from .bench_measured import BYTES, EXP2, METRICS, Errors, Measured, moved
from .bench_peers import PEERS, Candidate, Peer
from .provenance import machine, provenance

# Largest relative error, ||x - exact|| / ||exact|| over a whole tensor: of the output, of each gradient.
TOLERANCES = {"float64": (1e-12, 1e-11), "float32": (1e-5, 1e-4), "bfloat16": (2e-2, 4e-2), "float16": (3e-3, 1e-2)}
CHECKED = 65536  # steps that are held against float64 on the CPU, from the first one on
SMALL = 256  # steps of the call from which a peer's time is foretold

SHAPES = (Shape(1, 128, 4096, 16), Shape(1, 128, 65536, 16), Shape(8, 1536, 2048, 16))
LONG = Shape(1, 128, 2**20, 16)
GPU_SHAPES = (
    Shape(8, 1536, 2048, 16, "bfloat16"),
    Shape(8, 5120, 2048, 16, "bfloat16"),
    Shape(8, 1536, 2048, 64, "bfloat16"),
    Shape(64, 128, 4096, 16, "float32"),
    Shape(1, 1536, 131072, 16, "bfloat16"),
    Shape(1, 128, 2**20, 16, "float32"),
    Shape(8, 128, 256, 16, "float32"),
)
DEFAULTS = {"cpu": SHAPES, "cuda": GPU_SHAPES}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    dtype         of the shapes that name none
    device        "cpu" or "cuda", the current GPU
    backend       the name of ours; "": the one that the device gets
    inputs        a kind of bench_inputs.KINDS
    repeats       rounds of measurement; None adapts, at least 3
    memory_gib    a peer that would hold more is left out; None: half of the machine's
    call_seconds  a peer whose one call would take longer is left out
    """

    shapes: tuple[Shape, ...] = SHAPES
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = ""
    inputs: str = "normal"
    backward: bool = False
    peers: bool = False
    repeats: int | None = None
    memory_gib: float | None = None
    call_seconds: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shapes or len({(str(s), self.dtype_of(s)) for s in self.shapes}) != len(self.shapes):
            raise ValueError(f"shapes must be given, each once, not {', '.join(map(str, self.shapes)) or 'none'}")
        for what, value, known in (
            ("dtype", self.dtype, DTYPES),
            ("device", self.device, DEFAULTS),
            ("inputs", self.inputs, KINDS),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")
        if self.repeats is not None and self.repeats < 3:
            raise ValueError(f"repeats must be at least 3, not {self.repeats}")

    def dtype_of(self, shape: Shape) -> str:
        return shape.dtype or self.dtype

    @property
    def dtypes(self) -> str:
        """All of them, for the provenance of the run."""
        return ", ".join(dict.fromkeys(self.dtype_of(shape) for shape in self.shapes))

    @property
    def memory_limit(self) -> float:
        """Bytes a peer may hold."""
        gib = self.memory_gib if self.memory_gib is not None else (machine()["memory_gib"] or 8.0) / 2
        return gib * 2**30


def ours(backend: str = "") -> Peer:
    """Our own scan as one more row of the table."""

    def scan(*tensors: Tensor) -> Tensor:
        y = selective_scan(*tensors, delta_softplus=True, backend=backend or None)
        assert isinstance(y, Tensor)
        return y

    return Peer(name=OURS, timed="mambalab.ext.selective_scan", distribution=None, load=lambda: scan)


def check(peer: Peer, inputs: Inputs, dy: Tensor, wanted: tuple[Tensor, tuple[Tensor, ...]], dtype: str) -> Errors:
    """The relative errors on whole inputs, over the steps that `wanted` covers: of the output, of each gradient.

    With gradients wanted, dy is zero after those steps, so that no later step has a part in them. Raises RedCheck for
    an error beyond the dtype's tolerance.
    """
    y, grads = wanted
    length = y.shape[1]
    cut = torch.cat([dy[:, :length], torch.zeros_like(dy[:, length:])], 1)
    found, found_grads = Candidate.of(peer, inputs, cut).results(backward=bool(grads))
    names = [f.name for f in fields(inputs)]
    errors = {"output": relative_error(found[:, :length], y)} | {
        f"gradient of {name}": relative_error(window(grad, slice(length)), whole)
        for name, grad, whole in zip(names, found_grads, grads, strict=bool(grads))
    }
    for what, size in errors.items():
        allowed = TOLERANCES[dtype][what != "output"]
        if not size <= allowed:
            raise RedCheck(f"{peer.name}: relative error of the {what} {size:.1e}, at most {allowed:g} is allowed")
    return errors


def why_not(peer: Peer, inputs: Inputs, dy: Tensor, shape: Shape, settings: Settings, backward: bool) -> None:
    """Raise LeftOut for a peer that is not installed, too large or, by a short call, too slow for a shape."""
    if reason := peer.missing():
        raise LeftOut(reason)
    needed = 4 * shape.elements * peer.copies[backward]
    if needed > settings.memory_limit:
        limit = settings.memory_limit / 2**30
        raise LeftOut(f"it would hold about {needed / 2**30:.1f} GiB, over the limit of {limit:.1f} GiB")
    length = min(SMALL, shape.l)
    small = Candidate.of(peer, inputs.first(length), dy[:, :length]).call(backward)
    allow(bench.seconds(small) * (shape.l / length) ** peer.growth[backward], settings.call_seconds)


def run(settings: Settings, *, command: str = "", say: Callable[[str], None] = lambda line: None) -> list[Record]:
    """Check and time every shape; the records of all. RedCheck, before any speed is known, where ours is wrong."""
    device, measured_here = _place(settings)
    backend = backends.pick(device, settings.backend or None).name
    kernel = backends.kernel_digest(backend)
    origin = provenance(backend=backend, kernel=kernel, device=str(device), dtype=settings.dtypes, command=command)
    measured: list[Measured] = []
    for shape in settings.shapes:
        for backward in (False, True) if settings.backward else (False,):
            measured.append(measured_here(shape, settings, backward))
            say(measured[-1].line())
    # A rate depends on no shape: the least disturbed measurement holds for all.
    best = {rate: min(getattr(m, rate) for m in measured) for rate in measured[0].RATES}
    return [r for m in measured for r in replace(m, **best).records(settings, origin)]


def _place(settings: Settings) -> tuple[torch.device, Callable[[Shape, Settings, bool], Measured]]:
    """The device, and what measures a shape there."""
    if settings.device == "cpu":
        return torch.device("cpu"), measure
    # It takes the check from here.
    from . import bench_scan_gpu

    gpu = bench_gpu.here()
    return gpu.device, partial(bench_scan_gpu.measure, gpu=gpu)


def measure(shape: Shape, settings: Settings, backward: bool) -> Measured:
    """One shape and direction: checks first, then every candidate and both floors in turn."""
    inputs, dy = draw(shape, DTYPES[settings.dtype_of(shape)], settings.seed, settings.inputs)
    length = min(shape.l, CHECKED)
    wanted = exact(inputs.first(length), dy[:, :length] if backward else None)
    rows = (ours(settings.backend), *(PEERS if settings.peers else ()))
    errors, absent = bench.admit(
        {row.name: partial(check, row, inputs, dy, wanted, settings.dtype_of(shape)) for row in rows},
        limits={row.name: partial(why_not, row, inputs, dy, shape, settings, backward) for row in rows[1:]},
        call_seconds=settings.call_seconds,
        place=f"{shape}, {METRICS[backward]}",
    )
    peers = [row for row in rows if row.name in errors]
    calls = {peer.name: Candidate.of(peer, inputs, dy).call(backward) for peer in peers}
    exp2, count = floor.exp2_call(torch.get_num_threads())
    size = moved(shape, inputs.u.element_size(), backward)
    times = bench.interleave({**calls, EXP2: exp2, BYTES: floor.bytes_call(size)}, repeats=settings.repeats)
    return Measured(
        shape=shape,
        backward=backward,
        peers=tuple(peers),
        errors=errors,
        absent=absent,
        checked=length,
        times=times,
        exp2_seconds=times[EXP2].best / count,
    )
