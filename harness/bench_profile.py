"""`mambalab bench profile`: where our own time goes in the calls that `bench model` times, part by part."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from . import bench
from .bench_model import Candidate, Workload, draw
from .bench_model_peers import drawn, our_network

# The first pattern that an operation's name, or the nearest of those around it, holds.
PARTS = (
    ("scan, backward", r"selective_scan_backward|selective_scan\w*Backward$"),
    ("scan", r"selective_scan"),
    ("convolution, backward", r"causal_conv1d_backward|causal_conv1d\w*Backward$"),
    ("convolution", r"causal_conv1d"),
    # On a CPU the norm is a composite, and nothing else of the model differentiates these.
    ("norm, backward", r"rms_norm_backward|RmsNormBackward|(Mul|Pow|Mean|Rsqrt)Backward"),
    ("norm", r"rms_norm"),
    ("cross-entropy, both ways", r"cross_entropy|nll_loss|NllLoss|log_softmax|LogSoftmax"),
    ("matrix products, backward", r"MmBackward"),
    ("matrix products", r"aten::(linear|matmul)$"),
    ("split, backward: halves and thirds joined", r"Split\w*Backward"),
    ("embedding, both ways", r"[eE]mbedding"),
    ("optimiser", r"Optimizer|adamw"),
    ("gradients, kept", r"AccumulateGrad"),
)
REST, BETWEEN = "other operations", "between operations: Python, autograd"
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a call: its seconds, and how many of torch's operations it is made of."""

    name: str
    seconds: float
    operations: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where a call's time goes, parts in falling order; `seconds` is the median without the profiler's own cost."""

    workload: Workload
    seconds: float
    parts: tuple[Part, ...]

    def markdown(self) -> str:
        """The parts as a table."""
        total = sum(part.seconds for part in self.parts)
        lines = [
            f"{self.workload}, {self.workload.metric.rsplit(' ', 1)[0]}: {1e3 * self.seconds:.4g} ms a call, "
            f"{1e3 * total:.4g} ms under the profiler",
            "",
            "| Part | ms | Share | Operations |",
            "|:--|--:|--:|--:|",
        ]
        for part in self.parts:
            lines.append(f"| {part.name} | {1e3 * part.seconds:.3g} | {part.seconds / total:.1%} | {part.operations} |")
        return "\n".join(lines) + "\n"


def run(workload: Workload, *, rounds: int = ROUNDS, seed: int = 0) -> Profile:
    """Profile our own model, with the weights and data of `bench model`."""
    tokens, labels = draw(workload, seed)
    network = our_network(drawn(workload.config, seed))
    call = Candidate(network=network, workload=workload, tokens=tokens, labels=labels).call()
    times = bench.interleave({bench.OURS: call}, repeats=rounds)[bench.OURS]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        whole = sum(bench.seconds(call) for _ in range(rounds))
    parts = divide(profiled.events() or (), whole, rounds)
    return Profile(workload=workload, seconds=times.median, parts=parts)


def divide(events: Iterable[Any], whole: float, rounds: int) -> tuple[Part, ...]:
    """The parts of one call, from the events of `rounds` of them that took `whole` seconds together."""
    seconds, operations = defaultdict[str, float](float), Counter[str]()
    for event in events:
        name = part_of(event)
        # In microseconds, and without what is called inside.
        seconds[name] += event.self_cpu_time_total / 1e6
        operations[name] += 1
    seconds[BETWEEN] = max(0.0, whole - sum(seconds.values()))
    parts = [
        Part(name=name, seconds=spent / rounds, operations=operations[name] // rounds)
        for name, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return tuple(parts)


def part_of(event: Any) -> str:
    """The part that an operation belongs to: its own, or that of the nearest operation around it that has one."""
    while event is not None:
        for name, pattern in PARTS:
            if re.search(pattern, event.name):
                return name
        event = event.cpu_parent
    return REST
