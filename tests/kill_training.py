"""Kill trainings at random moments and compare the weights that come out with those of an undisturbed one.

    make kill-training        or        python tests/kill_training.py --kills 10 --seed 0 --device cpu --out FOLDER

Every start is a fresh `mambalab train` with the same command. A kill comes a random share of an undisturbed start after
it began, be it in start-up, in a step, or in the writing of a checkpoint; after the last one the run may end.
FOLDER gets records.jsonl and the table made from it; the exit status is 1 where a byte of the weights, of the last
checkpoint, or of what the log says of losses and accuracies differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mambalab.ext import backends
from mambalab.harness import bench
from mambalab.harness.provenance import provenance
from mambalab.reports.record import Record
from mambalab.tasks import run_files

TIMES = ("seconds", "steps_per_second")
QUICK = ["induction-heads-quick", "--set", "steps=1500", "--set", "optimiser.decay_steps=500"]


def start(arguments: list[str], out: Path) -> subprocess.Popen[bytes]:
    """`mambalab train` into `out`, and what it says into a file beside it."""
    said = out.with_suffix(".txt").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "mambalab.harness", "train", *arguments, "--out", str(out)], stdout=said, stderr=said
    )


def result(folder: Path) -> dict[str, object]:
    """All of a finished run that must not depend on how often it was started."""
    log = [{key: value for key, value in line.items() if key not in TIMES} for line in run_files.read_log(folder)]
    last, *_ = run_files.checkpoints(folder)
    return {
        "the log but its times": log,
        run_files.MODEL: (folder / run_files.MODEL).read_bytes(),
        last.name: last.read_bytes(),
    }


def kill(process: subprocess.Popen[bytes], after: float) -> bool:
    """SIGKILL after so many seconds; False for a process that had ended by then."""
    time.sleep(after)
    process.kill()
    return process.wait() == -signal.SIGKILL


def finished(process: subprocess.Popen[bytes], out: Path) -> None:
    if process.wait():
        raise SystemExit(f"{out}: the training ended with {process.returncode}: {out.with_suffix('.txt').read_text()}")


def disturbed(arguments: list[str], folder: Path, kills: int, seconds: float, random_: random.Random) -> Counter[str]:
    """Kill starts of runs until there are so many kills, and let every run end; what differs, and how it went."""
    counts: Counter[str] = Counter(starts=0, kills=0, runs=0)
    wanted = result(folder / "undisturbed")
    while counts["kills"] < kills:
        out = folder / f"run-{counts['runs']}"
        for _ in range(random_.randint(3, 6)):
            before = run_files.last_step(out)
            counts["starts"] += 1
            if counts["kills"] == kills or not kill(start(arguments, out), random_.uniform(0, seconds)):
                break
            counts["kills"] += 1
            counts["kills that a checkpoint came before"] += run_files.last_step(out) > before
        finished(start(arguments, out), out)
        counts["starts"] += 1
        found = result(out)
        counts["files compared"] += len(wanted)
        differing = [name for name, content in wanted.items() if found.get(name) != content]
        counts["files that differ"] += len(differing)
        counts["runs"] += 1
        print(dict(counts), *differing, flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("training", nargs="*", default=QUICK, help="arguments of `mambalab train`, after --")
    given = parser.parse_args()
    arguments = [*given.training, "--device", given.device]
    with tempfile.TemporaryDirectory(prefix="mambalab-kills-") as name:
        folder = Path(name)
        begun = time.perf_counter()
        finished(start(arguments, folder / "undisturbed"), folder / "undisturbed")
        seconds = time.perf_counter() - begun
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        counts = disturbed(arguments, folder, given.kills, seconds, random.Random(given.seed))
    backend = backends.pick(given.device).name
    command = " ".join(["python tests/kill_training.py", *sys.argv[1:]])
    origin = provenance(
        backend=backend, kernel=backends.kernel_digest(backend), device=given.device, dtype="float32", command=command
    )
    runs = counts.pop("runs")
    made = [
        Record(
            experiment="kill-training",
            model="mamba",
            task="SIGKILL at random moments",
            metric=metric,
            setting={"training": " ".join(given.training)},
            seed=given.seed,
            value=float(value),
            n=runs,
            provenance=origin,
        )
        for metric, value in counts.items()
    ]
    print(bench.write(given.out, "Trainings killed and started again", made))
    sys.exit(bool(counts["files that differ"]))


if __name__ == "__main__":
    main()
