"""A data directory laid out like the hub: filled, found, and checked before a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .documents import DATASETS, Document, HubDataset, check_documents, locate
from .errors import one_line
from .manifest import check_manifest, data_files, describe, read_manifest, write_manifest
from .provenance import file_digest
from .store import check_folder, write_text

__all__ = ["DATASETS", "HubDataset", "check_documents", "check_manifest", "fetch", "locate", "write_manifest"]

Load = Callable[[HubDataset, str, str | None], Iterable[Document]]
Resolve = Callable[[HubDataset], str | None]


def hub_revision(dataset: HubDataset) -> str | None:
    """The commit on the hub that will be read. Raises ConnectionError in one line for whatever stands in the way."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(dataset.repo, revision=dataset.revision).sha
    except Exception as error:
        raise ConnectionError(one_line(error)) from error


def hub_documents(dataset: HubDataset, split: str, revision: str | None) -> Iterable[Document]:
    """A split's documents, read from the hub by the `datasets` library. Raises as `hub_revision` does."""
    import datasets

    try:
        return datasets.load_dataset(dataset.repo, dataset.config, split=split, revision=revision).to_list()
    except Exception as error:
        raise ConnectionError(one_line(error)) from error


def fetch(
    directory: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    load: Load = hub_documents,
    resolve: Resolve = hub_revision,
) -> Iterator[str]:
    """Fill a data directory with the data sets of `tasks` (default: all six), yielding a line for each.

    What is already right by the manifest is kept. A data set is read whole and checked before a byte of it is written,
    and the manifest names its files before they appear: after a kill, whatever is there passes `check_manifest` or is
    refused by it, and the next fetch goes on. Raises ValueError in one line; nothing happens before the first `next`.
    """
    directory = Path(directory)
    check_folder(directory)
    for task in [_known(task) for task in (DATASETS if tasks is None else tasks)]:
        dataset = DATASETS[task]
        if _is_kept(directory, dataset):
            yield f"{task}: {dataset.repo} is there already"
            continue
        revision, documents = _read(dataset, load, resolve)
        _place(directory, task, revision, documents)
        counts = ", ".join(f"{len(rows)} {split}" for split, rows in documents.items())
        yield f"{task}: {dataset.repo} at {(revision or 'an unknown revision')[:12]}, {counts} documents"


def _known(task: str) -> str:
    if task not in DATASETS:
        near = get_close_matches(task, DATASETS) or list(DATASETS)
        raise ValueError(f"unknown task {task!r}; nearest: {', '.join(near)}")
    return task


def _is_kept(directory: Path, dataset: HubDataset) -> bool:
    listed = read_manifest(directory)["files"]
    names = [dataset.file(split) for split in dataset.splits]
    if dataset.folder:
        names.append(_readme_name(dataset))
    return all(
        name in listed and (directory / name).is_file() and file_digest(directory / name) == listed[name]["sha256"]
        for name in names
    )


def _read(dataset: HubDataset, load: Load, resolve: Resolve) -> tuple[str | None, dict[str, list[Document]]]:
    try:
        revision = resolve(dataset)
        documents = {split: list(load(dataset, split, revision)) for split in dataset.splits}
    except ConnectionError as error:
        raise ValueError(
            f"can't read {dataset.repo} from the hub ({error}); where the hub is out of reach, "
            "run `mambalab fetch DIR` on a machine that reaches it, copy DIR here and pass it as --data DIR"
        ) from error
    _check_read(dataset, documents[dataset.split])
    return revision, documents


def _check_read(dataset: HubDataset, documents: list[Document]) -> None:
    where = f"{dataset.repo}, {dataset.split} split on the hub"
    if len(documents) != dataset.documents:
        raise ValueError(f"{where}: {len(documents)} documents, but the published numbers are over {dataset.documents}")
    for number, document in enumerate(documents, 1):
        try:
            dataset.check(document)
        except ValueError as error:
            raise ValueError(f"{where}, document {number}: {error}") from error


def _place(directory: Path, task: str, revision: str | None, documents: dict[str, list[Document]]) -> None:
    dataset = DATASETS[task]
    contents = {dataset.file(split): _lines(rows) for split, rows in documents.items()}
    if dataset.folder:
        contents[_readme_name(dataset)] = _readme(directory, dataset)
    manifest = read_manifest(directory)
    files, prefix = manifest["files"], f"{dataset.repo}/"
    # Files of the same repository that came by hand: listed as they are, or the directory would break its own manifest.
    by_hand = {n: describe((directory / n).read_bytes()) for n in data_files(directory) if n.startswith(prefix)}
    new = {name: describe(content.encode()) for name, content in contents.items()}
    origin = {"repo": dataset.repo, "config": dataset.config, "revision": revision}
    write_manifest(directory, files=by_hand | files | new, source=manifest["source"] | {task: origin})
    for name, content in contents.items():
        write_text(directory / name, content)


def _lines(documents: list[Document]) -> str:
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)


def _readme_name(dataset: HubDataset) -> str:
    return f"{dataset.repo}/README.md"


def _readme(directory: Path, dataset: HubDataset) -> str:
    """The header by which `datasets` finds each configuration's files: those present, and the one that comes now."""
    siblings = [d for d in DATASETS.values() if d.repo == dataset.repo]
    present = [d for d in siblings if d is dataset or (directory / d.file(d.split)).is_file()]
    return "\n".join(["---", "configs:", *(line for d in present for line in _config(d)), "---", ""])


def _config(dataset: HubDataset) -> list[str]:
    files: list[Any] = [f"  - split: {split}\n    path: {dataset.folder}/{split}.jsonl" for split in dataset.splits]
    return [f"- config_name: {dataset.config}", "  data_files:", *files]
