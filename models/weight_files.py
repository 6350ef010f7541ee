"""Weight files in and out: safetensors and PyTorch .bin, whole or in shards, read without running what they carry."""

from __future__ import annotations

import os
import re
import uuid
import warnings
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .layouts import read_json
from .registry import named, shown

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
# In the order in which one is preferred where a folder holds several.
ENTRIES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")


def entry(folder: Path) -> Path:
    """The file that holds a folder's weights, or indexes their shards."""
    for name in ENTRIES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no weights here ({', '.join(ENTRIES)})")


def files(folder: Path) -> list[Path]:
    """The weight files a folder's model is read from: the shards, where its entry is an index."""
    first = entry(folder)
    return _shards(first) if first.suffix == ".json" else [first]


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights, on the CPU, mapped from the file where its format allows.

    A file that is cut short, is not what its name says or would run code is a ValueError that names it.
    """
    tensors: dict[str, Tensor] = {}
    for path in files(folder):
        part = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        if twice := tensors.keys() & part.keys():
            raise ValueError(f"{path}: holds {named(min(twice))}, which another shard holds too")
        tensors |= part
    return tensors


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors under this name, whole or not at all, in the format its suffix says."""
    with atomic(path) as part:
        if path.suffix == ".safetensors":
            save_file(tensors, part, metadata={"format": "pt"})
        else:
            with part.open("wb") as file:
                torch.save(tensors, file)


@contextmanager
def atomic(path: Path):
    """A name beside `path` to write to; what is there is renamed to `path` on leaving, or removed on an error."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        # A writer may make its file for the owner alone; it is to have the mode of any other.
        part.touch()
        mode = part.stat().st_mode
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        # Three ways to hear that the disk is full, none of which says where.
        raise OSError(f"{path}: can't be written whole ({_first_line(error)})") from error
    finally:
        part.unlink(missing_ok=True)


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index}: weight_map must name the file of each tensor")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    shards = []
    for name in sorted(set(names.values())):
        is_plain = name.isprintable() and len(name.encode()) <= 255 and Path(name).name == name
        if not is_plain or Path(name).suffix != suffix:
            raise ValueError(f"{index}: names the shard {shown(name)}, which is no {suffix} file of this folder")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index}: its shard {name} is missing")
        shards.append(index.parent / name)
    return shards


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    seen = _seen(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({seen}{_first_line(error)})") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    content = _unpickled(path)
    if isinstance(content, dict) and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in content.items()):
        return dict(content)
    kind = "nothing" if content is None else f"a {type(content).__name__}"
    if isinstance(content, dict):
        kind = f"a dict with {', '.join(map(shown, list(content)[:4]))}"
    raise ValueError(f"{path}: holds {kind}, not a table of named tensors")


def _unpickled(path: Path) -> object:
    """What a .bin holds, by the unpickler that knows tensors and containers and nothing else."""
    # Opened first by us, so that a file we may not read says so itself.
    seen = _seen(path)
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path}: refused, because loading it would run code ({found[1]})") from error
        raise ValueError(f"{path}: not a PyTorch weight file ({seen}unreadable pickle)") from error
    except Exception as error:
        # A damaged pickle can raise anything at all.
        is_said = isinstance(error, RuntimeError | EOFError | zipfile.BadZipFile)
        why = _first_line(error) if is_said else "unreadable pickle"
        raise ValueError(f"{path}: not a whole PyTorch weight file ({seen}{why})") from error


def _check_sums(path: Path) -> None:
    """Read a zip against its own checksums, which torch does not; an entry written without one (torch can) passes."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.CRC:
                with archive.open(entry) as content:
                    while content.read(2**20):
                        pass


_MAGIC: dict[str, Callable[[bytes], bool]] = {
    "it is empty; ": lambda head: not head,
    "it is a Git LFS pointer, the file itself was not fetched; ": lambda head: head.startswith(
        b"version https://git-lfs"
    ),
    "it is a web page; ": lambda head: head.lstrip()[:1] == b"<",
    "it is a PyTorch zip; ": lambda head: head.startswith(b"PK\x03\x04"),
    "it is a safetensors file; ": lambda head: head[8:9] == b"{",
}


def _seen(path: Path) -> str:
    """What the first bytes of a file say it is, for the error when it cannot be read."""
    with path.open("rb") as file:
        head = file.read(64)
    return next((kind for kind, matches in _MAGIC.items() if matches(head)), "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
