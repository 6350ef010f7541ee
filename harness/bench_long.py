"""The long case of `mambalab bench model`: a sequence in chunks, its seconds and peak memory in a fresh process."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ..models import State
from ..models.chunks import CHUNK, run_in_chunks
from ..models.registry import MambaConfig
from ..reports.record import Record
from . import bench
from .bench import OURS, LeftOut, RedCheck, allow
from .bench_inputs import relative_error
from .bench_model_peers import PEERS, US, drawn
from .bench_peers import Peer

REPEATS = 3
CHECKED = 4096  # tokens of the sequence that is held against float64 and against one pass
PIECES = 5  # chunks of that sequence, the last of them shorter
TOLERANCE = 1e-5  # largest relative error of the logits and of each state
SHORT = 2**14  # tokens of the run from which a peer's time is foretold
METRICS = ("chunked forward s", "peak memory GB")
WHAT = "one row in chunks of {chunk} with carried state, logits after the last token; read by a process of its own"
CARRIES = {"torch loop": "reference"}  # the peers that carry a state, and the backend that they are
STATELESS = "its pass over many tokens starts from no state, so it can't go chunk by chunk"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a fresh process is to run; plain JSON."""

    config: dict[str, Any]
    length: int
    repeats: int
    seed: int
    backend: str | None = None
    chunk: int = CHUNK
    threads: int = field(default_factory=torch.get_num_threads)


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What a fresh process found.

    seconds  of each run
    peak     bytes that the process held in memory at most; `before` the first run, those it held
    error    largest relative error, against float64 and against one pass, of a shorter sequence
    """

    seconds: tuple[float, ...]
    peak: int
    before: int
    error: float


def measure(asked: Asked, name: str, *, peers: bool, call_seconds: float) -> Measured:
    """Ours, and with `peers` every peer that can carry a state. RedCheck where ours is wrong."""
    us = in_fresh_process(asked)
    absent, found = {}, {OURS: us}
    for peer in PEERS if peers else ():
        try:
            found[peer.name] = _peer(peer, asked, call_seconds)
        except (LeftOut, RedCheck) as reason:
            absent[peer.name] = str(reason)
    return Measured(asked=asked, name=name, found=found, absent=absent)


def _peer(peer: Peer, asked: Asked, call_seconds: float) -> Alone:
    if peer.name not in CARRIES:
        raise LeftOut(STATELESS)
    other = replace(asked, backend=CARRIES[peer.name])
    short = min(SHORT, asked.length)
    (once,) = in_fresh_process(replace(other, length=short, repeats=1)).seconds
    allow(once * asked.length / short, call_seconds)
    return in_fresh_process(other)


def in_fresh_process(asked: Asked) -> Alone:
    """Check and run in a new interpreter: what this one has imported and held does not count there."""
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=json.dumps(asdict(asked)), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{asked.length} tokens: the process that read them ended with {done.returncode}: {last}")
    answer = json.loads(done.stdout)
    if "red" in answer:
        raise RedCheck(f"{asked.length} tokens: {answer['red']}; no speed is printed")
    return Alone(**answer | {"seconds": tuple(answer["seconds"])})


def alone(asked: Asked) -> Alone:
    """What `in_fresh_process` runs there."""
    torch.set_num_threads(asked.threads)
    config = MambaConfig(**asked.config)
    error = check(config, min(CHECKED, asked.length), asked.seed, asked.backend)
    model = drawn(config, asked.seed)
    model.backend = asked.backend
    tokens = draw(config, asked.length, asked.seed)
    before = memory()[0]
    seconds = [bench.seconds(lambda: run_in_chunks(model, tokens, chunk=asked.chunk)) for _ in range(asked.repeats)]
    return Alone(seconds=tuple(seconds), peak=memory()[1], before=before, error=error)


def draw(config: MambaConfig, length: int, seed: int) -> Tensor:
    """Random tokens (1 l) in the narrowest dtype, since they are all that grows with the length."""
    dtype = torch.uint8 if config.vocab_size <= 256 else torch.int32
    return torch.randint(config.vocab_size, (1, length), dtype=dtype, generator=Generator().manual_seed(seed))


def check(config: MambaConfig, length: int, seed: int, backend: str | None) -> float:
    """The largest relative error of chunks, against one pass and against float64: logits and every state."""
    model, tokens = drawn(config, seed), draw(config, length, seed)
    model.backend = backend
    found = _flat(*run_in_chunks(model, tokens, chunk=length // PIECES + 1))
    last = torch.tensor([length - 1])
    with torch.no_grad():
        once = _flat(*model(tokens.long(), logits_at=last))
        model.double().backend = "reference"
        exact = _flat(*model(tokens.long(), logits_at=last))
    error = 0.0
    for against, wanted in (("one pass", once), ("float64", exact)):
        for what, tensor in wanted.items():
            error = max(error, size := relative_error(found[what], tensor.double()))
            if not size <= TOLERANCE:
                raise RedCheck(f"chunks of {length} tokens differ from {against}: relative error of {what} {size:.1e}")
    return error


def _flat(logits: Tensor, state: State) -> dict[str, Tensor]:
    states = {
        f"the {kind} state of layer {i}": s for kind in ("conv", "scan") for i, s in enumerate(getattr(state, kind))
    }
    return {"the logits": logits, **states}


def memory() -> tuple[int, int]:
    """Bytes of this process in memory: now and at most so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        text = status.read_text()
        # ru_maxrss would start from the parent's, whose memory a fork or vfork shares until the new program starts.
        now, most = (int(re.findall(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[0]) for key in ("VmRSS", "VmHWM"))
        return now * 1024, most * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the long case gave, by implementation, and why each other peer was left out."""

    asked: Asked
    name: str
    found: dict[str, Alone]
    absent: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name}, 1 x {self.asked.length}"

    def line(self) -> str:
        """One line for a person."""
        mine = self.found[OURS]
        return f"{self} in chunks: {statistics.median(mine.seconds):.3g} s, {mine.peak / 1e9:.3g} GB at most"

    def records(self, origin: dict[str, Any]) -> Iterator[Record]:
        rows = {row.name: row for row in (US, *PEERS)}
        for name, found in self.found.items():
            mine = name == OURS
            setting = {
                "config": self.asked.config,
                "length": self.asked.length,
                "chunk": self.asked.chunk,
                "dtype": "float32",
                "timed": rows[name].timed,
                "error": found.error,
                "best": min(found.seconds),
                "memory_before": found.before / 1e9,
            }
            notes = {"what": WHAT.format(chunk=self.asked.chunk), "left_out": self.absent} if mine else {}
            for metric, value in zip(METRICS, (statistics.median(found.seconds), found.peak / 1e9), strict=True):
                yield Record(
                    experiment="bench-model",
                    model=name,
                    task=str(self),
                    metric=metric,
                    # Said once, beside the time.
                    setting=setting | (notes if metric == METRICS[0] else {}),
                    seed=self.asked.seed,
                    value=value,
                    n=len(found.seconds),
                    provenance=origin if mine else rows[name].provenance(origin),
                )


def main() -> None:
    """Answer one request on standard input, as JSON."""
    try:
        print(json.dumps(asdict(alone(Asked(**json.load(sys.stdin))))))
    except RedCheck as red:
        print(json.dumps({"red": str(red)}))


if __name__ == "__main__":
    main()
