"""Compiled kernels on disk: written whole or not at all, and read only when unharmed and made by somebody trusted."""

import functools
import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MAGIC = b"mambalab kernel 1\n"
# A writer takes milliseconds; what is older than this was left by one that was killed.
STALE_SECONDS = 3600

_log = logging.getLogger(__package__)


class Image(NamedTuple):
    """What the driver loads, a cubin (or PTX, ended by a zero byte), and what the compiler said when it made it."""

    code: bytes
    log: str


def folder() -> Path | None:
    """Where compiled kernels are kept: MAMBALAB_CACHE, else mambalab in XDG_CACHE_HOME or in ~/.cache.

    None where no variable is set and the user has no home.
    """
    if named := os.environ.get("MAMBALAB_CACHE"):
        return Path(named)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "mambalab"
    try:
        return Path.home() / ".cache" / "mambalab"
    except RuntimeError:
        return None


def entry(cache: Path, version: str, stem: str, key: str) -> Path:
    """The file in `cache` of what NVRTC `version` made; `key` digests all that went into it, `stem` is for people."""
    return cache / "cubin" / version / f"{stem}-{key}"


def versions(cache: Path) -> list[str]:
    """The versions of NVRTC whose work lies in `cache`, newest first."""
    found = [path.name for path in (cache / "cubin").glob("*.*") if path.is_dir()]
    numbered = [name for name in found if all(part.isdecimal() for part in name.split("."))]
    return sorted(numbered, key=lambda name: [int(part) for part in name.split(".")], reverse=True)


def read(path: Path) -> Image | None:
    """What `write` left at `path`; None where there is nothing, or nothing that can be read or trusted."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            data = file.read()
    except OSError:
        # What is compiled instead has to be written, and that says what is wrong with the folder.
        return None
    if not _trusted(about):
        warn(f"compiled kernels in {path.parent} belong to another user, or all may write them: not loaded")
        return None
    return _unpacked(data, path.name)


def write(path: Path, image: Image) -> None:
    """Keep `image` at `path`, whole or not at all. OSError where it can't be written."""
    # Explicit rights: with a lax umask all could write here, and `read` would refuse it.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    _sweep(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_packed(image, path.name))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # A write that fails does not say where.
            error.filename = str(path)
        raise


@functools.cache
def warn(text: str) -> None:
    """Log a warning, once a process."""
    _log.warning("%s", text)


def _packed(image: Image, name: str) -> bytes:
    body = json.dumps({"name": name, "log": image.log}).encode() + b"\n" + image.code
    return MAGIC + hashlib.sha256(body).digest() + body


def _unpacked(data: bytes, name: str) -> Image | None:
    """The image in the bytes of an entry; None when they are cut, changed or another entry's."""
    start = len(MAGIC) + hashlib.sha256().digest_size
    body = data[start:]
    if data[:start] != MAGIC + hashlib.sha256(body).digest():
        return None
    header, _, code = body.partition(b"\n")
    about = json.loads(header)
    return Image(code, about["log"]) if about["name"] == name else None


def _trusted(about: os.stat_result) -> bool:
    """Whether a file's contents are the user's own or the administrator's: loading a kernel is running code."""
    return not hasattr(os, "geteuid") or (about.st_uid in (os.geteuid(), 0) and not about.st_mode & 0o002)


def _sweep(place: Path) -> None:
    """Remove what killed writers left."""
    for path in place.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except OSError:
            # Another process was faster, or it is not ours: nothing reads it.
            continue
