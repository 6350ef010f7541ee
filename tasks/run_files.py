"""The folder of a training run: its settings, its log and its checkpoints, each whole whenever a process is killed.

settings.json                 the recipe and where it runs, written first
log.jsonl                     one line each `log_every` steps: loss, accuracy, speed, and what was measured
checkpoint-00001000.safetensors  weights, optimiser and step after so many steps; the last two are kept
model.safetensors             the weights at the end, under the model's own names
records.jsonl                 the measured numbers; written last, so that its presence says the run is done
diverged/records.jsonl        that the loss became no finite number; removed when another attempt comes through
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..models import weight_files
from ..reports.record import Record, to_lines

SETTINGS, PIECES, LOG, MODEL, RECORDS, DIVERGED = (
    "settings.json",
    "pieces.json",
    "log.jsonl",
    "model.safetensors",
    "records.jsonl",
    "diverged/records.jsonl",
)
_CHECKPOINT = "checkpoint-{:08d}.safetensors"
KEPT = 2


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, held by this process alone until the body ends or the process does.

    ValueError at once where another process holds it, or where the folder can't be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"can't write in {folder}: {error.strerror}") from error
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"{folder}: another process is at work on this run; wait for it or stop it") from None
    finally:
        os.close(descriptor)
        if is_new:
            # What was refused leaves no empty folder behind.
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    _write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run. FileNotFoundError where there is none, ValueError for a file that holds none."""
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run here (no {SETTINGS})")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise ValueError(f"{path}: not the settings of a run")
    return content


def read_pieces(folder: Path) -> list[dict[str, Any]]:
    """The processes of which something is kept, as `write_pieces` wrote them."""
    path = folder / PIECES
    if not path.is_file():
        return []
    try:
        pieces = json.loads(path.read_text("utf-8"))
        if not all(isinstance(piece["after_step"], int) for piece in pieces):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not what a run writes there; without it the run goes on") from None
    return pieces


def write_pieces(folder: Path, pieces: list[dict[str, Any]]) -> None:
    """Write which processes made the run so far."""
    write_json(folder / PIECES, pieces)


def write_records(folder: Path, records: list[Record]) -> None:
    """Write the records, which says that the run is done; an earlier attempt that diverged is forgotten."""
    shutil.rmtree((folder / DIVERGED).parent, ignore_errors=True)
    _write(folder / RECORDS, to_lines(records))


def write_diverged(folder: Path, found: Record) -> None:
    """Write that the run diverged: a result too, but not one that says that the run is done."""
    (folder / DIVERGED).parent.mkdir(exist_ok=True)
    _write(folder / DIVERGED, to_lines([found]))


def _write(path: Path, text: str) -> None:
    with weight_files.atomic(path) as part:
        part.write_text(text, "utf-8")


def remove_unfinished(folder: Path) -> None:
    """Delete what a process killed in mid-write left under temporary names."""
    for left in folder.glob(".*.part"):
        left.unlink(missing_ok=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log. One that a kill cut short, or that no run wrote, ends it."""
    lines: list[dict[str, Any]] = []
    path = folder / LOG
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not {"step", "loss", "steps_per_second", "seconds"} <= line.keys():
            break
        lines.append(line)
    return lines


def rewind_log(folder: Path, step: int) -> list[dict[str, Any]]:
    """Cut the log to what was true after `step` steps, and return that.

    ValueError, and nothing is cut, where it does not lead up to that step.
    """
    lines = [line for line in read_log(folder) if line["step"] <= step]
    if (lines[-1]["step"] if lines else 0) != step:
        raise ValueError(f"{folder / LOG} does not reach step {step}, of a whole checkpoint")
    _write(folder / LOG, "".join(map(_line, lines)))
    return lines


def append_log(folder: Path, line: Mapping[str, Any]) -> None:
    """Add one line."""
    with appending(folder / LOG) as file:
        file.write(_line(line).encode())


@contextlib.contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """The file, to be written to at its end; an OSError names it, as that of a full disk by itself does not."""
    try:
        with path.open("ab") as file:
            yield file
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True) + "\n"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / _CHECKPOINT.format(step)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the latest first."""
    return sorted(folder.glob(_CHECKPOINT.format(0).replace("0" * 8, "*")), reverse=True)


def last_step(folder: Path) -> int:
    """After how many steps the latest checkpoint of a folder was written; 0 where there is none."""
    steps = (path.stem.rpartition("-")[2] for path in checkpoints(folder))
    # Somebody may have put a copy beside them, under a name of their own.
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> Path:
    """Write the tensors and their digest, whole or not at all; older checkpoints than the one before are removed."""
    path = checkpoint_path(folder, step)
    # The log that leads up to it must be there after a power cut, too.
    with appending(folder / LOG) as log:
        os.fsync(log.fileno())
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with weight_files.atomic(path) as part:
        # One entry alone: of several the file has them in a random order.
        save_file(content, part, metadata={"digest": digest(content)})
    for old in checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """What `write_checkpoint` wrote; a ValueError that names the file when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stated = (file.metadata() or {}).get("digest")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole checkpoint ({str(error).splitlines()[0]})") from error
    if digest(tensors) != stated:
        raise ValueError(f"{path}: damaged: its content is not what was written")
    return tensors


def digest_of(model: nn.Module) -> str:
    """`digest` of a model's parameters."""
    return digest({name: parameter.detach().cpu() for name, parameter in model.named_parameters()})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of CPU tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
