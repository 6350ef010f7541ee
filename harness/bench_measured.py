"""What timing one scan gave, on any device: its floor, its line for a person, its records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..reports.record import Record
from .bench import OURS, Times, ratios
from .bench_inputs import KINDS, Shape
from .bench_peers import Peer

if TYPE_CHECKING:
    from .bench_scan import Settings

EXP2, BYTES = "exp2 in registers", "a copy of as many bytes"
METRICS = ("forward ms", "forward+backward ms")

Errors = dict[str, float]  # relative error against float64: of "output", and of "gradient of u" and so on


def moved(shape: Shape, item: int, backward: bool) -> int:
    """Bytes that must cross memory: u, delta, z, B, C and y once; backward, all of them and their gradients."""
    whole, states = shape.b * shape.l * shape.d, shape.b * shape.l * shape.n
    forward = 4 * whole + 2 * states
    again = 3 * whole + 2 * states + whole + 3 * whole + 2 * states
    return item * (forward + (again if backward else 0))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one shape and direction gave.

    errors        of each candidate's results against float64, over the first `checked` steps
    absent        why each other peer was left out
    exp2_seconds  of one exponential, on the whole device, at its best in the run: a disturbance can only raise it
    """

    RATES: ClassVar[tuple[str, ...]] = ("exp2_seconds",)  # which depend on no shape

    shape: Shape
    backward: bool
    peers: tuple[Peer, ...]
    errors: dict[str, Errors]
    absent: dict[str, str]
    checked: int
    times: dict[str, Times]
    exp2_seconds: float

    @property
    def metric(self) -> str:
        return METRICS[self.backward]

    @property
    def floor_ms(self) -> float:
        """An exponential for each (b, l, d, n): each decay exp(ΔA) must be computed once, in either direction."""
        return 1e3 * self.shape.elements * self.exp2_seconds

    def floors(self) -> dict[str, Any]:
        """What the record of ours says of the limits."""
        rate = f"{1e9 * self.exp2_seconds:.3g} ns at best in this run"
        return {
            "floor": self.floor_ms,
            "floor_is": f"an exp2 in registers for each (b, l, d, n), {rate}",
            "bytes_ms": 1e3 * self.times[BYTES].best,
        }

    def line(self) -> str:
        """One line for a person."""
        mine = 1e3 * self.times[OURS].median
        beside = ratios(self.times, (peer.name for peer in self.peers))
        parts = [f"{mine:.3g} ms", f"{mine / self.floor_ms:.3g}x the floor", *beside]
        return f"{' '.join(filter(None, (str(self.shape), self.shape.dtype, self.metric)))}: {', '.join(parts)}"

    def records(self, settings: Settings, origin: dict[str, Any]) -> Iterator[Record]:
        for peer in self.peers:
            times, mine = self.times[peer.name], peer.name == OURS
            errors = dict(self.errors[peer.name])
            setting = asdict(self.shape) | {
                "dtype": settings.dtype_of(self.shape),
                "timed": peer.timed,
                "error": errors.pop("output"),
                "gradient_error": max(errors.values(), default=None),
                "checked": self.checked,
                "best": 1e3 * times.best,
                "ns": 1e9 * times.median / self.shape.elements,
                "inputs": settings.inputs,
                "inputs_are": KINDS[settings.inputs],
            }
            yield Record(
                experiment="bench-scan",
                model=peer.name,
                task=str(self.shape),
                metric=self.metric,
                setting=setting | ({**self.floors(), "left_out": self.absent} if mine else {}),
                seed=settings.seed,
                value=1e3 * times.median,
                n=len(times.seconds),
                provenance=origin if mine else peer.provenance(origin),
            )
