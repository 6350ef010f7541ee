"""Run one command again and again, each in a process that is killed for real at its fault; prints their exit statuses.

    python faulty_command.py '["eval", …]' '[["folder", "append", 2], ["folder", "none", 0]]'

A fault is the current folder, a moment and its number: amid the n-th "append" to the stored answers, before ("rename")
or after ("renamed") the n-th file of the run gets its name. What the command needs is imported once, and every process
is a fork of that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import datasets  # noqa: F401
import lm_eval.evaluator  # noqa: F401
import pandas  # noqa: F401
import tabulate  # noqa: F401
import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: F401
from mambalab.harness import cli, lm, transformers_lm, zero_shot  # noqa: F401
from mambalab.harness.answers import Answers


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(number: int, then: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
    """`usual`, but `then` for its call of this number, counted from 1."""
    calls = count(1)

    def called(*given: Any) -> Any:
        return (then if next(calls) == number else usual)(*given)

    return called


def arm(fault: str, number: int) -> None:
    append, rename = Answers._append, Path.replace

    def half_a_line(store: Answers, line: bytes) -> None:
        append(store, line[: len(line) // 2])
        die()

    def renamed(*given: Path) -> None:
        rename(*given)
        die()

    if fault == "append":
        Answers._append = at(number, half_a_line, append)
    elif fault == "rename":
        Path.replace = at(number, lambda *_: die(), rename)
    elif fault == "renamed":
        Path.replace = at(number, renamed, rename)


def main(arguments: list[str], faults: list[tuple[str, str, int]]) -> None:
    sys.argv = ["mambalab", *arguments]
    for folder, fault, number in faults:
        if os.fork() == 0:
            os.chdir(folder)
            arm(fault, number)
            cli.main(arguments)
            os._exit(0)
        print("STATUS", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
