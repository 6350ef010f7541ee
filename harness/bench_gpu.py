"""How the work of a GPU is timed: by its own events, with a cold cache, and from a CUDA graph where calls are short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..ext import cuda_launch
from .bench import Call, Timer
from .floor import gpu_exp2_call

FLUSHED = 2**28  # bytes that are written before each call, several times what a second-level cache holds
COPIED = 2**31  # bytes of the copy that gives the memory's rate, read and written together
WARM = 3  # calls before a capture: what is made at first use is made there


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as a benchmark sees it.

    timer   seconds of each of so many calls
    replay  turns a call into the replay of its CUDA graph; RuntimeError for one that no graph can hold
    exp2    a call that does nothing but exponentials, and how many
    copied  bytes of the copy that gives the memory's rate
    """

    device: torch.device
    multiprocessors: int
    timer: Timer
    replay: Callable[[Call], Call]
    exp2: Callable[[], tuple[Call, int]]
    copied: int = COPIED


def here() -> Gpu:
    """The current GPU. ValueError where there is none that torch can use."""
    if not torch.cuda.is_available():
        raise ValueError("no GPU that torch can use (cure: `mambalab doctor` says what is missing)")
    device = torch.device("cuda", torch.cuda.current_device())
    return Gpu(
        device=device,
        multiprocessors=cuda_launch.multiprocessors(device),
        timer=Events(device),
        replay=replayed,
        exp2=lambda: gpu_exp2_call(device),
    )


class Events:
    """A Timer by CUDA events, which see the GPU's time alone; before each call the second-level cache is emptied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(FLUSHED, dtype=torch.int8, device=device)

    def __call__(self, call: Call, count: int) -> list[float]:
        pairs = [(_event(), _event()) for _ in range(count)]
        for start, end in pairs:
            # It also keeps the GPU busy until the call is queued, so that the host's part is not timed.
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(self._device)
        return [1e-3 * start.elapsed_time(end) for start, end in pairs]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def replayed(call: Call) -> Call:
    """The replay of a CUDA graph that holds what a call does. RuntimeError where it can't be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
