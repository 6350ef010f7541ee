"""`--set key=value`: settings of frozen dataclasses given as text, found by name and read as the type they have."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def split(assignments: Sequence[str]) -> dict[str, str]:
    """The values by key of texts such as `task.length=512`; ValueError for a text that is none, and for a key twice.

    A key may begin with "recipe.", as the settings of a run name it.
    """
    found: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.removeprefix("recipe.").partition("=")
        if not equals or not key:
            raise ValueError(f"--set takes key=value, not {text!r}")
        if key in found:
            raise ValueError(f"--set {key} is given twice")
        found[key] = value
    return found


def assigned(settings: Settings, values: Mapping[str, str], path: str = "") -> Settings:
    """A copy of a dataclass with these fields set; a dot in a key leads into a field that is a dataclass itself.

    All change at once, so that each value may need the others. ValueError, with the nearest names, for a key that is
    none, and for a text that is not of the field's type.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Oven:
    ...     heat: float = 180.0
    >>> assigned(Oven(), {"heat": "200"})
    Oven(heat=200.0)
    """
    names = [field.name for field in fields(settings)]  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, str]] = {}
    for key, text in values.items():
        name, _, rest = key.partition(".")
        if name not in names:
            raise ValueError(_unknown(path + name, [path + other for other in names], settings))
        is_inner = is_dataclass(getattr(settings, name))
        if is_inner != bool(rest):
            raise ValueError(_misplaced(path + name, getattr(settings, name), is_inner))
        if is_inner:
            inner.setdefault(name, {})[rest] = text
        else:
            changes[name] = read(text, hints[name], path + name)
    for name, part in inner.items():
        changes[name] = assigned(getattr(settings, name), part, f"{path}{name}.")
    return replace(settings, **changes)  # pyright: ignore[reportArgumentType]


def _unknown(name: str, names: list[str], settings: object) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    # A task has a name, and settings that another task does not have.
    whose = f" of {own}" if isinstance(own := getattr(type(settings), "name", None), str) else ""
    return f"unknown setting {name!r}{whose}; {'nearest' if near else 'known'}: {', '.join(near or names)}"


def _misplaced(name: str, value: Any, is_inner: bool) -> str:
    if is_inner:
        return f"{name} holds settings of its own: set {', '.join(f'{name}.{f.name}' for f in fields(value))}"
    return f"{name} is one value, without settings of its own"


def read(text: str, kind: Any, name: str) -> Any:
    """The value that the text writes, of this type (a type hint); ValueError when there is none."""
    is_union = get_origin(kind) in (Union, types.UnionType)
    options = get_args(kind) if is_union else (kind,)
    for option in options:
        try:
            return _reader(option)(text)
        except (ValueError, KeyError):
            continue
    raise ValueError(f"{name} must be {' or '.join(map(_shown, options))}, not {text!r}")


def _reader(kind: Any) -> Callable[[str], Any]:
    if get_origin(kind) is Literal:
        return {choice: choice for choice in get_args(kind)}.__getitem__
    if get_origin(kind) is tuple:
        return _pairs
    return _READERS[kind]


def _integer(text: str) -> int:
    base, power, exponent = text.partition("^")
    return int(base) ** int(exponent) if power and len(exponent) < 4 else int(text)


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    """`300x16,200x64`, each pair two numbers; an empty text is no pair."""
    found = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")] if text else []
    if None in found:
        raise ValueError(text)
    return tuple((int(match[1]), int(match[2])) for match in found if match)


_READERS: dict[Any, Callable[[str], Any]] = {
    int: _integer,
    float: float,
    str: str,
    bool: {"true": True, "false": False}.__getitem__,
    type(None): {"none": None}.__getitem__,
}
_SHOWN = {int: "an integer", float: "a number", bool: "true or false", type(None): "none", str: "a text"}


def _shown(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return _SHOWN.get(kind, "pairs such as 300x16,200x64")
