"""Write a run's files whole or not at all, with one clear line when they can't be written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..reports.jsonl import write_whole


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


def check_new_folder(path: str | Path) -> None:
    """`check_folder` for one that must not hold anything yet: what is written there would mix with it or replace it."""
    if Path(path).is_dir() and any(Path(path).iterdir()):
        raise ValueError(f"{path} is not empty; name a new folder")
    check_folder(path)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    # Not every file system can sync a folder; the file is whole by then.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
