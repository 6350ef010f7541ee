"""Kill evaluations at random moments, fill their disk, start them twice, and compare every byte with undisturbed runs.

    make kill-campaign        or        python tests/kill_campaign.py --kills 50 --seed 0 --out FOLDER

Each start is a process of its own with the same command. A kill's phase is read from what that process had changed in
its run directories by then: nothing (start-up), stored answers only (scoring), or result files too (writing). FOLDER
gets records.jsonl and the table made from it; the exit status is 1 where a byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from command import files
from mambalab.ext import backends
from mambalab.harness import bench
from mambalab.harness.demo import MINIATURE, write_checkpoints
from mambalab.harness.provenance import provenance
from mambalab.harness.task_files import TASKS
from mambalab.reports.record import Record
from resume_tasks import write_tasks

START, SCORING, WRITING = "start-up", "scoring", "writing"
# Most kills where most of the time goes in earnest, few among the imports.
AIMS = {START: 1, SCORING: 6, WRITING: 3}
POLL_SECONDS = 0.0005
State = Mapping[str, tuple[int, int, int]]


@dataclass(kw_only=True)
class Case:
    """One command, its undisturbed run, and how long its phases took there (seconds)."""

    name: str
    backend: str
    arguments: list[str]
    undisturbed: dict[str, bytes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Outcome:
    """What came of the runs of one case under one kind of disturbance."""

    starts: int = 0
    runs: int = 0
    compared: int = 0
    differ: int = 0
    kills: Counter[str] = field(default_factory=Counter)

    def compare(self, case: Case, folder: Path) -> None:
        """Count the files of a finished run that are not as undisturbed, missing or left over."""
        found = results(folder)
        self.runs += 1
        self.compared += len(case.undisturbed)
        self.differ += sum(found.get(name) != case.undisturbed.get(name) for name in found.keys() | case.undisturbed)


def results(folder: Path) -> dict[str, bytes]:
    """Every file below runs/, hidden ones too, but for those that hold times."""
    found = {name: folder / "runs" / name for name in files(folder / "runs")}
    return {name: path.read_bytes() for name, path in found.items() if path.name != "times.json"}


def environment() -> dict[str, str]:
    """That of every process started here: its folder is another, so that paths must be whole."""
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def start(case: Case, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Start the case's command in `folder`; its messages go to a file there."""
    command = [sys.executable, "-m", "mambalab.harness", *case.arguments]
    with (folder / "messages").open("w") as messages:
        given: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": messages} | options
        return subprocess.Popen(command, cwd=folder, env=environment(), text=True, **given)


def finish(case: Case, folder: Path) -> None:
    """Run the command to its end."""
    status = start(case, folder).wait()
    if status:
        raise RuntimeError(f"{case.name} ended with {status}: {(folder / 'messages').read_text()[-2000:]}")


def refusal(folder: Path, status: int) -> str:
    """The one line of a refusal, the last of the messages; RuntimeError where it is none."""
    said = (folder / "messages").read_text()
    lines = [line for line in said.splitlines() if line.startswith("mambalab: ")]
    if status != 2 or len(lines) != 1 or "Traceback" in said:
        raise RuntimeError(f"no clean refusal (status {status}): {said[-2000:]}")
    return lines[0]


def state(folder: Path) -> State:
    """Every file of the runs with what tells that it was written: inode, size and time."""
    found = {}
    for place, _, names in os.walk(folder / "runs"):
        for name in names:
            try:
                status = os.stat(os.path.join(place, name))  # noqa: PTH116, PTH118  (hundreds of times a second)
            except FileNotFoundError:
                continue
            found[os.path.join(place, name)] = (status.st_ino, status.st_size, status.st_mtime_ns)  # noqa: PTH118
    return found


def phase(before: State, now: State) -> str:
    """How far a process had come with the model at hand, by what it had changed."""
    changed = {
        name: now.get(name, (0, 0, 0)) for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    }
    if not changed:
        return START
    newest = max(changed, key=lambda name: changed[name][2])
    run = newest.partition("/runs/")[2].partition("/")[0]
    own = [name for name in changed if f"/runs/{run}/" in name]
    if any("answers-" in name for name in now if f"/runs/{run}/" in name):
        return WRITING if any("answers-" not in name for name in own) else SCORING
    # Without stored answers the run is done, and the next model's is being started.
    return START


