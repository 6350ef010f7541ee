"""Data that is damaged, incomplete or not what its manifest says: one clear line that names file and line, status 2."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command import Change, bytes_changed, copied

PIQA = "baber/piqa/validation.jsonl"
ARC = "allenai/ai2_arc/ARC-Easy/test.jsonl"
HELLASWAG = "Rowan/hellaswag/validation.jsonl"
WINOGRANDE = "allenai/winogrande/winogrande_xl/validation.jsonl"
LAMBADA = "EleutherAI/lambada_openai/test.jsonl"


def _first(name: str, **fields: Any) -> Change:
    """Change fields of a file's first document; `...` takes one out."""

    def change(content: bytes) -> bytes:
        first, rest = content.split(b"\n", 1)
        document = json.loads(first) | fields
        kept = {key: value for key, value in document.items() if value is not ...}
        return json.dumps(kept).encode() + b"\n" + rest

    return bytes_changed(name, change)


# The task, what happens to the data, the file at fault, what is said of it.
DOCUMENTS = {
    "a line cut short": ("piqa", bytes_changed(PIQA, lambda b: b[:-20]), PIQA, ":24: not JSON"),
    "bytes that are no text": (
        "piqa",
        bytes_changed(PIQA, lambda b: b[:30] + b"\xff" + b[30:]),
        PIQA,
        ":1: not JSON ('utf-8'",
    ),
    "a blank line": ("piqa", bytes_changed(PIQA, lambda b: b + b"\n"), PIQA, ":25: not JSON"),
    "an empty file": ("piqa", bytes_changed(PIQA, lambda b: b""), PIQA, "is empty"),
    "no file": ("piqa", lambda folder: (folder / PIQA).unlink(), PIQA, "is missing"),
    "a folder for a file": (
        "piqa",
        lambda folder: ((folder / PIQA).unlink(), (folder / PIQA).mkdir()),
        PIQA,
        "is missing",
    ),
    "a list for a document": (
        "piqa",
        bytes_changed(PIQA, lambda b: b"[1]\n" + b),
        PIQA,
        ":1: a JSON object is expected",
    ),
    "a field missing": ("piqa", _first(PIQA, goal=...), PIQA, ":1: no field 'goal'"),
    "a field that is null": ("piqa", _first(PIQA, goal=None), PIQA, ":1: 'goal' must be of type str, not null"),
    "a field of the wrong type": ("piqa", _first(PIQA, goal=3), PIQA, ":1: 'goal' must be of type str, not int"),
    "a label out of range": ("piqa", _first(PIQA, label=2), PIQA, ":1: 'label' is '2', not one of 0, 1"),
    "no choices": ("arc_easy", _first(ARC, choices={"text": [], "label": []}), ARC, ":1: 'choices' must pair two"),
    "an answer that is no choice": ("arc_easy", _first(ARC, answerKey="Z"), ARC, ":1: 'answerKey' is 'Z'"),
    "no endings": ("hellaswag", _first(HELLASWAG, endings=[]), HELLASWAG, ":1: 'endings' must hold 4 texts, not 0"),
    "no gap": ("winogrande", _first(WINOGRANDE, sentence="No gap."), WINOGRANDE, ":1: 'sentence' must have a gap"),
    "an empty text": ("lambada_openai", _first(LAMBADA, text=""), LAMBADA, ":1: 'text' is empty"),
    "a broken file of examples": (
        "piqa",
        bytes_changed("baber/piqa/train.jsonl", lambda b: b[:-20]),
        "baber/piqa/train.jsonl",
        ":6: not JSON",
    ),
    "examples of another form": (
        "piqa",
        bytes_changed("baber/piqa/train.jsonl", lambda b: b'{"x": 1}\n'),
        "",
        "task piqa or its documents in",
    ),
    "null, in a set that is no one of the six": (
        "boolq",
        lambda folder: (folder / "baber/piqa/other.jsonl").write_text(" null"),
        "baber/piqa/other.jsonl",
        ":1: a JSON object is expected, not null",
    ),
    "code beside the documents": (
        "piqa",
        lambda folder: (folder / "baber/piqa/piqa.py").write_text("raise SystemExit('was run')"),
        "",
        "found piqa.py",
    ),
}


@pytest.mark.parametrize(("task", "change", "name", "says"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_bad_documents_are_named_by_file_and_line(places, tmp_path, evaluated, task, change, name, says):
    data = copied(places["data"], tmp_path / "data", lambda folder: (folder / "manifest.json").unlink())
    change(data)
    line = evaluated(places["mamba"], data, task)
    assert str(data / name) in line
    assert says in line


def _manifest(text: str) -> Change:
    return lambda folder: (folder / "manifest.json").write_text(text)


MANIFESTS = {
    "a changed file": (
        bytes_changed(PIQA, lambda b: b.replace(b"a", b"b", 1)),
        f"{PIQA} has changed: manifest.json has sha256",
    ),
    "a missing file": (lambda folder: (folder / PIQA).unlink(), f"{PIQA} is missing: manifest.json has sha256"),
    "an unlisted file": (
        lambda folder: (folder / "baber/piqa/test.jsonl").touch(),
        "test.jsonl is not in manifest.json",
    ),
    "a manifest cut short": (bytes_changed("manifest.json", lambda b: b[:-9]), "manifest.json: not JSON"),
    "a manifest that is a list": (_manifest("[]"), "manifest.json: a JSON object is expected, not list"),
    "a manifest that is null": (_manifest("null"), "manifest.json: a JSON object is expected, not null"),
    "a manifest of nothing": (_manifest('{"files": {}}'), "manifest.json: it lists no files"),
    "a manifest that reaches outside": (
        _manifest(json.dumps({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}})),
        "manifest.json: '../../etc/passwd' is outside the directory",
    ),
    "a manifest with a bad digest": (
        _manifest(json.dumps({"files": {PIQA: {"sha256": "?", "bytes": 1}}})),
        f"the sha256 of '{PIQA}'",
    ),
}


@pytest.mark.parametrize(("change", "says"), MANIFESTS.values(), ids=MANIFESTS)
def test_data_that_breaks_its_manifest_stops_the_run(places, tmp_path, evaluated, change, says):
    data = copied(places["data"], tmp_path / "data", change)
    line = evaluated(places["mamba"], data)
    assert says in line
    assert str(data) in line
