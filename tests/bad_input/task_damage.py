"""What is done to task files and to the documents they ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import file_damage


def document(folder: Path, file: str, how: tuple[int, str, Any]) -> None:
    """Set a field of one document, by its number; `...` takes it out."""
    number, field, value = how
    lines = (folder / file).read_text().splitlines()
    changed = json.loads(lines[number % len(lines)])
    changed[field] = value
    if value is ...:
        del changed[field]
    lines[number % len(lines)] = json.dumps(changed)
    (folder / file).write_text("\n".join(lines) + "\n")


def line(folder: Path, file: str, how: tuple[int, bytes]) -> None:
    """Put another line in the place of one."""
    lines = (folder / file).read_bytes().splitlines()
    lines[how[0] % len(lines)] = how[1]
    (folder / file).write_bytes(b"\n".join(lines) + b"\n")


def encoding(folder: Path, file: str, how: str) -> None:
    """The same text, written otherwise."""
    text = (folder / file).read_text()
    (folder / file).write_bytes(ENCODINGS[how](text))


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "with a mark in front": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-32": lambda text: text.encode("utf-32"),
    "latin-1": lambda text: text.replace("a", "é").encode("latin-1", "replace"),
    "carriage returns": lambda text: text.replace("\n", "\r\n").encode(),
    "old Macintosh": lambda text: text.replace("\n", "\r").encode(),
    "no last newline": lambda text: text.rstrip("\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n").encode(),
    "separators inside": lambda text: text.replace("a", "\u2028").encode(),
    "in one line": lambda text: text.replace("\n", " ").encode(),
    "twice": lambda text: (text * 2).encode(),
    "an array": lambda text: ("[" + ",".join(text.splitlines()) + "]").encode(),
    "half surrogates": lambda text: text.replace("a", "\\ud800").encode(),
    "control characters": lambda text: text.replace("a", "\x00").encode(),
    "escaped NUL": lambda text: text.replace("a", "\\u0000").encode(),
    "an enormous line": lambda text: text.replace("a", "a" * 100_000, 1).encode(),
    "compressed": lambda text: __import__("gzip").compress(text.encode()),
}


def code(folder: Path, file: str, how: str) -> None:
    """A script beside the documents, which nobody asked for."""
    (folder / file).parent.joinpath(how).write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\n")


def parquet(folder: Path, file: str, how: str) -> None:
    """The documents as Parquet under the split's name, whole or spoilt."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    path = folder / file
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    target = path.with_suffix(".parquet")
    if how == "other columns":
        rows = [{"x": number} for number, _ in enumerate(rows)]
    if how == "no rows":
        table = pa.Table.from_pylist(rows).slice(0, 0)
    else:
        table = pa.Table.from_pylist(rows)
    pq.write_table(table, target)
    content = target.read_bytes()
    if how == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        target.write_bytes(content[:200] + bytes(b ^ 255 for b in content[200:260]) + content[260:])
    elif how == "a text":
        target.write_bytes(b"PAR1 is what it says")
    for other in path.parent.glob("*.jsonl"):
        other.unlink()


DAMAGES: dict[str, Callable[[Path, str, Any], None]] = {
    **file_damage.DAMAGES,
    "document": document,
    "line": line,
    "encoding": encoding,
    "code": code,
    "parquet": parquet,
}