def watch(process: subprocess.Popen[str], folder: Path, before: State) -> Iterator[str]:
    """The process's phase, again and again, until it ends."""
    while process.poll() is None:
        yield phase(before, state(folder))
        time.sleep(POLL_SECONDS)


def undisturbed(case: Case, folder: Path) -> None:
    """Run the case once, for its bytes and the length of its phases."""
    folder.mkdir()
    began, seen = time.monotonic(), dict.fromkeys(AIMS, 0.0)
    process = start(case, folder)
    for now in watch(process, folder, {}):
        if not seen[now]:
            seen[now] = time.monotonic()
    if process.returncode:
        raise RuntimeError((folder / "messages").read_text()[-2000:])
    # Two models in one command write and score in turn: their last phase is as long as a single model's.
    ends = [seen[SCORING], seen[WRITING], time.monotonic()]
    case.seconds = {name: max(0.01, end - begin) for name, begin, end in zip(AIMS, [began, *ends], ends, strict=False)}
    case.undisturbed = results(folder)


def kill_once(case: Case, folder: Path, random_: random.Random) -> str | None:
    """Start the command and kill it at a random moment of a random phase; the phase it was in, None if it had ended."""
    aim = random_.choices(list(AIMS), list(AIMS.values()))[0]
    before = state(folder)
    process = start(case, folder)
    reached = list(AIMS).index(aim)
    for now in watch(process, folder, before):
        if list(AIMS).index(now) >= reached:
            break
    time.sleep(random_.uniform(0, case.seconds[aim]))
    process.kill()
    if process.wait() != -signal.SIGKILL:
        return None
    return phase(before, state(folder))


def kills(case: Case, folder: Path, wanted: int, random_: random.Random) -> Outcome:
    """Kill `wanted` processes, a few to a run, and let each run finish then."""
    outcome = Outcome()
    left = wanted
    while left:
        place = folder / f"{case.name}-{outcome.runs}"
        place.mkdir()
        for _ in range(min(left, random_.randint(3, 7))):
            found = kill_once(case, place, random_)
            outcome.starts += 1
            if found is None:
                break
            outcome.kills[found] += 1
            left -= 1
        finish(case, place)
        outcome.starts += 1
        outcome.compare(case, place)
        print(f"{case.name}: {dict(outcome.kills)}, {outcome.differ} of {outcome.compared} files differ", flush=True)
    return outcome


def file_size_limits(case: Case, folder: Path) -> Outcome:
    """Let no file grow beyond some sizes, from less than one answer to nearly all results, then lift the limit."""
    outcome = Outcome()
    for size in (100, 3_000, 9_000, 20_000):
        place = folder / f"limit-{size}"
        place.mkdir()
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        # Messages go through a pipe, which has no size.
        process = start(case, place, preexec_fn=limit, stderr=subprocess.PIPE)
        (place / "messages").write_text(process.communicate()[1])
        print(f"no file beyond {size} bytes: {refusal(place, process.returncode)}", flush=True)
        finish(case, place)
        outcome.starts += 2
        outcome.compare(case, place)
    return outcome


