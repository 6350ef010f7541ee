"""Check a data directory against its SHA-256 manifest, and write that manifest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..reports.jsonl import read_object
from .provenance import file_digest
from .store import write_json

MANIFEST = "manifest.json"


def check_manifest(directory: str | Path) -> dict[str, str]:
    """SHA-256 of each data file by its name under `directory`, after a check against manifest.json where there is one.

    Raises ValueError for a file that is missing, changed, or unlisted within a listed data set, and for a manifest that
    can't be trusted. Without a manifest the files are taken as they are.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"no data directory at {directory}")
    listed = read_manifest(directory)["files"]
    for name, entry in sorted(listed.items()):
        _check_file(directory, name, entry)
    others = [name for name in data_files(directory) if name not in listed]
    ours = {_repository(name) for name in listed}
    for name in others:
        if _repository(name) in ours:
            raise ValueError(f"{directory / name} is not in {MANIFEST}, which lists the rest of its data set")
    digests = {name: entry["sha256"] for name, entry in listed.items()}
    return dict(sorted((digests | {name: file_digest(directory / name) for name in others}).items()))


def _check_file(directory: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = directory / name
    wanted = f"{MANIFEST} has sha256 {entry['sha256'][:12]}…, {entry['bytes']} bytes"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {wanted}")
    digest, size = file_digest(path), path.stat().st_size
    if (digest, size) != (entry["sha256"], entry["bytes"]):
        raise ValueError(f"{path} has changed: {wanted}, the file {digest[:12]}…, {size} bytes")


def data_files(directory: Path) -> list[str]:
    """Names of the files in the hub's layout, "owner/name/…", hidden ones left out, sorted."""
    inside = (path.relative_to(directory) for path in directory.glob("*/*/**/*") if path.is_file())
    return sorted(path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts))


def _repository(name: str) -> str:
    return "/".join(name.split("/")[:2])


def write_manifest(
    directory: str | Path,
    *,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Write manifest.json: `files` {name: {"sha256", "bytes"}} (default: all there are) and where they came from."""
    directory = Path(directory)
    if files is None:
        files = {name: describe((directory / name).read_bytes()) for name in data_files(directory)}
    if not files:
        raise ValueError(f"no data files under {directory}: nothing to list in {MANIFEST}")
    write_json(directory / MANIFEST, {"files": files, "source": source or {}})
    return directory / MANIFEST


def describe(content: bytes) -> dict[str, Any]:
    """A manifest's entry for a file of this content."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def read_manifest(directory: Path) -> dict[str, Any]:
    """The checked manifest {"files", "source"}, both empty where there is none."""
    path = directory / MANIFEST
    if not path.exists():
        return {"files": {}, "source": {}}
    try:
        manifest = read_object(path)
        return {"files": _checked_files(manifest), "source": _table(manifest.get("source", {}), "source")}
    except ValueError as error:
        raise ValueError(f"not a usable manifest: {path}: {str(error).removeprefix(f'{path}: ')}") from error


def _checked_files(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    files = _table(manifest.get("files"), "files")
    if not files:
        raise ValueError("it lists no files")
    for name, entry in files.items():
        _check_name(name)
        _check_entry(name, entry)
    return files


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, not {'null' if value is None else type(value).__name__}")
    return value


def _check_name(name: str) -> None:
    if "\\" in name or not name.isprintable() or len(name) > 500:
        raise ValueError(f"bad file name {name[:80]!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) == 0:
        raise ValueError(f"{name!r} is outside the directory")
    if path.as_posix() != name or name == MANIFEST:
        raise ValueError(f"{name!r} does not name a data file")


def _check_entry(name: str, entry: Any) -> None:
    entry = _table(entry, f"the entry of {name!r}")
    digest, size = entry.get("sha256"), entry.get("bytes")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"the sha256 of {name!r} must be 64 lower-case hexadecimal digits, not {str(digest)[:80]!r}")
    if type(size) is not int or size < 0:
        raise ValueError(f"the bytes of {name!r} must be a count, not {str(size)[:80]!r}")
