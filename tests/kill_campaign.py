"""Kill evaluations at random moments, fill their disk, start them twice, and compare every byte with undisturbed runs.

    make kill-campaign        or        python tests/kill_campaign.py --kills 50 --seed 0 --out FOLDER

Each start is a process that gets the same command: for the kills a fork of this one, which has imported what the
command needs, but every fifth time and for all else a fresh interpreter. A kill comes at a random moment of the
start-up, or when a random share of the answers is stored or of the result files written, and a few milliseconds more.
FOLDER gets records.jsonl and the table made from it; the exit status is 1 where a byte differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import campaign_faults as faults
from campaign_runs import (
    AFTER,
    SCORING,
    START,
    WRITING,
    Case,
    Forked,
    Outcome,
    finish,
    phase,
    start,
    state,
    stored,
    undisturbed,
    watch,
    written,
)
from mambalab.harness import bench
from mambalab.harness.demo import MINIATURE, write_checkpoints
from mambalab.harness.provenance import provenance
from mambalab.harness.task_files import TASKS
from mambalab.reports.record import Record
from resume_tasks import write_tasks

# Most kills where most of the time goes in earnest.
AIMS = {START: 1, SCORING: 5, WRITING: 4}
LATE_SECONDS = 0.004


def kill_once(case: Case, folder: Path, aim: str, fresh: bool, random_: random.Random) -> str | None:
    """Start the command and kill it about then; the phase that its run was in, None where it had ended."""
    run = random_.choice([run for run in case.stored if phase({}, state(folder, run)) != AFTER])
    before = state(folder, run)
    enough = stored(before) + random_.uniform(0, 0.6) * (case.stored[run] - stored(before))
    files_enough = random_.randint(1, sum(name.startswith(run) for name in case.undisturbed))
    process = start(case, folder) if fresh else Forked(case.arguments, folder)
    if aim == START:
        time.sleep(random_.uniform(0, case.seconds / (2 if fresh else 20)))
    else:
        for now in watch(process, folder, run):
            reached = phase(before, now)
            if reached == AFTER or (aim == SCORING and stored(now) >= enough and stored(now) != stored(before)):
                break
            if reached == WRITING and (aim == SCORING or written(before, now) >= files_enough):
                break
        time.sleep(random_.uniform(0, LATE_SECONDS))
    process.kill()
    if process.wait() != -signal.SIGKILL:
        return None
    return phase(before, state(folder, run))


def kills(case: Case, folder: Path, wanted: int, random_: random.Random) -> Outcome:
    """Kill `wanted` processes, a few to a run, and let each run finish then."""
    outcome = Outcome()
    left = wanted
    while left:
        place = folder / f"{case.name}-{outcome.runs}"
        place.mkdir()
        aims = random_.choices(list(AIMS), list(AIMS.values()), k=min(left, random_.randint(3, 7)))
        # Once it writes, a run has nothing left to score.
        for aim in sorted(aims, key=WRITING.__eq__):
            found = kill_once(case, place, aim, outcome.starts % 5 == 0, random_)
            outcome.starts += 1
            if found is None:
                break
            outcome.kills[found] += 1
            left -= 1
            if all(phase({}, state(place, run)) == AFTER for run in case.stored):
                break
        finish(case, place, None if outcome.runs == 0 else Forked(case.arguments, place))
        outcome.starts += 1
        outcome.compare(case, place)
        print(f"{case.name}: {dict(outcome.kills)}, {outcome.differ} of {outcome.compared} files differ", flush=True)
    return outcome


def cases(folder: Path) -> list[Case]:
    """A Mamba, a GPT-NeoX, and both in one command: the six tasks, sampled generation and rolling likelihood."""
    # In a process of its own: this one must not have computed before it forks.
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        mamba, neox = other.submit(write_checkpoints, folder / "checkpoints").result()
    own = write_tasks(folder / "tasks")
    shared = ["--data", str(MINIATURE), "--offline", "--batch-tokens", "128", "--out", "runs"]
    every = ["--tasks", ",".join([*TASKS, *map(str, own)])]
    few = ["--tasks", ",".join(["piqa", "lambada_openai", str(own[0])])]
    return [
        Case(name="mamba", arguments=["eval", str(mamba), *every, *shared]),
        Case(name="gpt-neox", arguments=["eval", str(neox), *every, *shared]),
        Case(name="both", arguments=["eval", str(mamba), str(neox), *few, *shared]),
    ]


def records(found: Mapping[tuple[str, str], Outcome], by_name: Mapping[str, Case], seed: int) -> Iterator[Record]:
    """For each case and disturbance: starts, files compared and differing, and kills by phase; n is the runs."""
    for (name, what), outcome in found.items():
        counts = {"starts": outcome.starts, "files compared": outcome.compared, "files that differ": outcome.differ}
        if outcome.kills:
            counts |= {"kills": outcome.kills.total()} | {
                f"in {part}": count for part, count in sorted(outcome.kills.items())
            }
        ran = [json.loads(text) for path, text in by_name[name].undisturbed.items() if path.endswith("provenance.json")]
        origin = provenance(
            backend=", ".join(sorted({run["backend"] for run in ran})),
            kernel=next((run["kernel"] for run in ran if run["kernel"]), None),
            device="cpu",
            dtype="float32",
            command="make kill-campaign",
        )
        for metric, value in counts.items():
            yield Record(
                experiment="kill-campaign",
                model=name,
                task=what,
                metric=metric,
                value=value,
                n=outcome.runs,
                setting={"seed": seed},
                provenance=origin,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    random_ = random.Random(given.seed)
    found: dict[tuple[str, str], Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="mambalab-kills-") as name:
        folder = Path(name)
        chosen = cases(folder)
        shares = [given.kills * share // 10 for share in (4, 4)]
        for case, share in zip(chosen, [*shares, given.kills - sum(shares)], strict=True):
            undisturbed(case, folder / f"{case.name}-undisturbed")
            print(f"{case.name}: {len(case.undisturbed)} files, {case.seconds:.1f} s, stored {case.stored}", flush=True)
            found[case.name, "SIGKILL at random moments"] = kills(case, folder, share, random_)
        mamba, neox, _ = chosen
        for case, what, disturb in (
            (mamba, "RLIMIT_FSIZE", faults.file_size_limits),
            (neox, "RLIMIT_FSIZE", faults.file_size_limits),
            (mamba, "a full file system", faults.full_file_system),
            (mamba, "/dev/full for output", faults.full_output),
            (mamba, "/dev/full for a file", faults.full_device),
            (mamba, "a second process", faults.two_processes),
        ):
            outcome = disturb(case, folder)
            if outcome is None:
                print(f"{what}: none can be mounted here")
            else:
                found[case.name, what] = outcome
    made = list(records(found, {case.name: case for case in chosen}, given.seed))
    print(bench.write(given.out, "Evaluations killed and started again", made))
    sys.exit(any(outcome.differ for outcome in found.values()))


if __name__ == "__main__":
    main()