def full_file_system(case: Case, folder: Path) -> Outcome | None:
    """Evaluate into a tmpfs too small for it, enlarge that and start again; None where none can be mounted."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        return None
    outcome = Outcome()
    command = shlex.join([sys.executable, "-m", "mambalab.harness", *case.arguments])
    for kilobytes in (4, 12, 40):
        place = folder / f"full-{kilobytes}"
        (place / "small").mkdir(parents=True)
        script = (
            f"mount -t tmpfs -o size={kilobytes}k none small && cd small && {command} 2> ../messages;"
            f" echo $? > ../status; mount -o remount,size=64m . && {command} 2> ../again && cp -r runs .."
        )
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script],
            cwd=place,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{done.stderr}{(place / 'messages').read_text()[-2000:]}")
        print(f"{kilobytes} kB of disk: {refusal(place, int((place / 'status').read_text()))}", flush=True)
        outcome.starts += 2
        outcome.compare(case, place)
    return outcome


def full_output(case: Case, folder: Path) -> Outcome:
    """Print the table to /dev/full; the run stands all the same, and prints again."""
    outcome, place = Outcome(starts=2), folder / "output"
    place.mkdir()
    with Path("/dev/full").open("w") as full:
        status = start(case, place, stdout=full).wait()
    print(f"/dev/full for output: {refusal(place, status)}", flush=True)
    finish(case, place)
    outcome.compare(case, place)
    return outcome


def full_device(case: Case, folder: Path) -> Outcome:
    """Put /dev/full where the stored answers, and where the records should go; take it away and start again."""
    outcome = Outcome()
    (run,) = {Path(name).parts[0] for name in case.undisturbed}
    for name in (f"answers-{key_of(case, folder)}.jsonl", "records.jsonl"):
        place = folder / f"device-{name}"
        (place / "runs" / run).mkdir(parents=True)
        (place / "runs" / run / name).symlink_to("/dev/full")
        print(f"/dev/full for {name[:7]}: {refusal(place, start(case, place).wait())}", flush=True)
        (place / "runs" / run / name).unlink()
        finish(case, place)
        outcome.starts += 2
        outcome.compare(case, place)
    return outcome


def key_of(case: Case, folder: Path) -> str:
    """The part of the stored answers' key that their file's name holds: seen in a process stopped while it scores."""
    place = folder / "key"
    place.mkdir()
    process = start(case, place)
    next((now for now in watch(process, place, {}) if now == SCORING), None)
    process.kill()
    process.wait()
    (path,) = (place / "runs").glob("*/answers-*.jsonl")
    return path.stem.removeprefix("answers-")


def two_processes(case: Case, folder: Path) -> Outcome:
    """Halt a process while it scores, start a second one, and let the first go on."""
    outcome, place, other = Outcome(starts=2), folder / "two", folder / "second"
    place.mkdir()
    other.mkdir()
    (other / "runs").symlink_to(place / "runs")
    first = start(case, place)
    next((now for now in watch(first, place, {}) if now == SCORING), None)
    first.send_signal(signal.SIGSTOP)
    print(f"a second process: {refusal(other, start(case, other).wait())}", flush=True)
    first.send_signal(signal.SIGCONT)
    if first.wait():
        raise RuntimeError((place / "messages").read_text()[-2000:])
    outcome.compare(case, place)
    return outcome


def cases(folder: Path) -> list[Case]:
    """A Mamba, a GPT-NeoX, and both in one command: the six tasks, sampled generation and rolling likelihood."""
    mamba, neox = write_checkpoints(folder / "checkpoints")
    own = write_tasks(folder / "tasks")
    shared = ["--data", str(MINIATURE), "--offline", "--batch-tokens", "128", "--out", "runs"]
    every = ["--tasks", ",".join([*TASKS, *map(str, own)])]
    few = ["--tasks", ",".join(["piqa", "lambada_openai", str(own[0])])]
    scan = backends.pick("cpu").name
    return [
        Case(name="mamba", backend=scan, arguments=["eval", str(mamba), *every, *shared]),
        Case(name="gpt-neox", backend="transformers", arguments=["eval", str(neox), *every, *shared]),
        Case(name="both", backend=f"{scan}, transformers", arguments=["eval", str(mamba), str(neox), *few, *shared]),
    ]


def records(found: Mapping[tuple[str, str], Outcome], by_name: Mapping[str, Case], seed: int) -> Iterator[Record]:
    """For each case and disturbance: starts, files compared and differing, and kills by phase; n is the runs."""
    for (name, what), outcome in found.items():
        counts = {"starts": outcome.starts, "files compared": outcome.compared, "files that differ": outcome.differ}
        if outcome.kills:
            counts |= {"kills": outcome.kills.total()} | {f"in {part}": outcome.kills[part] for part in AIMS}
        backend = by_name[name].backend
        kernel = backends.kernel_digest(backend.split(",")[0]) if backend != "transformers" else None
        origin = provenance(backend=backend, kernel=kernel, device="cpu", dtype="float32", command="make kill-campaign")
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
            print(f"{case.name}: {len(case.undisturbed)} files; {case.seconds}", flush=True)
            found[case.name, "SIGKILL at random moments"] = kills(case, folder, share, random_)
        for what, disturb in {
            "RLIMIT_FSIZE": file_size_limits,
            "a full file system": full_file_system,
            "/dev/full for output": full_output,
            "/dev/full for a file": full_device,
            "a second process": two_processes,
        }.items():
            outcome = disturb(chosen[0], folder)
            if outcome is None:
                print(f"{what}: none can be mounted here")
            else:
                found[chosen[0].name, what] = outcome
    made = list(records(found, {case.name: case for case in chosen}, given.seed))
    print(bench.write(given.out, "Evaluations killed and started again", made))
    sys.exit(any(outcome.differ for outcome in found.values()))


if __name__ == "__main__":
    main()
