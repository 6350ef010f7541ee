"""What is done to the files of a checkpoint."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import file_damage


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
    **file_damage.DAMAGES,
    "tensors": tensors,
    "hostile": hostile,
    "saved": saved,
}
