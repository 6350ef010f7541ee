"""The command run in this process, and the small checkpoints, data and runs that its tests share."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from mambalab.harness import cli
from mambalab.harness.demo import MINIATURE, VOCAB_SIZE

TOKENIZER = MINIATURE / "tokenizer.json"
Change = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the command left behind: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def mambalab(*arguments: object) -> Answer:
    """Run the command as its entry point does. An exception that it lets through is the caller's: a traceback."""
    out, err = io.StringIO(), io.StringIO()
    given = [str(argument) for argument in arguments]
    status: object = 0
    with (
        mock.patch.dict(os.environ),
        mock.patch("sys.argv", ["mambalab", *given]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main(given)
        except SystemExit as stop:
            status = stop.code
    assert isinstance(status, int)
    return Answer(status=status, out=out.getvalue(), err=err.getvalue())


def process(*arguments: object, folder: Path, **variables: str) -> Answer:
    """Run the command in a process of its own, in `folder`, with no hub, an empty cache and these variables."""
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    alone = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "mambalab.harness", *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | alone | variables, cwd=folder, capture_output=True, text=True, check=False
    )
    return Answer(status=done.returncode, out=done.stdout, err=done.stderr)


def refused(answer: Answer) -> str:
    """The one line of a refusal; fails when it is none."""
    assert answer.status == 2, answer
    assert "Traceback" not in answer.err
    (line,) = answer.err.splitlines()
    assert line.startswith("mambalab: ")
    return line


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size: what a refused command must leave as it was."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}


def bytes_changed(name: str, change: Callable[[bytes], bytes]) -> Change:
    """A change of one file's contents."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def copied(source: Path, target: Path, change: Change) -> Path:
    """A copy of a folder with one thing changed."""
    shutil.copytree(source, target)
    change(target)
    return target


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """A Mamba in both layouts (the second converted from the first) and a GPT-NeoX, each with the small tokenizer."""
    mamba, hf, neox = folder / "mamba", folder / "mamba-hf", folder / "neox"
    shape = ("--d-model", 32, "--n-layer", 2, "--vocab-size", VOCAB_SIZE)
    assert mambalab("init", mamba, *shape).status == 0
    shutil.copy(TOKENIZER, mamba)
    assert mambalab("convert", mamba, hf, "--layout", "hf").status == 0
    _write_neox(neox)
    shutil.copy(TOKENIZER, neox)
    return {"mamba": mamba, "hf": hf, "neox": neox}


def _write_neox(folder: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPTNeoXForCausalLM(config).save_pretrained(folder)
