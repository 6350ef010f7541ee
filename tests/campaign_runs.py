"""What the campaign of kills runs and looks at: commands in processes of their own, and the files that they write."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  (for the forks, as all that is imported and not named)
import lm_eval.evaluator  # noqa: F401
import pandas  # noqa: F401
import tabulate  # noqa: F401
import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: F401
from command import files
from mambalab.harness import cli, lm, transformers_lm, zero_shot  # noqa: F401

START, SCORING, WRITING, AFTER = "start-up", "scoring", "writing", "tidying"
POLL_SECONDS = 0.0003
State = Mapping[str, tuple[int, int, int]]


class Forked:
    """A command in a fork of this process, with what is needed of Popen's face."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        sys.stdout.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.chdir(folder)
            for name, stream in (("/dev/null", 1), ("messages", 2)):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
            sys.argv = ["mambalab", *arguments]
            try:
                cli.main(arguments)
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
            os._exit(0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


Process = subprocess.Popen[str] | Forked


@dataclass(kw_only=True)
class Case:
    """One command; of its undisturbed run the bytes, its seconds, and by run directory how many bytes were stored."""

    name: str
    arguments: list[str]
    undisturbed: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    stored: dict[str, int] = field(default_factory=dict)


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


def finish(case: Case, folder: Path, process: Process | None = None) -> None:
    """Run the command to its end, in a fresh interpreter where no process is given."""
    status = (process or start(case, folder)).wait()
    if status:
        raise RuntimeError(f"{case.name} ended with {status}: {(folder / 'messages').read_text()[-2000:]}")


def refusal(folder: Path, status: int) -> str:
    """The one line of a refusal, the last of the messages; RuntimeError where it is none."""
    said = (folder / "messages").read_text()
    lines = [line for line in said.splitlines() if line.startswith("mambalab: ")]
    if status != 2 or len(lines) != 1 or "Traceback" in said:
        raise RuntimeError(f"no clean refusal (status {status}): {said[-2000:]}")
    return lines[0]


def state(folder: Path, run: str) -> State:
    """Every file of a run directory with what tells that it was written: inode, size and time."""
    found = {}
    for place, _, names in os.walk(folder / "runs" / run):
        for name in names:
            # Gone already, perhaps.
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(os.path.join(place, name))  # noqa: PTH116, PTH118  (thousands of times a second)
                found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def stored(now: State) -> int:
    """Bytes of stored answers."""
    return sum(size for name, (_, size, _) in now.items() if name.startswith("answers-"))


def written(before: State, now: State) -> int:
    """How many result files a process has begun to write, or written."""
    return sum(before.get(name) != seen for name, seen in now.items() if not name.startswith("answers-"))


def phase(before: State, now: State) -> str:
    """How far a process had come with a run, by what it had changed there."""
    if "records.jsonl" in now and not stored(now):
        return AFTER
    if written(before, now):
        return WRITING
    return SCORING if stored(now) != stored(before) else START


def watch(process: Process, folder: Path, run: str) -> Iterator[State]:
    """The state of a run directory, again and again, until the process ends."""
    while process.poll() is None:
        yield state(folder, run)
        time.sleep(POLL_SECONDS)


def undisturbed(case: Case, folder: Path) -> None:
    """Run the case once, for its bytes and the size of its stored answers; once more as a fork, for its start-up."""
    folder.mkdir()
    process, began = start(case, folder), time.monotonic()
    while process.poll() is None:
        for path in (folder / "runs").glob("*/answers-*"):
            with contextlib.suppress(FileNotFoundError):
                case.stored[path.parent.name] = path.stat().st_size
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError((folder / "messages").read_text()[-2000:])
    case.undisturbed, case.seconds = results(folder), time.monotonic() - began
