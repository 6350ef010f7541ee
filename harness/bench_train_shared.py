"""Trainings at once on one device, as `ablate --jobs` runs them: how many steps a second they make together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..models import build
from ..reports.record import Record
from ..tasks.recipes import Recipe, to_json
from .bench import OURS, RedCheck
from .bench_train_loop import METRIC, STEPS, Loop, ended, in_calls
from .spawned import Spawned

ROUNDS, SECONDS, MOST = 3, 2.0, 64


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of trainings in a list such as "1,4,10"; ValueError for anything else."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= number <= MOST for number in found):
        raise ValueError(f"--at-once takes numbers from 1 to {MOST} such as 1,4,10, not {text!r}")
    return found


def under_mps() -> bool:
    """Whether a multi-process service waits where processes would look for it."""
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    return Path(folder, "control").exists()


def steps_per_second(recipe: Recipe, device: str, count: int) -> list[float]:
    """Of `count` trainings together, in each of ROUNDS rounds; RedCheck where one of them ends before."""
    with _processes(recipe, device, count) as pipes:
        try:
            _answers(pipes)  # all of them have captured their graphs
            rounds = []
            for _ in range(ROUNDS):
                for pipe in pipes:
                    pipe.send(SECONDS)
                rounds.append(sum(_answers(pipes)))
            return rounds
        except (EOFError, ConnectionResetError):
            raise RedCheck(f"{count} at once: a process ended; what it said is above") from None


def _answers(pipes: Sequence[Connection]) -> list[float]:
    return [pipe.recv() for pipe in pipes]


@contextmanager
def _processes(recipe: Recipe, device: str, count: int) -> Iterator[list[Connection]]:
    threads, processes = max(1, torch.get_num_threads() // count), list[Spawned]()
    try:
        for _ in range(count):
            processes.append(Spawned(_serve, threads, recipe, device))
        yield [process.pipe for process in processes]
    finally:
        for process in processes:
            process.end()


def _serve(pipe: Connection, recipe: Recipe, device: str) -> None:
    """Steps for as many seconds as are asked for, again and again; answers with steps a second."""
    place = torch.device(device)
    loop = Loop(in_calls(recipe), build(recipe.model, seed=recipe.seed), place)
    call = ended(loop.graphs, place)
    call()
    pipe.send(0.0)
    while True:
        seconds, begun, steps = pipe.recv(), time.perf_counter(), 0
        while (taken := time.perf_counter() - begun) < seconds:
            call()
            steps += STEPS
        pipe.send(steps / taken)


def measure(shape: str, recipe: Recipe, device: str, count: int, origin: dict[str, Any]) -> Record:
    """The record of `count` trainings of this recipe at once."""
    found = steps_per_second(recipe, device, count)
    return Record(
        experiment="bench-train",
        model=OURS,
        task=f"{shape}, {count} at once{' under MPS' * (device != 'cpu' and under_mps())}",
        metric=METRIC,
        setting={"recipe": to_json(recipe), "dtype": recipe.matmul, "best": max(found), "at_once": count},
        seed=recipe.seed,
        value=median(found),
        n=len(found),
        provenance=origin,
    )
