"""What ran, said under the tables: code, backend, machine, weights, tokenizer, data and task versions of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .record import Record

MACHINE = ("device", "device_name", "cpu")
GPU = (("driver", "driver"), ("cuda", "CUDA"), ("nvrtc", "NVRTC"))  # versions, by key of the provenance
DIGITS = 8  # of a digest that are shown: the records hold the rest


def lines(runs: Sequence[tuple[str, Sequence[Record]]]) -> list[str]:
    """A line for each run (its label and its records) with what is its own, and one with what all runs share."""
    described = [(name, parts(records)) for name, records in runs]
    shared = {
        kind: text
        for kind, text in described[0][1].items()
        if len(described) > 1 and all(own.get(kind) == text for _, own in described)
    }
    made: dict[str, list[str]] = {}
    for name, own in described:
        text = "; ".join(text for kind, text in own.items() if kind not in shared)
        made.setdefault(text, []).append(name)
    own_lines = [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in made.items() if text]
    return own_lines + ([f"All: {'; '.join(shared.values())}"] if shared else [])


def parts(records: Sequence[Record]) -> dict[str, str]:
    """What the first record says of its origin, by kind, and every task's version; nothing where it is silent."""
    provenance = records[0].provenance
    kernel = provenance.get("kernel")
    found = {
        "backend": f"backend {provenance['backend']}" + (f" (kernel {_short(kernel)})" if kernel else ""),
        "machine": ", ".join(part for part in (str(provenance.get("dtype") or ""), machine(provenance)) if part),
        "gpu": ", ".join(f"{name} {provenance[key]}" for key, name in GPU if provenance.get(key)),
        "weights": _named("weights", _inside(provenance, "checkpoint").get("digest")),
        "tokenizer": _named("tokenizer", provenance.get("tokenizer")),
        "code": _code(provenance),
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(_inside(provenance, "versions").items()) if v),
        "tasks": _task_versions(records),
        "data": _listed("data", [f"{name} {_short(d)}" for name, d in sorted(_inside(provenance, "data").items())]),
    }
    return {kind: text for kind, text in found.items() if text}


def machine(provenance: Mapping[str, Any]) -> str:
    """Device, processor and threads: what two speeds must share to be compared."""
    threads = [f"{provenance['threads']} threads"] if provenance.get("threads") else []
    return ", ".join([*(str(provenance[key]) for key in MACHINE if provenance.get(key)), *threads])


def note(provenance: Mapping[str, Any]) -> str | None:
    """What the checkpoint says of itself ("random weights ..."), or None."""
    found = _inside(provenance, "checkpoint").get("note")
    return str(found) if found else None


def _code(provenance: Mapping[str, Any]) -> str:
    if not provenance.get("version"):
        return ""
    commit = provenance.get("commit")
    inner = [f"files {_short(provenance['digest'])}"] if provenance.get("digest") else []
    if commit:
        inner.append(f"commit {_short(commit)}" + (" with changes" if provenance.get("dirty") else ""))
    return f"mambalab {provenance['version']}" + (f" ({', '.join(inner)})" if inner else "")


def _task_versions(records: Iterable[Record]) -> str:
    versions = {r.task: r.provenance.get("task_version") for r in records}
    return _listed("tasks", [f"{task} {version}" for task, version in versions.items() if version is not None])


def _inside(provenance: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = provenance.get(key)
    return value if isinstance(value, dict) else {}


def _named(what: str, digest: object) -> str:
    return f"{what} {_short(digest)}" if digest else ""


def _listed(what: str, items: Sequence[str]) -> str:
    return f"{what} {', '.join(items)}" if items else ""


def _short(digest: object) -> str:
    return str(digest)[:DIGITS]
