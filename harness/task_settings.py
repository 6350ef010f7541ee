"""A task file of one's own: its settings read and checked, and its documents found, before lm-eval sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..reports.jsonl import read_bytes, read_lines
from .errors import one_line

# What lm-eval would stumble over in words of its own; None and functions may stand anywhere.
FORMS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("dataset_name", "output_type", "fewshot_split"), (str,)),
    **dict.fromkeys(("training_split", "validation_split", "test_split"), (str,)),
    **dict.fromkeys(("description", "target_delimiter", "fewshot_delimiter", "gen_prefix", "task_alias"), (str,)),
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs", "fewshot_config", "metadata"), (dict,)),
    **dict.fromkeys(("metric_list", "filter_list"), (list,)),
    **dict.fromkeys(("num_fewshot", "repeats"), (int,)),
    "doc_to_text": (str, int),
    "doc_to_target": (str, int, list),
    "doc_to_choice": (str, list, dict),
    "tag": (str, list),
}
NAMES = {str: "a text", int: "an integer", list: "a list", dict: "a table"}
# What every entry of a list must name.
ENTRIES = {"metric_list": "metric", "filter_list": "filter"}


def read_task_file(name: str) -> dict[str, Any] | str:
    """The settings in a task file, its relative files made absolute; of a group, which names other tasks, the path.

    Raises ValueError, one line that names the file, where it can't be read, a setting is of the wrong form, or a JSON
    file of its documents holds anything but objects.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    # Unlike resolve, realpath takes links that run in a circle, and a NUL where it can't look.
    path = Path(os.path.realpath(Path(name).expanduser()))
    if not path.is_file():
        raise ValueError(f"no task file at {name}")
    if not read_bytes(path).strip():
        raise ValueError(f"task file {name} is empty")
    try:
        settings = load_yaml(path)
    except Exception as error:
        # The file may name Python functions, whose modules are then imported.
        raise ValueError(f"task file {name} can't be read: {one_line(error, lines=4)}") from error
    if "group" in settings:
        return str(path)
    check_settings(settings, f"task file {name}")
    settings = _with_absolute_files(settings, path.parent)
    for file in _json_files(settings):
        check_json(file, settings["dataset_kwargs"].get("field"))
    return settings


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse, by its name and form, the first setting that no task of lm-eval can have."""
    required = ("task",) if {"class", "custom_dataset"} & settings.keys() else ("task", "dataset_path")
    for key in required:
        if not isinstance(settings.get(key), str) or not settings[key].strip():
            raise ValueError(f"{where} needs {key}, a text, not {_shown(settings.get(key))}")
    name = settings["task"]
    # Its samples lie in a file of that name.
    if not name.isprintable() or "/" in name or len(name.encode()) > 200:
        raise ValueError(f"{where}: task must be a name that a file can have, not {_shown(name)}")
    for key, forms in FORMS.items():
        value = settings.get(key)
        if value is not None and not callable(value) and (isinstance(value, bool) or not isinstance(value, forms)):
            raise ValueError(f"{where}: {key} must be {' or '.join(NAMES[f] for f in forms)}, not {_shown(value)}")
    for key, inner in ENTRIES.items():
        for entry in settings.get(key) or ():
            if not isinstance(entry, dict) or not entry.get(inner):
                raise ValueError(f"{where}: each entry of {key} must name its {inner}, not {_shown(entry)}")
    if (settings.get("num_fewshot") or 0) < 0 or (settings.get("repeats") or 1) < 1:
        raise ValueError(f"{where}: num_fewshot must be at least 0 and repeats at least 1")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _with_absolute_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Files named in the settings are looked for beside the task file, then in the current directory."""

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [absolute(inner) for inner in value]
        places = (folder / value, Path.cwd() / value) if isinstance(value, str) else ()
        return next((str(place) for place in places if _exists(place)), value)

    given = dict(settings.get("dataset_kwargs") or {})
    given |= {key: absolute(given[key]) for key in ("data_files", "data_dir") if key in given}
    changed = {"dataset_kwargs": given} if given else {}
    if str(settings.get("dataset_path")).startswith("."):
        changed["dataset_path"] = absolute(settings["dataset_path"])
    return settings | changed


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):
        # A text too long for a name, or with a NUL in it, is none.
        return False


def _json_files(settings: Mapping[str, Any]) -> list[Path]:
    """The local JSON files of the task's documents, uncompressed."""
    if settings.get("dataset_path") != "json":
        return []
    found: list[str] = []

    def gather(value: Any) -> None:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            gather(inner)
        if isinstance(value, str):
            found.append(value)

    gather((settings.get("dataset_kwargs") or {}).get("data_files"))
    paths = [Path(name) for name in dict.fromkeys(found) if name.endswith((".json", ".jsonl"))]
    return [path for path in paths if _exists(path) and path.is_file()]


def check_json(path: Path, field: str | None = None) -> None:
    """Refuse a file of documents that are not all JSON objects: `datasets` fills in, or dies of, whatever else.

    One object a line, or the whole file an array of them, or an object that holds one (under `field`, where given).
    """
    try:
        for _ in read_lines(path):
            pass
    except ValueError as error:
        try:
            content = json.loads(read_bytes(path))
        except (ValueError, RecursionError):
            raise error from None
        rows = content.get(field, content) if isinstance(content, dict) else content
        rows = [rows] if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: JSON objects are expected, one a line or in one array") from None
