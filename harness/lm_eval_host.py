"""Spare lm-eval the work that it repeats on its own side of an evaluation; every result stays the same to the byte.

Nothing of lm-eval's logic is replaced: its functions run on tools that do the same with less. Where a later version
has no such place, that one goes on as it was, and a line says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import import_module
from importlib.metadata import version
from json import dumps
from json.encoder import encode_basestring
from types import ModuleType, SimpleNamespace
from typing import Any

Host = Callable[[], AbstractContextManager[None]]  # what lm-eval's own part of an evaluation runs in

ROWS = 256  # documents decoded at once
LITERALS = 2**17  # parsed texts kept


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """A name of one of lm-eval's modules, what makes its replacement from the stock object, and what that spares."""

    module: str
    name: str
    make: Callable[[Any], Any]
    spares: str


@contextmanager
def done_once() -> Iterator[None]:
    """Within this context lm-eval evaluates with the tools of `SUBSTITUTIONS`; not for use from several threads."""
    with _with(SUBSTITUTIONS):
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    """Within this context lm-eval is stock: only its nameless progress bar has its name, and a terminal to itself."""
    with _with((PROGRESS,)):
        yield


@contextmanager
def _with(substitutions: tuple[Substitution, ...]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for substitution in substitutions:
            found = _find(substitution)
            if found is not None:
                owner, name, stock = found
                stack.callback(setattr, owner, name, stock)
                setattr(owner, name, substitution.make(stock))
        yield


def _find(wanted: Substitution) -> tuple[Any, str, Any] | None:
    """The object that holds the name, the last part of the name, and what it holds; None, said in one line, if none."""
    *path, name = wanted.name.split(".")
    try:
        owner: Any = import_module(wanted.module)
        for part in path:
            owner = getattr(owner, part)
        return owner, name, vars(owner)[name]
    except (ImportError, AttributeError, KeyError):
        logging.getLogger("mambalab").warning(
            "lm-eval %s has no %s.%s, so it is not spared this: %s",
            version("lm_eval"), wanted.module, wanted.name, wanted.spares,
        )  # fmt: skip
        return None


def compiled_templates(env: Any) -> Any:
    """A jinja2 Environment that compiles each text once, and whose templates look up their globals in one dict."""
    overlay = env.overlay()

    @cache
    def from_string(source: str) -> Any:
        template = env.from_string(source)
        # jinja2 has a chain of mappings here and copies it, key by key, at each rendering.
        template.globals = dict(template.globals)
        return template

    overlay.from_string = from_string
    return overlay


def parsed_literals(stock: ModuleType) -> SimpleNamespace:
    """The module `ast`, whose literal_eval parses each text once; every call gets a value of its own."""

    @lru_cache(maxsize=LITERALS)
    def parse(text: str) -> tuple[Any, Callable[[Any], Any]]:
        value = stock.literal_eval(text)
        return value, _copier(value)

    def literal_eval(node_or_string: Any) -> Any:
        if not isinstance(node_or_string, str):
            return stock.literal_eval(node_or_string)
        value, copy = parse(node_or_string)
        return copy(value)

    return SimpleNamespace(**vars(stock) | {"literal_eval": literal_eval})


def _copier(value: Any) -> Callable[[Any], Any]:
    if type(value) in (str, int, float):
        return lambda value: value
    flat = type(value) is list and all(type(item) in (str, int, float) for item in value)
    return list.copy if flat else deepcopy


def quick_indents(stock: ModuleType) -> SimpleNamespace:
    """The module `json`, whose dumps is quick at what lm-eval hashes of a document: indented by two, not escaped.

    The standard library's encoder in C does not indent, and the one in Python takes most of the hashing's time.
    """
    plain = {"indent": 2, "ensure_ascii": False}

    def quick(value: Any, **options: Any) -> str:
        if {name: set_to for name, set_to in options.items() if name != "default"} == plain:
            with contextlib.suppress(TypeError, RecursionError):
                return _indented(value, "\n")
        return stock.dumps(value, **options)

    return SimpleNamespace(**vars(stock) | {"dumps": quick})


def _indented(value: Any, line: str) -> str:
    """JSON of texts, numbers, lists and mappings with texts as keys; `line` starts a line. TypeError for all else."""
    if type(value) is str:
        return encode_basestring(value)
    inner = line + "  "
    if type(value) is dict and value:
        items = [f"{_key(key)}: {_indented(item, inner)}" for key, item in value.items()]
        return "{" + inner + f",{inner}".join(items) + line + "}"
    if type(value) is list and value:
        return "[" + inner + f",{inner}".join([_indented(item, inner) for item in value]) + line + "]"
    if type(value) in (int, float, bool, type(None), dict, list):
        return dumps(value)
    raise TypeError(f"{type(value).__name__} is left to the standard library")


def _key(key: Any) -> str:
    if type(key) is not str:
        raise TypeError("keys other than texts are left to the standard library")
    return encode_basestring(key)


class Rows:
    """A data set whose iteration decodes many rows at a time; each pass makes its rows anew, all else is as it was."""

    def __init__(self, docs: Any) -> None:
        self._docs = docs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._docs.iter(batch_size=ROWS):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def __len__(self) -> int:
        return len(self._docs)

    def __getitem__(self, place: Any) -> Any:
        return self._docs[place]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._docs, name)


def in_rows(docs: Any) -> Any:
    """The documents, as Rows where they are a data set of texts and numbers; anything else stays as it is."""
    import datasets

    known = isinstance(docs, datasets.Dataset) and docs.format["type"] is None and docs.column_names
    return Rows(docs) if known and _plain(dict(docs.features)) else docs


def _plain(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return all(_plain(inner) for inner in feature.values())
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _plain(feature.feature)
    return isinstance(feature, datasets.Value | datasets.ClassLabel)


def decoded_in_batches(stock: property) -> property:
    """Task.eval_docs, `in_rows` once the task is made: its constructor looks at the data set itself."""
    read: Any = stock.fget

    def eval_docs(task: Any) -> Any:
        return in_rows(read(task)) if hasattr(task, "features") else read(task)

    return property(eval_docs)


PROGRESS = Substitution(
    module="lm_eval.api.task",
    name="tqdm",
    make=lambda stock: partial(stock, desc="building requests", unit="document", leave=False, disable=None),
    spares="a nameless progress bar",
)
SUBSTITUTIONS = (
    Substitution(
        module="lm_eval.utils",
        name="env",
        make=compiled_templates,
        spares="compiling each template anew for every document and field",
    ),
    Substitution(
        module="lm_eval.api.task",
        name="ast",
        make=parsed_literals,
        spares="parsing what a template gave, such as a list of choices, three times over",
    ),
    Substitution(
        module="lm_eval.api.task",
        name="Task.eval_docs",
        make=decoded_in_batches,
        spares="decoding documents one at a time",
    ),
    Substitution(
        module="lm_eval.evaluator",
        name="json",
        make=quick_indents,
        spares="slow JSON for the hash of each document",
    ),
    PROGRESS,
)
