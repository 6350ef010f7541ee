"""lm-eval's tasks by name or YAML path, with their documents read from a data directory or through the hub."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache, wraps
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import one_line, root
from .lm_eval_host import in_rows
from .task_settings import read_task_file

# Mamba paper, Table 3, in its order of columns.
TASKS = ("lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
STOCK_FOLDERS = ("lambada", "hellaswag", "piqa", "arc", "winogrande")
# Of a task's settings, those that say where its documents lie: they count by their content.
PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")


def load_tasks(names: Sequence[str], data: Path | None) -> dict[str, Any]:
    """lm-eval's {"tasks", "groups", "group_map"} of task names and YAML paths; documents from `data` when given.

    Raises ValueError, one line that names the task: an unknown name, a file that is no task, documents that can't be
    read, none at all, or two tasks of one name.
    """
    specs = [read_task_file(name) if name.endswith((".yaml", ".yml")) else name for name in names]
    manager = index(all(isinstance(spec, dict) or spec in TASKS for spec in specs))
    for spec in specs:
        if isinstance(spec, str) and not Path(spec).is_absolute():
            _check_known(spec, manager.all_tasks)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    with reading_from(data):
        for name, spec in zip(names, specs, strict=True):
            found = _load(manager, name, spec, data)
            if twice := sorted(loaded["tasks"].keys() & found["tasks"].keys()):
                raise ValueError(f"task {name}: {twice[0]} is among the tasks already")
            for part in loaded:
                loaded[part] |= found.get(part, {})
    return loaded


@cache
def index(six_only: bool) -> Any:
    """lm-eval's index of task files: all of them take seconds to read, those of the six tasks milliseconds."""
    import lm_eval.tasks

    if not six_only:
        return lm_eval.tasks.TaskManager()
    stock = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=[stock / folder for folder in STOCK_FOLDERS])


def _check_known(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = get_close_matches(name.lower(), [*TASKS, *known], n=3)
        raise ValueError(f"unknown task {name!r}" + (f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ""))


def _load(manager: Any, name: str, spec: dict[str, Any] | str, data: Path | None) -> dict[str, Any]:
    """What lm-eval makes of one name or task file, with at least one document in each of its tasks."""
    try:
        found = manager.load([spec])
        for task in found["tasks"].values():
            _process_once(task)
        counts = {task_name: len(task.eval_docs) for task_name, task in found["tasks"].items()}
    except Exception as error:
        # A task may run its own code over documents of any kind.
        where = f"in {data}" if data else "on the hub or in its cache"
        cause = root(error)
        raise ValueError(
            f"task {name} or its documents {where} can't be loaded: {type(cause).__name__}: {one_line(cause, lines=4)}"
        ) from error
    if not counts:
        raise ValueError(f"task {name} is a group of no tasks")
    if empty := [task_name for task_name, count in counts.items() if not count]:
        raise ValueError(f"task {empty[0]} has no documents")
    return found


def _process_once(task: Any) -> None:
    """Keep what the task's process_docs makes of a data set: lm-eval asks at each look at the documents.

    The Arrow copy in which `datasets` would find it again is gone by then.
    """
    for config in (task.config, getattr(task, "fewshot_cfg", None)):
        process = getattr(config, "process_docs", None)
        if config is not None and inspect.isfunction(process):
            config.process_docs = _kept(process)


def _kept(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    made: dict[int, tuple[Any, Any]] = {}

    @wraps(process)
    def keep(docs: Any) -> Any:
        if id(docs) not in made:
            # The data set is kept too, so that its id stays its own.
            made[id(docs)] = (docs, process(docs))
        return made[id(docs)][1]

    return keep


@contextlib.contextmanager
def reading_from(data: Path | None) -> Iterator[None]:
    """Let `datasets` resolve hub names inside `data`: stock task files name them, and a relative directory comes first.

    The hub is not asked for what is not there, whatever was imported before. The Arrow copies go to a folder of this
    run: a shared cache could hold other bytes under the same name.
    """
    import datasets
    from datasets import config
    from huggingface_hub import constants

    # What it would print stands in the error that it raises.
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    if data is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mambalab-"))
        stack.enter_context(contextlib.chdir(data))
        for module, name, value in (
            (config, "HF_DATASETS_CACHE", folder),
            (config, "HF_HUB_OFFLINE", True),
            (constants, "HF_HUB_OFFLINE", True),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def task_digest(task: Any, *, limit: int | None, num_fewshot: int | None) -> str:
    """SHA-256 of what a task asks: its settings and its documents (the first `limit`; few-shot ones where used)."""
    settings = {key: value for key, value in task.dump_config().items() if key not in PLACES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_by_content).encode())
    examples = task.fewshot_docs() if num_fewshot or task.config.num_fewshot else ()
    for document in (*islice(in_rows(task.eval_docs), limit), *examples):
        digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _by_content(value: Any) -> str:
    """A function by its source, as lm-eval's own dump has those that are not nested: its name would hold an address."""
    return inspect.getsource(value) if inspect.isfunction(value) else str(value)


def check_examples(task: Any, wanted: int) -> None:
    """Refuse to draw more few-shot examples than the task has; lm-eval sets the asked document aside where it must."""
    aside = task.fewshot_cfg.split == task.config.test_split
    available = len(task.fewshot_docs()) - aside
    if wanted > available:
        raise ValueError(f"task {task.config.task}: num_fewshot is {wanted}, but it has {max(available, 0)} examples")
