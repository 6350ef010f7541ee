"""Train a tiny model in processes that are killed (SIGKILL) until one comes through; prints how many were killed.

usage: train_kills.py FOLDER SEED
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mambalab.models.registry import MambaConfig
from mambalab.tasks import InductionHeads, run_files
from mambalab.tasks.recipes import Optimiser, Recipe
from mambalab.tasks.train import Result, train

MODEL = MambaConfig(d_model=8, n_layer=1, vocab_size=8, d_state=2, tie_embeddings=False)
TINY = Recipe(
    task=InductionHeads(length=6, vocab_size=8),
    model=MODEL,
    optimiser=Optimiser(warmup=20, decay="cosine", clip=1.0),
    steps=240,
    batch_size=2,
    curriculum=((60, 4),),
    log_every=4,
    evaluate_every=40,
    checkpoint_every=12,
    sequences=16,
)
# The definition: it starts no threads, so that a process may fork after it.
BACKEND = "reference"
KILLS = 10
TIMES = ("seconds", "steps_per_second")


def run(out: Path, recipe: Recipe = TINY, **changes: Any) -> Result:
    """Train it here."""
    return train(recipe, out, backend=BACKEND, **changes)


def outcome(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The weights, and the log without what depends on the clock."""
    lines = run_files.read_log(folder)
    kept = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return (folder / run_files.MODEL).read_bytes(), kept


def attempt(folder: Path, delay: float | None) -> bool:
    """Whether a process of its own, killed after so many seconds, came to the end of the training."""
    child = os.fork()
    if child == 0:
        train(TINY, folder, backend=BACKEND)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    moments = random.Random(seed)
    killed = 0
    for _ in range(KILLS):
        # Until it has trained for a while, where the machine allows: most kills are to fall on a run half done.
        killed += not attempt(folder, moments.uniform(0.02, 0.3))
    attempt(folder, None)
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
