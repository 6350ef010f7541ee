"""The campaign's disturbances that are no kills: disks that are full in several ways, and a second process."""

from __future__ import annotations

import resource
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from campaign_runs import Case, Outcome, environment, finish, refusal, start, stored, watch


def file_size_limits(case: Case, folder: Path) -> Outcome:
    """Let no file grow beyond the half and nearly the whole of the largest one, then lift the limit."""
    outcome = Outcome()
    largest = max(*case.stored.values(), *map(len, case.undisturbed.values()))
    for size in (largest // 2, largest - 1):
        place = folder / f"{case.name}-limit-{size}"
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
    for kilobytes in (4, 64):
        place = folder / f"full-{kilobytes}"
        (place / "small").mkdir(parents=True)
        script = (
            f"mount -t tmpfs -o size={kilobytes}k none small && cd small && {command} 2> ../messages;"
            f" echo $? > ../status; mount -o remount,size=99m . && {command} 2> ../again && cp -r runs .."
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
    (run,) = case.stored
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
    next(now for now in watch(process, place, *case.stored) if stored(now))
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
    next(now for now in watch(first, place, *case.stored) if stored(now))
    first.send_signal(signal.SIGSTOP)
    print(f"a second process: {refusal(other, start(case, other).wait())}", flush=True)
    first.send_signal(signal.SIGCONT)
    if first.wait():
        raise RuntimeError((place / "messages").read_text()[-2000:])
    outcome.compare(case, place)
    return outcome
