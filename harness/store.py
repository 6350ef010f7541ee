"""Write a run's files whole or not at all, in a folder that one process holds, with one clear line when that fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..reports.jsonl import write_whole

# The temporary names of `write_whole`.
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def write_text(path: str | Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, durably; missing folders are made, a link is written through.

    Raises ValueError, one line that names the path, when the place can't be written; no temporary file stays behind.
    """
    # A rename would put a plain file in the place of the link.
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"can't write {path}: it is not a plain file")
    try:
        write_whole(target, text)
    except OSError as error:
        raise ValueError(f"can't write {path}: {error.strerror or error}") from error
    _sync_folder(target.parent)


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of JSON with sorted keys and a newline at the end; NaN and infinities are refused: JSON has none."""
    try:
        text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"can't write {path}: {error}") from error
    write_text(path, text + "\n")


def check_folder(path: str | Path) -> None:
    """Make the folder if need be and refuse, in one line, one that can't be written: before long work, not after it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"can't write in {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def folder(path: str | Path, *, new: bool = False) -> Iterator[None]:
    """`check_folder`, and where the body fails, take away again what was made for it and is still empty.

    `new` refuses a folder that holds anything: what is written there would mix with it or replace it.
    """
    if new and Path(path).is_dir() and any(Path(path).iterdir()):
        raise ValueError(f"{path} is not empty; name a new folder")
    missing = _missing(Path(path))
    try:
        check_folder(path)
        yield
    except BaseException:
        _remove_empty(missing)
        raise


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """`folder`, held by this process alone until the body ends or the process does, however it ends.

    ValueError at once where another process holds it. Where there are no locks, a warning says so.
    """
    missing = _missing(path)
    descriptor = _locked(path)
    try:
        yield
    except BaseException:
        _remove_empty(missing)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor of the folder, made if need be, that holds the lock on it; it leaves no file behind."""
    unguarded = "%s can't be locked (%s): start nothing else on it"
    try:
        import fcntl
    except ImportError:
        # Windows, which can't open a folder either.
        check_folder(path)
        logging.getLogger("mambalab").warning(unguarded, path, "no flock here")
        return None
    while True:
        check_folder(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(f"{path}: another process is at work on this run; wait for it or stop it") from None
        except OSError as error:
            logging.getLogger("mambalab").warning(unguarded, path, error)
        # Its last holder may have failed and taken the folder away in between.
        if path.is_dir() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def _missing(path: Path) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    return [place for place in (path, *path.parents) if not place.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for place in folders:
        with contextlib.suppress(OSError):
            place.rmdir()


def remove_unfinished(path: Path) -> None:
    """Delete the temporary files that a process killed in mid-write left in a folder and those below it."""
    for left in path.rglob(".*.tmp"):
        if UNFINISHED.fullmatch(left.name):
            left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    # Not every file system can sync a folder; the file is whole by then.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
