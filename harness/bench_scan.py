"""`mambalab bench scan`: our selective scan held against float64, then timed beside its peers and the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ext import backends, selective_scan
from ..reports.record import Record
from . import bench, floor
from .bench import OURS, LeftOut, RedCheck, Times, allow
from .bench_inputs import Inputs, Shape, draw, exact, relative_error, window
from .bench_peers import PEERS, Candidate, Peer
from .provenance import machine, provenance

EXP2, BYTES = "exp2 in registers", "a copy of as many bytes"
METRICS = ("forward ms", "forward+backward ms")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest relative error, ||x - exact|| / ||exact|| over a whole tensor: of the output, of each gradient.
TOLERANCES = {"float64": (1e-12, 1e-11), "float32": (1e-5, 1e-4), "bfloat16": (2e-2, 4e-2), "float16": (3e-3, 1e-2)}
CHECKED = 65536  # steps that are held against float64, from the first one on
SMALL = 256  # steps of the call from which a peer's time is foretold


SHAPES = (Shape(1, 128, 4096, 16), Shape(1, 128, 65536, 16), Shape(8, 1536, 2048, 16))
LONG = Shape(1, 128, 2**20, 16)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    repeats       rounds of measurement; None adapts, at least 3
    memory_gib    a peer that would hold more is left out; None: half of the machine's
    call_seconds  a peer whose one call would take longer is left out
    """

    shapes: tuple[Shape, ...] = SHAPES
    dtype: str = "float32"
    backward: bool = False
    peers: bool = False
    repeats: int | None = None
    memory_gib: float | None = None
    call_seconds: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shapes or len(set(self.shapes)) != len(self.shapes):
            raise ValueError(f"shapes must be given, each once, not {', '.join(map(str, self.shapes)) or 'none'}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        if self.repeats is not None and self.repeats < 3:
            raise ValueError(f"repeats must be at least 3, not {self.repeats}")

    @property
    def memory_limit(self) -> float:
        """Bytes a peer may hold."""
        gib = self.memory_gib if self.memory_gib is not None else (machine()["memory_gib"] or 8.0) / 2
        return gib * 2**30


def ours() -> Peer:
    """Our own scan as one more row of the table."""

    def scan(*tensors: Tensor) -> Tensor:
        y = selective_scan(*tensors, delta_softplus=True)
        assert isinstance(y, Tensor)
        return y

    return Peer(name=OURS, timed="mambalab.ext.selective_scan", distribution=None, load=lambda: scan)


def check(peer: Peer, inputs: Inputs, dy: Tensor, wanted: tuple[Tensor, tuple[Tensor, ...]], dtype: str) -> float:
    """The relative error of the whole output on whole inputs, over the steps that `wanted` covers.

    With gradients wanted, dy is zero after those steps, so that no later step has a part in them. Raises RedCheck for
    an error beyond the dtype's tolerance.
    """
    y, grads = wanted
    length = y.shape[1]
    cut = torch.cat([dy[:, :length], torch.zeros_like(dy[:, length:])], 1)
    found, found_grads = Candidate.of(peer, inputs, cut).results(backward=bool(grads))
    error = relative_error(found[:, :length], y)
    names = [f.name for f in fields(inputs)]
    errors = {"output": error} | {
        f"gradient of {name}": relative_error(window(grad, slice(length)), whole)
        for name, grad, whole in zip(names, found_grads, grads, strict=bool(grads))
    }
    for what, size in errors.items():
        allowed = TOLERANCES[dtype][what != "output"]
        if not size <= allowed:
            raise RedCheck(f"{peer.name}: relative error of the {what} {size:.1e}, at most {allowed:g} is allowed")
    return error


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
    backend = backends.pick("cpu").name
    origin = provenance(
        backend=backend, kernel=backends.kernel_digest(backend), device="cpu", dtype=settings.dtype, command=command
    )
    measured: list[Measured] = []
    for shape in settings.shapes:
        for backward in (False, True) if settings.backward else (False,):
            measured.append(measure(shape, settings, backward))
            say(measured[-1].line())
    # The rate of exponentials depends on no shape: the least disturbed measurement holds for all.
    fastest = min(m.exp2_seconds for m in measured)
    return [r for m in measured for r in replace(m, exp2_seconds=fastest).records(settings, origin)]


def measure(shape: Shape, settings: Settings, backward: bool) -> Measured:
    """One shape and direction: checks first, then every candidate and both floors in turn."""
    inputs, dy = draw(shape, DTYPES[settings.dtype], settings.seed)
    length = min(shape.l, CHECKED)
    wanted = exact(inputs.first(length), dy[:, :length] if backward else None)
    rows = (ours(), *(PEERS if settings.peers else ()))
    errors, absent = bench.admit(
        {row.name: partial(check, row, inputs, dy, wanted, settings.dtype) for row in rows},
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


def moved(shape: Shape, item: int, backward: bool) -> int:
    """Bytes that must cross memory: u, delta, z, B, C and y once; backward, all of them and their gradients."""
    whole, states = shape.b * shape.l * shape.d, shape.b * shape.l * shape.n
    forward = 4 * whole + 2 * states
    again = 3 * whole + 2 * states + whole + 3 * whole + 2 * states
    return item * (forward + (again if backward else 0))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one shape and direction gave.

    errors        relative error of each candidate's output against float64, over the first `checked` steps
    absent        why each other peer was left out
    exp2_seconds  of one exponential, on all threads together, at its best in the run: a disturbance can only raise it
    """

    shape: Shape
    backward: bool
    peers: tuple[Peer, ...]
    errors: dict[str, float]
    absent: dict[str, str]
    checked: int
    times: dict[str, Times]
    exp2_seconds: float

    @property
    def floor_ms(self) -> float:
        """An exponential for each (b, l, d, n): each decay exp(ΔA) must be computed once, in either direction."""
        return 1e3 * self.shape.elements * self.exp2_seconds

    def line(self) -> str:
        """One line for a person."""
        mine = 1e3 * self.times[OURS].median
        ratios = [f"{p.name} {1e3 * self.times[p.name].median / mine:.3g}x" for p in self.peers if p.name != OURS]
        parts = [f"{mine:.3g} ms", f"{mine / self.floor_ms:.3g}x the floor", *ratios]
        return f"{self.shape} {METRICS[self.backward]}: {', '.join(parts)}"

    def records(self, settings: Settings, origin: dict[str, Any]) -> Iterator[Record]:
        for peer in self.peers:
            times, mine = self.times[peer.name], peer.name == OURS
            setting = asdict(self.shape) | {
                "dtype": settings.dtype,
                "timed": peer.timed,
                "error": self.errors[peer.name],
                "checked": self.checked,
                "best": 1e3 * times.best,
                "ns": 1e9 * times.median / self.shape.elements,
            }
            rate = f"{1e9 * self.exp2_seconds:.3g} ns at best in this run"
            floors = {
                "floor": self.floor_ms,
                "floor_is": f"an exp2 in registers for each (b, l, d, n), {rate}",
                "bytes_ms": 1e3 * self.times[BYTES].best,
                "left_out": self.absent,
            }
            yield Record(
                experiment="bench-scan",
                model=peer.name,
                task=str(self.shape),
                metric=METRICS[self.backward],
                setting=setting | (floors if mine else {}),
                seed=settings.seed,
                value=1e3 * times.median,
                n=len(times.seconds),
                provenance=origin if mine else {**origin, "backend": peer.backend(), "kernel": None},
            )
