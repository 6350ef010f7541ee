"""What is done to any file: its bytes, its place, and the fields of a JSON or YAML one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Spot = tuple[str, float]


def spot(content: bytes, where: Spot) -> int:
    """A place in a file: from its start, from its end, or anywhere."""
    side, share = where
    reach = {"head": min(len(content), 400), "tail": min(len(content), 3000), "any": len(content)}[side]
    inside = min(int(share * reach), max(0, reach - 1))
    return len(content) - 1 - inside if side == "tail" else inside


def flip(folder: Path, file: str, how: tuple[Spot, int]) -> None:
    """One byte xor a mask."""
    content = bytearray((folder / file).read_bytes())
    content[spot(bytes(content), how[0])] ^= how[1]
    (folder / file).write_bytes(content)


def overwrite(folder: Path, file: str, how: tuple[Spot, bytes]) -> None:
    """A run of bytes in the place of others."""
    content = bytearray((folder / file).read_bytes())
    place = spot(bytes(content), how[0])
    content[place : place + len(how[1])] = how[1][: len(content) - place]
    (folder / file).write_bytes(content)


def cut(folder: Path, file: str, how: Spot) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: spot(content, how)])


def insert(folder: Path, file: str, how: tuple[Spot, bytes]) -> None:
    content = (folder / file).read_bytes()
    place = spot(content, how[0])
    (folder / file).write_bytes(content[:place] + how[1] + content[place:])


def append(folder: Path, file: str, how: bytes) -> None:
    with (folder / file).open("ab") as out:
        out.write(how)


def replace(folder: Path, file: str, how: bytes) -> None:
    (folder / file).write_bytes(how)


def remove(folder: Path, file: str, how: str) -> None:
    """No file, or something else in its place."""
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a link to nothing":
        path.symlink_to(folder / "nowhere")
    elif how == "a link to itself":
        path.symlink_to(path)
    elif how == "a link to the file":
        path.with_name("moved").write_bytes(content)
        path.symlink_to(path.with_name("moved"))


def fields(folder: Path, file: str, how: tuple[tuple[str, Any], ...]) -> None:
    """Set keys of a JSON object or a YAML one (a dot goes inside; `...` takes one out)."""
    text = (folder / file).read_text()
    content = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
    for key, value in how:
        inside, *path = content, *key.split(".")
        for part in path[:-1]:
            inside = inside.setdefault(part, {}) if isinstance(inside, dict) else {}
        if value is ... and isinstance(inside, dict):
            inside.pop(path[-1], None)
        elif isinstance(inside, dict):
            inside[path[-1]] = value
    (folder / file).write_text(json.dumps(content) if file.endswith(".json") else yaml.safe_dump(content))


def twice(folder: Path, file: str, how: tuple[str, Any]) -> None:
    """A key that stands in a JSON object twice."""
    text = (folder / file).read_text().rstrip()
    (folder / file).write_text(f"{text[:-1]}, {json.dumps(how[0])}: {json.dumps(how[1])}}}")


DAMAGES: dict[str, Callable[[Path, str, Any], None]] = {
    "flip": flip,
    "overwrite": overwrite,
    "cut": cut,
    "insert": insert,
    "append": append,
    "replace": replace,
    "remove": remove,
    "fields": fields,
    "twice": twice,
}
