"""What ran, in one line under a table: code, backend, device, weights and data of a record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .record import Record

MACHINE = ("dtype", "device", "device_name", "cpu")
DIGITS = 8  # of a digest that are shown: the records hold the rest


def line(records: Iterable[Record]) -> str:
    """One line for records that ran together: what the first says, and every task's version."""
    records = tuple(records)
    return "; ".join(part for part in (*_parts(records[0].provenance), _task_versions(records)) if part)


def note(provenance: Mapping[str, Any]) -> str | None:
    """What the checkpoint says of itself ("random weights ..."), or None."""
    checkpoint = provenance.get("checkpoint")
    found = checkpoint.get("note") if isinstance(checkpoint, dict) else None
    return str(found) if found else None


def _parts(provenance: Mapping[str, Any]) -> Iterator[str]:
    kernel = provenance.get("kernel")
    yield f"backend {provenance['backend']}" + (f" (kernel {_short(kernel)})" if kernel else "")
    yield ", ".join(str(provenance[key]) for key in MACHINE if provenance.get(key)) + _threads(provenance)
    yield _code(provenance)
    versions = provenance.get("versions") or {}
    yield ", ".join(f"{name} {versions[name]}" for name in sorted(versions) if versions[name])
    checkpoint = provenance.get("checkpoint") or {}
    if isinstance(checkpoint, dict) and checkpoint.get("digest"):
        yield f"weights {_short(checkpoint['digest'])}"
    if provenance.get("tokenizer"):
        yield f"tokenizer {_short(provenance['tokenizer'])}"
    data = provenance.get("data") or {}
    if data:
        yield "data " + ", ".join(f"{name} {_short(data[name])}" for name in sorted(data))


def _code(provenance: Mapping[str, Any]) -> str:
    if not provenance.get("version"):
        return ""
    commit = provenance.get("commit")
    inner = [f"files {_short(provenance['digest'])}"] if provenance.get("digest") else []
    if commit:
        inner.append(f"commit {_short(commit)}" + (" with changes" if provenance.get("dirty") else ""))
    return f"mambalab {provenance['version']}" + (f" ({', '.join(inner)})" if inner else "")


def _threads(provenance: Mapping[str, Any]) -> str:
    return f", {provenance['threads']} threads" if provenance.get("threads") else ""


def _task_versions(records: Iterable[Record]) -> str:
    versions = {r.task: r.provenance.get("task_version") for r in records}
    named = ", ".join(f"{task} {version}" for task, version in versions.items() if version is not None)
    return f"tasks {named}" if named else ""


def _short(digest: object) -> str:
    return str(digest)[:DIGITS]
