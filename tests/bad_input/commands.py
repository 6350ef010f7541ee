"""Bad command lines: what the command makes of them, in this process and, for some, in one of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from command import MINIATURE, TOKENIZER, files, mambalab, process
from mambalab.harness.lm import MambaLM
from mambalab.models import checkpoint
from mambalab.reports import record
from models_cases import tiny

from .engine import DEFECT, RIGHT, Verdict, said
from .tasks import refusal_or


@dataclass(frozen=True, kw_only=True)
class CommandCase:
    """Arguments, in which {model} and its like stand for places; by way of the command, a process, or lm-eval."""

    arguments: tuple[str, ...]
    way: str = "command"


def prepare(folder: Path) -> None:
    """The places that the arguments name, and what a changed one is put back from."""
    places = folder / "places"
    checkpoint.save(tiny(vocab_size=1024, d_model=8, n_layer=1, d_state=3), places / "model")
    shutil.copy(TOKENIZER, places / "model")
    # As it was asked of one task: the others need no place here.
    shutil.copytree(MINIATURE, places / "data")
    for name in ("file", "empty/.keep"):
        (places / name).parent.mkdir(exist_ok=True)
        (places / name).write_text("")
    (places / "cwd").mkdir()
    done = mambalab("eval", places / "model", "--data", places / "data", "--tasks", "piqa", "--out", places / "runs")
    assert done.status == 0, done
    (places / "runs").rename(places / "run")
    shutil.copytree(places, folder / "pristine")


def judge(case: CommandCase, ground: Path) -> Verdict:
    """Run it where everything it names is as it was, and look at what it said, and at what it left."""
    places = ground / "places"
    known = {name: str(places / name) for name in ("model", "data", "file", "empty", "run", "new")}
    # Placeholders only: what is drawn may hold braces of its own.
    arguments = [_filled(argument, known) for argument in case.arguments]
    before = files(places)
    try:
        verdict = WAYS[case.way](arguments, places)
    finally:
        after = files(places)
        if after != before:
            shutil.rmtree(places)
            shutil.copytree(ground / "pristine", places)
        for name in ("new", "cwd"):
            shutil.rmtree(places / name, ignore_errors=True)
        (places / "cwd").mkdir()
    if verdict.outcome != RIGHT and after != before:
        return Verdict(DEFECT, f"refused, but left {sorted(after.items() ^ before.items())[:4]}: {verdict.detail}")
    return verdict


def _filled(argument: str, known: dict[str, str]) -> str:
    for name, place in known.items():
        argument = argument.replace("{" + name + "}", place)
    return argument


def _by_command(arguments: list[str], places: Path) -> Verdict:
    with contextlib.chdir(places / "cwd"):
        answer = mambalab(*arguments)
    return refusal_or(answer, places / "cwd", b"") or _ended_well(places)


def _by_process(arguments: list[str], places: Path) -> Verdict:
    answer = process(*arguments, folder=places / "cwd", OMP_NUM_THREADS="1", HF_HOME=str(places.parent / "cache"))
    return refusal_or(answer, places / "cwd", b"") or _ended_well(places)


def _ended_well(places: Path) -> Verdict:
    """What a command that says it did its work has written can be read."""
    for path in [*(places / "new").rglob("records.jsonl"), *(places / "cwd").rglob("records.jsonl")]:
        record.read(path)
    for path in [*(places / "new").rglob("config.json"), *(places / "cwd").rglob("config.json")]:
        checkpoint.load(path.parent)
    return Verdict(RIGHT, "")


def _by_model_args(arguments: list[str], places: Path) -> Verdict:
    """lm-eval's own --model_args, as its command hands them on."""
    try:
        with contextlib.chdir(places / "cwd"):
            MambaLM.create_from_arg_string(arguments[0], {"device": None, "batch_size": 1})
    except (ValueError, OSError) as error:
        return said(str(error))
    return Verdict(RIGHT, "")


WAYS = {"command": _by_command, "process": _by_process, "model_args": _by_model_args}
os.environ.setdefault("HF_HUB_OFFLINE", "1")
