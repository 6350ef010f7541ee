"""JSON files read with errors that name the file and the line, and text files written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError or a one-line ValueError."""
    return _parse(read_bytes(path), str(path))


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a JSON-lines file with their line numbers, from 1; a blank or broken line is a ValueError."""
    content = read_bytes(path)
    if not content.strip():
        raise ValueError(f"{path} is empty")
    # Not splitlines(): JSON leaves U+2028 and its like unescaped inside strings.
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        yield number, _parse(line, f"{path}:{number}")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; what keeps it from being read, in one line."""
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"can't read {path}: a device, which may have no end")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except OSError as error:
        raise ValueError(f"can't read {path}: {os.strerror(error.errno or 0)}") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, under a temporary name in the same folder, flush it, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        # A write that fails does not say to which file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}); was it cut short?") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({str(error).splitlines()[0]})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object is expected, not {'null' if value is None else type(value).__name__}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no measured number")
