"""`mambalab bench scan` on a GPU: one shape and direction checked, then timed beside its peer and both floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from . import bench
from .bench import Call, LeftOut
from .bench_gpu import Gpu
from .bench_inputs import DTYPES, Inputs, Shape, draw, exact
from .bench_measured import BYTES, EXP2, METRICS, Errors, Measured, moved
from .bench_peers import GPU_PEERS, Candidate, Peer
from .bench_scan import Settings, check, ours
from .errors import one_line
from .floor import bytes_call

STEPS = 4096  # that the definition takes in float64: a longer sequence is cut into pieces of so many, side by side
REPLAYED = 2**23  # elements at most of a scan so short that the host's part of a call would be all that is timed
# A scan whose b·d·n states are fewer than a quarter of a multiprocessor's threads, on each of them, has to be split
# along l, or most of the GPU idles; then every decay is computed twice.
STATES = 512

REPLAY = tuple(metric.replace(" ms", ", graph replay ms") for metric in METRICS)


def measure(shape: Shape, settings: Settings, backward: bool, gpu: Gpu) -> MeasuredOnGpu:
    """Check ours and its peers over the whole sequence (but fewer than 4096 last steps), then time them in turn."""
    inputs, dy = draw(shape, DTYPES[settings.dtype_of(shape)], settings.seed, settings.inputs, gpu.device)
    peers, errors, absent, checked = _admit(shape, settings, backward, inputs, dy)
    calls = {peer.name: Candidate.of(peer, inputs, dy).call(backward) for peer in peers}
    calls, unreplayed = _replays(calls, gpu) if shape.elements <= REPLAYED else (calls, "")
    exp2, count = gpu.exp2()
    copy = bytes_call(gpu.copied, gpu.device)
    times = bench.interleave({**calls, EXP2: exp2, BYTES: copy}, repeats=settings.repeats, timer=gpu.timer)
    return MeasuredOnGpu(
        shape=shape,
        backward=backward,
        peers=peers,
        errors=errors,
        absent=absent,
        checked=checked,
        times=times,
        exp2_seconds=times[EXP2].best / count,
        byte_seconds=times[BYTES].best / gpu.copied,
        bytes=moved(shape, inputs.u.element_size(), backward),
        split=shape.b * shape.d * shape.n < STATES * gpu.multiprocessors,
        replayed=shape.elements <= REPLAYED and not unreplayed,
        unreplayed=unreplayed,
    )


def _admit(
    shape: Shape, settings: Settings, backward: bool, inputs: Inputs, dy: Tensor
) -> tuple[tuple[Peer, ...], dict[str, Errors], dict[str, str], int]:
    """Who is timed, the errors of each, why any other is not, and how many steps were checked."""
    steps = min(STEPS, shape.l)
    pieces = shape.l // steps
    checked = pieces * steps
    wanted = exact(inputs.first(checked), dy[:, :checked] if backward else None, pieces)
    rows = (ours(settings.backend), *(GPU_PEERS if settings.peers else ()))
    errors, absent = bench.admit(
        {row.name: partial(check, row, inputs, dy, wanted, settings.dtype_of(shape)) for row in rows},
        limits={row.name: partial(_installed, row) for row in rows[1:]},
        call_seconds=settings.call_seconds,
        place=f"{shape}, {METRICS[backward]}",
    )
    return tuple(row for row in rows if row.name in errors), errors, absent, checked


def _installed(peer: Peer) -> None:
    if reason := peer.missing():
        raise LeftOut(reason)


def _replays(calls: Mapping[str, Call], gpu: Gpu) -> tuple[dict[str, Call], str]:
    """The calls as replays of graphs; as they are, and why, where one of them can't be captured."""
    try:
        return {name: gpu.replay(call) for name, call in calls.items()}, ""
    except RuntimeError as error:
        return dict(calls), one_line(error)


@dataclass(frozen=True, kw_only=True)
class MeasuredOnGpu(Measured):
    """What one shape and direction gave on a GPU.

    byte_seconds  of one byte read or written by a large copy, at its best in the run
    bytes         that must cross memory
    split         the sequence has to be cut along l
    replayed      every candidate ran as a CUDA graph; where one could not, `unreplayed` says why none did
    """

    RATES: ClassVar[tuple[str, ...]] = ("exp2_seconds", "byte_seconds")

    byte_seconds: float
    bytes: int
    split: bool
    replayed: bool
    unreplayed: str = ""

    @property
    def metric(self) -> str:
        return (REPLAY if self.replayed else METRICS)[self.backward]

    @property
    def special_functions(self) -> int:
        """exp(ΔA) for each state, softplus and silu two each; the backward pass, which finds no decays kept, again."""
        each = 2 * self.shape.n + 6 if self.split else self.shape.n + 4
        return self.shape.b * self.shape.l * self.shape.d * each * (1 + self.backward)

    @property
    def bytes_ms(self) -> float:
        return 1e3 * self.bytes * self.byte_seconds

    @property
    def floor_ms(self) -> float:
        """What takes longer at this GPU's best: the special functions, or the bytes."""
        return max(1e3 * self.special_functions * self.exp2_seconds, self.bytes_ms)

    def floors(self) -> dict[str, Any]:
        each = "2n+6 (b·d is so small that l has to be split)" if self.split else "n+4"
        reason = f"timed call by call, as a CUDA graph can't hold it ({self.unreplayed})"
        rates = f"{1 / self.exp2_seconds:.3g}/s and {1e-12 / self.byte_seconds:.3g} TB/s at best in this run"
        return {
            "floor": self.floor_ms,
            "floor_is": f"the longer of the special functions, {each} for each (b, l, d) and as many again for the "
            f"backward pass, and the bytes, at {rates}",
            "bytes_ms": self.bytes_ms,
            "bytes": self.bytes,
            "special_functions": self.special_functions,
        } | ({"what": reason} if self.unreplayed else {})
