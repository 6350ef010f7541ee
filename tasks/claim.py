"""Whose a run's folder is: the settings of the run in it are the ones asked for, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import run_files
from .recipes import Recipe

_STEPS = "recipe.steps"


def claim(folder: Path, recipe: Recipe, settings: dict[str, Any], about: dict[str, Any]) -> bool:
    """Make a folder, which this process holds, the run's of these settings; whether that run came to its end already.

    `about` is written beside them, for the reader of the folder.

    ValueError for a folder with something else in it, and for a run of other settings of which anything is kept. A run
    at a constant learning rate may be asked to go on for more steps: those it has done are the same.
    """
    run_files.remove_unfinished(folder)
    path = folder / run_files.SETTINGS
    if not path.is_file():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} holds something, but no run; name another folder")
    elif _is_anything_kept(folder):
        there = run_files.read_settings(folder)
        others = differences(settings, {name: value for name, value in there.items() if name not in about})
        if not others and _is_any_there(folder, run_files.MODEL, run_files.RECORDS):
            return True
        if others.keys() == {_STEPS} and _may_go_on(folder, recipe, others[_STEPS][1]):
            (folder / run_files.RECORDS).unlink(missing_ok=True)
        elif others:
            name = next((name for name in others if name != _STEPS), _STEPS)
            mine, theirs = others[name]
            raise ValueError(
                f"{folder} is a run of other settings: {name} is {theirs!r} there, not {mine!r}; name another folder"
            )
    run_files.write_json(path, settings | about)
    return False


def _is_anything_kept(folder: Path) -> bool:
    results = (run_files.MODEL, run_files.RECORDS, run_files.DIVERGED)
    return bool(run_files.checkpoints(folder)) or _is_any_there(folder, *results)


def _is_any_there(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _may_go_on(folder: Path, recipe: Recipe, steps: int) -> bool:
    is_constant = recipe.optimiser.decay == "constant"
    return is_constant and steps <= recipe.steps and bool(run_files.checkpoints(folder))


def differences(mine: Any, theirs: Any) -> dict[str, tuple[Any, Any]]:
    """Both values of each leaf in which nested dicts differ, by dotted name; None stands for what is not there."""
    here, there = _flat(mine), _flat(theirs)
    both = {name: (here.get(name), there.get(name)) for name in here | there}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, under dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}".lstrip(".")).items()}
