"""`mambalab bench model`: a training step, a forward pass, a million tokens, checked, then timed beside peers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..ext import backends
from ..models.registry import MambaConfig, mamba_config
from ..reports.record import Record
from . import bench, bench_long
from .bench import OURS, RedCheck, Times, allow
from .bench_inputs import relative_error
from .bench_model_peers import PEERS, US, Network, drawn, our_network
from .bench_peers import Peer
from .provenance import provenance

# Largest relative error, ||x - exact|| / ||exact|| over a whole tensor.
TOLERANCES = {"logits": 1e-5, "loss": 1e-6, "gradient": 1e-4}
LEARNING_RATE = 1e-3
SHORT = 64  # tokens a row of the call from which a peer's time is foretold


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one call computes.

    metric    with its unit; a rate is calls a second
    what      the same in words
    last      logits, and so the loss, at each row's last position alone
    backward  gradients of every parameter, too
    step      and a step of the optimiser
    """

    config: MambaConfig
    name: str
    batch: int
    length: int
    metric: str
    what: str
    last: bool = False
    backward: bool = False
    step: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.batch} x {self.length}"


SMALL = MambaConfig(d_model=64, n_layer=2, vocab_size=16, dt_rank=16, tie_embeddings=False)
SMALL_NAME = "2 layers, d_model 64"
TRAINING = Workload(
    config=SMALL,
    name=SMALL_NAME,
    batch=8,
    length=256,
    metric="training steps/s",
    what="forward, cross-entropy at each row's last position, backward, and AdamW (torch's fused one, on every side)",
    last=True,
    backward=True,
    step=True,
)
FORWARD = Workload(
    config=mamba_config("mamba-130m"),
    name="mamba-130m",
    batch=1,
    length=512,
    metric="forward s",
    what="logits at every position, no gradients",
)
BACKWARD = Workload(
    config=FORWARD.config,
    name=FORWARD.name,
    batch=1,
    length=512,
    metric="forward+backward s",
    what="logits at every position, their mean cross-entropy, and the gradient of every parameter",
    backward=True,
)
CASES = ("training", "forward", "long")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    cases         names among CASES
    backward      "forward" is measured with its backward pass, too
    length        tokens of "long"
    repeats       rounds of measurement; None adapts, at least 3
    call_seconds  a peer whose one call would take longer is left out
    """

    cases: tuple[str, ...] = CASES
    backward: bool = False
    peers: bool = False
    length: int = 2**20
    repeats: int | None = None
    call_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.cases or len(set(self.cases)) != len(self.cases):
            raise ValueError(f"cases must be given, each once, not {', '.join(self.cases) or 'none'}")
        for case in self.cases:
            if case not in CASES:
                near = difflib.get_close_matches(case, CASES)
                raise ValueError(f"unknown case {case!r}; {'nearest' if near else 'known'}: {', '.join(near or CASES)}")
        if self.backward and "forward" not in self.cases:
            raise ValueError("a backward pass is measured with the case forward, which is not among the cases")
        if self.length < 1:
            raise ValueError(f"length must be at least 1, not {self.length}")
        if self.repeats is not None and self.repeats < 3:
            raise ValueError(f"repeats must be at least 3, not {self.repeats}")

    def workloads(self) -> tuple[Workload, ...]:
        """What is to be timed in this process."""
        forward = (FORWARD, BACKWARD) if self.backward else (FORWARD,)
        return (TRAINING,) * ("training" in self.cases) + forward * ("forward" in self.cases)


def run(settings: Settings, *, command: str = "", say: Callable[[str], None] = lambda line: None) -> list[Record]:
    """Check and time every case; the records of all. RedCheck, before its speed is known, where ours is wrong."""
    backend = backends.pick("cpu").name
    origin = provenance(
        backend=backend, kernel=backends.kernel_digest(backend), device="cpu", dtype="float32", command=command
    )
    records: list[Record] = []
    # First, while this process has made no caches and threads that the fresh one would have to share the machine with.
    if "long" in settings.cases:
        long = bench_long.measure(
            bench_long.Asked(
                config=asdict(SMALL),
                length=settings.length,
                repeats=settings.repeats or bench_long.REPEATS,
                seed=settings.seed,
            ),
            SMALL_NAME,
            peers=settings.peers,
            call_seconds=settings.call_seconds,
        )
        say(long.line())
        records += long.records(origin)
    for workload in settings.workloads():
        measured = measure(workload, settings)
        say(measured.line())
        records += measured.records(settings, origin)
    return records


def draw(workload: Workload, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens, and the labels of the logits that are asked for."""
    random, vocabulary = Generator().manual_seed(seed), workload.config.vocab_size
    shape = (workload.batch, workload.length)
    tokens = torch.randint(vocabulary, shape, generator=random)
    return tokens, torch.randint(vocabulary, shape[: 1 if workload.last else 2], generator=random)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a call computed; the gradients by our parameters' names, empty where none were asked for."""

    logits: Tensor
    loss: Tensor
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network with the data it is checked and timed on."""

    network: Network
    workload: Workload
    tokens: Tensor
    labels: Tensor

    def loss(self) -> tuple[Tensor, Tensor]:
        """Logits and their mean cross-entropy."""
        logits = self.network.logits(self.tokens, self.workload.last)
        return logits, F.cross_entropy(logits.flatten(0, -2), self.labels.flatten())

    def find(self) -> Found:
        """Everything that the workload asks for; no parameter changes."""
        with torch.set_grad_enabled(self.workload.backward):
            logits, loss = self.loss()
        names, parameters = zip(*self.network.parameters.items(), strict=True)
        gradients = torch.autograd.grad(loss, parameters) if self.workload.backward else ()
        found = dict(zip(names, gradients, strict=bool(gradients)))
        return Found(logits=logits.detach(), loss=loss.detach(), gradients=found)

    def call(self) -> bench.Call:
        """What is timed."""
        if not self.workload.backward:
            return torch.no_grad()(partial(self.network.logits, self.tokens, self.workload.last))
        if not self.workload.step:
            return self.find
        parameters = list(self.network.parameters.values())
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

        def step() -> None:
            self.loss()[1].backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    def first(self, length: int) -> Candidate:
        """The same network on the first tokens of each row."""
        labels = self.labels if self.workload.last else self.labels[:, :length]
        return Candidate(network=self.network, workload=self.workload, tokens=self.tokens[:, :length], labels=labels)


def check(name: str, candidate: Candidate, wanted: Found) -> float:
    """The largest relative error of logits, loss and gradients; RedCheck for one beyond its tolerance."""
    found = candidate.find()
    errors = {
        "logits": relative_error(found.logits, wanted.logits),
        "loss": relative_error(found.loss, wanted.loss),
    }
    if found.gradients.keys() != wanted.gradients.keys():
        raise RedCheck(f"{name}: its parameters are not ours")
    for parameter, gradient in wanted.gradients.items():
        errors[f"gradient of {parameter}"] = relative_error(found.gradients[parameter], gradient)
    for what, size in errors.items():
        allowed = TOLERANCES[what.split()[0]]
        if not size <= allowed:
            raise RedCheck(f"{name}: relative error of the {what} {size:.1e}, at most {allowed:g} is allowed")
    return max(errors.values())


def why_not(peer: Peer, candidate: Candidate, call_seconds: float) -> None:
    """Raise LeftOut for a peer that, by a short call, is too slow."""
    length = candidate.workload.length
    short = min(SHORT, length)
    # The first call of all pays for what libraries put off until then.
    candidate.first(min(2, length)).find()
    growth = peer.growth[candidate.workload.backward]
    allow(bench.seconds(candidate.first(short).find) * (length / short) ** growth, call_seconds)


def measure(workload: Workload, settings: Settings) -> Measured:
    """One workload: checks first, then every candidate in turn."""
    rows = {row.name: row for row in (US, *(PEERS if settings.peers else ()))}
    missing = {name: reason for name, row in rows.items() if (reason := row.missing())}
    present = [row for name, row in rows.items() if name not in missing]
    candidates, errors, absent = _admitted(workload, present, settings)
    return Measured(
        workload=workload,
        rows=tuple(rows[name] for name in candidates),
        errors=errors,
        absent=missing | absent,
        times=bench.interleave({name: found.call() for name, found in candidates.items()}, repeats=settings.repeats),
    )


def _admitted(
    workload: Workload, rows: Sequence[Peer], settings: Settings
) -> tuple[dict[str, Candidate], dict[str, float], dict[str, str]]:
    """The candidates that are right and quick enough, their errors, and why each other is left out.

    The exact results and the weights of the others are gone before anything is timed.
    """
    model, (tokens, labels) = drawn(workload.config, settings.seed), draw(workload, settings.seed)

    def candidate(network: Network) -> Candidate:
        return Candidate(network=network, workload=workload, tokens=tokens, labels=labels)

    candidates = {row.name: candidate(row.load()(model)) for row in rows}
    wanted = candidate(our_network(model, backend="reference", dtype=torch.float64)).find()
    errors, absent = bench.admit(
        {name: partial(check, name, found, wanted) for name, found in candidates.items()},
        limits={
            row.name: partial(why_not, row, candidates[row.name], settings.call_seconds)
            for row in rows
            if row.name != OURS
        },
        call_seconds=settings.call_seconds,
        place=f"{workload}, {workload.metric}",
    )
    return {name: candidates[name] for name in errors}, errors, absent


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one workload gave.

    errors  largest relative error of each candidate against float64
    absent  why each other peer was left out
    """

    workload: Workload
    rows: tuple[Peer, ...]
    errors: dict[str, float]
    absent: dict[str, str]
    times: dict[str, Times]

    def line(self) -> str:
        """One line for a person."""
        mine = self.times[OURS].median
        ratios = bench.ratios(self.times, (row.name for row in self.rows))
        unit = self.workload.metric.rsplit(" ", 1)[-1]
        parts = [f"{self.value(mine):.3g} {unit}", *ratios]
        return f"{self.workload} {self.workload.metric.removesuffix(unit).strip()}: {', '.join(parts)}"

    def value(self, seconds: float) -> float:
        """A call's length in the metric's own unit."""
        return 1 / seconds if self.workload.metric.endswith("/s") else seconds

    def records(self, settings: Settings, origin: dict[str, Any]) -> Iterator[Record]:
        w = self.workload
        for row in self.rows:
            times, mine = self.times[row.name], row.name == OURS
            setting = {
                "config": asdict(w.config),
                "parameters": w.config.n_parameters,
                "batch": w.batch,
                "length": w.length,
                "dtype": "float32",
                "timed": row.timed,
                "error": self.errors[row.name],
                "best": self.value(times.best),
            }
            yield Record(
                experiment="bench-model",
                model=row.name,
                task=str(w),
                metric=w.metric,
                setting=setting | ({"what": w.what, "left_out": self.absent} if mine else {}),
                seed=settings.seed,
                value=self.value(times.median),
                n=len(times.seconds),
                provenance=origin if mine else row.provenance(origin),
            )
