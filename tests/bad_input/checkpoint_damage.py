"""What is done to the files of a checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    """Set keys of a JSON object (a dot goes inside; `...` takes one out)."""
    content = json.loads((folder / file).read_text())
    for key, value in how:
        inside, *path = content, *key.split(".")
        for part in path[:-1]:
            inside = inside.setdefault(part, {}) if isinstance(inside, dict) else {}
        if value is ... and isinstance(inside, dict):
            inside.pop(path[-1], None)
        elif isinstance(inside, dict):
            inside[path[-1]] = value
    (folder / file).write_text(json.dumps(content))


def twice(folder: Path, file: str, how: tuple[str, Any]) -> None:
    """A key that stands in a JSON object twice."""
    text = (folder / file).read_text().rstrip()
    (folder / file).write_text(f"{text[:-1]}, {json.dumps(how[0])}: {json.dumps(how[1])}}}")


def tensors(folder: Path, file: str, how: tuple[str, float, Any]) -> None:
    """Change one tensor of the table: which, by its share of the names in order."""
    action, share, value = how
    path = folder / file
    table = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    table = {name: tensor.clone() for name, tensor in table.items()}
    name = sorted(table)[min(int(share * len(table)), len(table) - 1)]
    TABLE[action](table, name, value)
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in table.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(table, path)
        save_file({key: tensor.clone().contiguous() for key, tensor in table.items()}, folder / "expected.safetensors")


def _planted(table: dict[str, Tensor], name: str, value: float) -> None:
    table[name].view(-1)[-1:].fill_(value)


TABLE: dict[str, Callable[[dict[str, Tensor], str, Any], object]] = {
    "rename": lambda table, name, value: table.update({value: table.pop(name)}),
    "rename in part": lambda table, name, value: table.update({name.replace(".", value, 1): table.pop(name)}),
    "drop": lambda table, name, value: table.pop(name),
    "add": lambda table, name, value: table.update({value: torch.ones(3)}),
    "copy": lambda table, name, value: table.update({f"{name}{value}": table[name].clone()}),
    "number": _planted,
    "dtype": lambda table, name, value: table.update({name: table[name].to(getattr(torch, value))}),
    "turn": lambda table, name, value: table.update({name: table[name].movedim(0, -1).contiguous()}),
    "flat": lambda table, name, value: table.update({name: table[name].reshape(-1)}),
    "an axis more": lambda table, name, value: table.update({name: table[name][None]}),
    "shorter": lambda table, name, value: table.update({name: table[name][:-1].clone()}),
    "longer": lambda table, name, value: table.update({name: torch.cat([table[name], table[name]])}),
    "empty": lambda table, name, value: table.update({name: table[name][:0].clone()}),
    "scalar": lambda table, name, value: table.update({name: torch.tensor(1.0)}),
}


class Code:
    """Pickled, a command to make a file."""

    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def hostile(folder: Path, file: str, how: tuple[str, str]) -> None:
    """A pickle that would make a file called "ran"."""
    ran = str(folder.parent / "ran")
    payload = {
        "open": Code(open, ran, "w"),
        "mkdir": Code(os.mkdir, ran),
        "system": Code(os.system, f"touch {ran}"),
        "exec": Code(exec, f"open({ran!r}, 'w')"),
        "eval": Code(eval, f"open({ran!r}, 'w')"),
        "copy": Code(shutil.copytree, str(folder), ran),
        "a class": Code(torch.nn.Linear, 2, 2),
    }[how[0]]
    held = {"backbone.norm_f.weight": payload}
    path = folder / file
    if how[1] == "zip":
        torch.save(held, path)
    elif how[1] == "legacy":
        torch.save(held, path, _use_new_zipfile_serialization=False)
    elif how[1] == "among tensors":
        torch.save(torch.load(path, weights_only=True) | held if path.suffix == ".bin" else held, path)
    else:
        path.write_bytes(pickle.dumps(held, protocol=int(how[1])))


# What else than a table of tensors a .bin may hold.
OBJECTS: dict[str, Any] = {
    "a list": [torch.ones(2)],
    "a tensor": torch.ones(2),
    "nothing": {},
    "a table of tables": {"model": {"backbone.norm_f.weight": torch.ones(8)}},
    "numbers as names": {1: torch.ones(2)},
    "numbers for tensors": {"backbone.norm_f.weight": 1.0},
    "a sparse tensor": {"backbone.norm_f.weight": torch.ones(8).to_sparse()},
    "meta tensors": {"backbone.norm_f.weight": torch.ones(8, device="meta")},
    "a text": "weights",
    "none": None,
}


def saved(folder: Path, file: str, how: str) -> None:
    torch.save(OBJECTS[how], folder / file)


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
    "tensors": tensors,
    "hostile": hostile,
    "saved": saved,
}
