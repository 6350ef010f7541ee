"""The six tasks' data sets: where they live on the hub, and what each of their documents must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reports.jsonl import read_lines

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """One task's data set on the hub, and its place in a data directory.

    config     hub configuration, or None for the only one
    split      the evaluated split; `splits` adds what the stock task file loads besides
    documents  in the whole evaluated split
    revision   commit on the hub, or None for its newest
    check      raises ValueError for a document that the task can't be asked with
    """

    repo: str
    config: str | None = None
    split: str
    splits: tuple[str, ...]
    documents: int
    revision: str | None = None
    check: Callable[[Document], None]

    def file(self, split: str) -> str:
        """Name of a split's file under the data directory."""
        return "/".join(part for part in (self.repo, self.folder, f"{split}.jsonl") if part)

    @property
    def folder(self) -> str | None:
        """The configuration's own folder, where the repository has several."""
        return None if self.config == "default" else self.config


def locate(directory: str | Path, dataset_path: str) -> Path:
    """Absolute path of a hub data set ("allenai/ai2_arc") within a data directory; ValueError lists what is there."""
    directory = Path(directory).absolute()
    if (directory / dataset_path).is_dir():
        return directory / dataset_path
    below = next(iter(directory.glob(f"*/{dataset_path}")), None) if "/" in dataset_path else None
    if below is not None:
        raise ValueError(f"no {dataset_path!r} under {directory}, but under {below.parents[1]}: give that directory")
    held = sorted(f"{path.parent.name}/{path.name}" for path in directory.glob("[!.]*/[!.]*") if path.is_dir())
    raise ValueError(f"no {dataset_path!r} under {directory}; it holds: {', '.join(held[:12]) or 'no data sets'}")


def check_documents(directory: str | Path, task: str) -> int | None:
    """Count the documents of a task's evaluated split, each checked; raises ValueError naming file and line.

    The task's other JSONL files (few-shot examples) only have to hold JSON objects. None, and nothing checked, for
    tasks outside DATASETS and for data sets kept as Parquet: those are lm-eval's to read.
    """
    dataset = DATASETS.get(task)
    if dataset is None:
        _refuse_null(Path(directory))
        return None
    if any(locate(directory, dataset.repo).rglob("*.parquet")):
        return None
    count = 0
    for split in dataset.splits:
        path = Path(directory) / dataset.file(split)
        if split == dataset.split:
            count = _check_file(path, dataset.check)
        elif split == "train" or path.exists():
            _check_file(path, lambda document: None)
    return count


def _refuse_null(directory: Path) -> None:
    """A JSON file that begins with null would crash the process in the reader of `datasets`."""
    for path in sorted(directory.glob("*/*/**/*.json*")):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(100).lstrip()
            if head.startswith(b"null"):
                raise ValueError(f"{path}:1: a JSON object is expected, not null")


def _check_file(path: Path, check: Callable[[Document], None]) -> int:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the task's file in lm-eval loads it")
    number = 0
    for number, document in read_lines(path):
        try:
            check(document)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return number


def _lambada(document: Document) -> None:
    if " " not in _text(document, "text") or not document["text"].rpartition(" ")[2].strip():
        raise ValueError("'text' must end in a word to be guessed, after a space")


def _hellaswag(document: Document) -> None:
    _text(document, "activity_label")
    _text(document, "ctx_a")
    _text(document, "ctx_b", may_be_empty=True)
    endings = _texts(document, "endings")
    if len(endings) != 4:
        raise ValueError(f"'endings' must hold 4 texts, not {len(endings)}")
    _one_of(document, "label", ("0", "1", "2", "3"))


def _piqa(document: Document) -> None:
    for field in ("goal", "sol1", "sol2"):
        _text(document, field)
    _one_of(document, "label", (0, 1))


def _arc(document: Document) -> None:
    _text(document, "question")
    choices = _field(document, "choices", dict)
    texts, labels = _texts(choices, "text"), _texts(choices, "label")
    if len(texts) != len(labels) or len(texts) < 2:
        raise ValueError(f"'choices' must pair two or more texts with labels, not {len(texts)} with {len(labels)}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"the labels of 'choices' repeat: {', '.join(labels)[:80]}")
    _one_of(document, "answerKey", tuple(labels))


def _winogrande(document: Document) -> None:
    sentence = _text(document, "sentence")
    if not sentence.partition("_")[2].strip():
        raise ValueError("'sentence' must have a gap, written _, and go on after it")
    _text(document, "option1")
    _text(document, "option2")
    _one_of(document, "answer", ("1", "2"))


def _field(document: Document, field: str, kind: type) -> Any:
    if field not in document:
        raise ValueError(f"no field {field!r}; it has {', '.join(map(repr, document))[:120] or 'none'}")
    value = document[field]
    if type(value) is not kind:
        found = "null" if value is None else type(value).__name__
        raise ValueError(f"{field!r} must be of type {kind.__name__}, not {found}")
    return value


def _text(document: Document, field: str, *, may_be_empty: bool = False) -> str:
    text = _field(document, field, str)
    if not may_be_empty and not text.strip():
        raise ValueError(f"{field!r} is empty")
    return _encodable(text, field)


def _texts(document: Document, field: str) -> list[str]:
    texts = _field(document, field, list)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{field!r} must hold texts, not {str(text)[:40]!r}")
        _encodable(text, field)
    return texts


def _encodable(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field!r} holds half a surrogate pair, which is no character") from error
    return text


def _one_of(document: Document, field: str, allowed: tuple[Any, ...]) -> None:
    value = _field(document, field, type(allowed[0]))
    if value not in allowed:
        raise ValueError(f"{field!r} is {str(value)[:40]!r}, not one of {', '.join(map(repr, allowed))[:120]}")


def _ai2_arc(config: str, documents: int) -> HubDataset:
    splits = ("train", "validation", "test")
    return HubDataset(
        repo="allenai/ai2_arc", config=config, split="test", splits=splits, documents=documents, check=_arc
    )


# Repositories and splits as lm-eval 0.4.13's task files name them; counts are those of the whole public sets.
DATASETS: dict[str, HubDataset] = {
    "lambada_openai": HubDataset(
        repo="EleutherAI/lambada_openai",
        config="default",
        split="test",
        splits=("test",),
        documents=5153,
        check=_lambada,
    ),
    "hellaswag": HubDataset(
        repo="Rowan/hellaswag",
        split="validation",
        splits=("train", "validation"),
        documents=10042,
        check=_hellaswag,
    ),
    "piqa": HubDataset(
        repo="baber/piqa",
        split="validation",
        splits=("train", "validation"),
        documents=1838,
        check=_piqa,
    ),
    "arc_easy": _ai2_arc("ARC-Easy", 2376),
    "arc_challenge": _ai2_arc("ARC-Challenge", 1172),
    "winogrande": HubDataset(
        repo="allenai/winogrande",
        config="winogrande_xl",
        split="validation",
        splits=("train", "validation"),
        documents=1267,
        check=_winogrande,
    ),
}
