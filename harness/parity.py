"""Hold our adapter against lm-eval's stock `hf` adapter on transformers' Mamba: same weights, every request."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..reports.jsonl import read_lines
from ..reports.record import Record
from .lm_eval_host import Host, as_it_is, done_once
from .run_directory import provenance_of
from .store import check_folder, write_text
from .task_files import TASKS, load_tasks
from .zero_shot import Settings, check_data, find_model, open_model, run_provenance, run_tasks

CONTROL = "carried state dropped"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """|ours - theirs| may be at most absolute + relative |theirs|, in nats, for each request."""

    absolute: float = 1e-4
    relative: float = 1e-5

    def __call__(self, value: float) -> float:
        return self.absolute + self.relative * abs(value)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document as an adapter scored it: (log-likelihood, greedy) and the length in characters of each choice."""

    doc_id: int
    scores: tuple[tuple[float, bool], ...]
    lengths: tuple[int, ...]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the comparison of one task found.

    outside    requests beyond the tolerance
    near_ties  documents whose two best choices are closer than the tolerance: either answer is right
    differing  documents with another metric, near ties apart
    """

    task: str
    requests: int
    documents: int
    largest: float
    outside: int
    near_ties: tuple[int, ...]
    differing: tuple[int, ...]

    @property
    def holds(self) -> bool:
        return not self.outside and not self.differing


def compare(
    task: str, ours: Sequence[Document], theirs: Sequence[Document], tolerance: Tolerance | None = None
) -> Agreement:
    """Compare request by request; ValueError when the two sides did not score the same documents and choices."""
    allowed = tolerance or Tolerance()
    if [(d.doc_id, len(d.scores)) for d in ours] != [(d.doc_id, len(d.scores)) for d in theirs]:
        raise ValueError(f"{task}: the two sides scored different documents ({len(ours)} and {len(theirs)})")
    pairs = [(a[0], b[0]) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x.scores, y.scores, strict=True)]
    ties = [d.doc_id for d in theirs if _near_tie(d, allowed)]
    other = [x.doc_id for x, y in zip(ours, theirs, strict=True) if _metrics_differ(x, y, allowed)]
    return Agreement(
        task=task,
        requests=len(pairs),
        documents=len(ours),
        largest=max(abs(a - b) for a, b in pairs),
        outside=sum(not abs(a - b) <= allowed(b) for a, b in pairs),
        near_ties=tuple(ties),
        differing=tuple(doc_id for doc_id in other if doc_id not in set(ties)),
    )


def _near_tie(document: Document, allowed: Tolerance) -> bool:
    """Whether the two best choices, as they are or per character, are closer than their tolerances together."""
    values = [value for value, _ in document.scores]
    slack = [allowed(value) for value in values]
    by_length = [(v / n, s / n) for v, s, n in zip(values, slack, document.lengths, strict=True)]
    for ranking in (list(zip(values, slack, strict=True)), by_length):
        best = sorted(ranking, reverse=True)[:2]
        if len(best) == 2 and best[0][0] - best[1][0] <= best[0][1] + best[1][1]:
            return True
    return False


def _metrics_differ(ours: Document, theirs: Document, allowed: Tolerance) -> bool:
    if ours.metrics.keys() != theirs.metrics.keys():
        return True
    # LAMBADA's perplexity is the document's log-likelihood: its own tolerance holds.
    slack = {name: allowed(value) if name == "perplexity" else 0.0 for name, value in theirs.metrics.items()}
    return any(not abs(ours.metrics[name] - theirs.metrics[name]) <= slack[name] for name in slack)


def run_parity(
    settings: Settings, out: Path, *, control: bool, command: str, report: Callable[[str], None]
) -> list[Record]:
    """Score the tasks with both adapters (float32) and return the records of the comparison.

    The stock side is all lm-eval's, evaluator and adapter. It is kept under `out/stock` task by task, with the settings
    that made it, so that a long run goes on where it stopped. With `control`, ours runs again with the carried state
    dropped: that must fail.
    ValueError for settings, a checkpoint or a task that can't be compared.
    """
    settings = _comparable(settings)
    digests = check_data(settings)
    check_folder(out)
    lm = open_model(settings)
    records: list[Record] = []
    for name in settings.tasks:
        one = replace(settings, tasks=(name,))
        loaded = load_tasks((name,), Path(settings.data) if settings.data else None)
        task = _only_scored(name, loaded["tasks"])
        origin = run_provenance(one, lm, loaded, digests, command)
        theirs, versions = _stock(one, lm, loaded, out / "stock" / f"{task}.jsonl", origin)
        lm.scorer.carry = None
        found: list[tuple[str | None, Agreement]] = [(None, compare(task, score_documents(one, lm, loaded), theirs))]
        if control:
            lm.scorer.carry = _drop
            found.append((CONTROL, compare(task, score_documents(one, lm, loaded), theirs)))
        for dropped, agreement in found:
            report(describe(agreement, dropped))
            records += _records(settings, agreement, dropped, origin | {"peer_versions": versions})
    return records


def _comparable(settings: Settings) -> Settings:
    if settings.dtype not in ("auto", "float32") or settings.parity is not None:
        raise ValueError(f"adapters are compared in float32, not in {settings.parity or settings.dtype}")
    if not find_model(settings)[1]:
        raise ValueError(f"{settings.model} is no Mamba: there is no adapter of ours to compare")
    return replace(settings, dtype="float32")


def _only_scored(name: str, tasks: dict[str, Any]) -> str:
    """The task's own name; ValueError for one that generates text, and for a group of several."""
    kinds = {task_name: task.OUTPUT_TYPE for task_name, task in tasks.items()}
    if len(kinds) != 1 or not set(kinds.values()) <= {"multiple_choice", "loglikelihood"}:
        found = ", ".join(f"{task_name} ({kind})" for task_name, kind in list(kinds.items())[:3])
        raise ValueError(f"task {name} can't be compared: one of log-likelihoods is needed, not {found}")
    return next(iter(kinds))


def describe(agreement: Agreement, control: str | None) -> str:
    """One line for a person."""
    verdict = "agrees" if agreement.holds else "DISAGREES"
    return (
        f"{agreement.task}{f' ({control})' if control else ''}: {verdict}; {agreement.requests} requests, "
        f"largest difference {agreement.largest:.2e}, {agreement.outside} outside, "
        f"{len(agreement.near_ties)} near ties {list(agreement.near_ties)}, {len(agreement.differing)} documents differ"
    )


def _drop(state: Any) -> Any:
    from ..models import State

    return State(tuple(s * 0 for s in state.conv), tuple(s * 0 for s in state.scan))


def _stock(
    settings: Settings, lm: Any, tasks: dict[str, Any], path: Path, origin: dict[str, Any]
) -> tuple[list[Document], dict[str, str]]:
    """The stock adapter's documents and the versions it ran with.

    From `path` when it holds those of the same checkpoint, data and settings: the file may come from another machine
    and other versions of the libraries, which the records then name.
    """
    usual = Settings(model=settings.model)
    key = {
        "checkpoint": origin["checkpoint"]["digest"],
        "tokenizer": origin["tokenizer"],
        "data": origin["data"],
        "limit": settings.limit,
    }
    for name in ("num_fewshot", "seed", "max_length"):
        if getattr(settings, name) != getattr(usual, name):
            key[name] = getattr(settings, name)
    if not set(settings.tasks) <= set(TASKS):
        key["asked"] = origin["asked"]
    if path.is_file():
        (_, head), *rows = read_lines(path)
        versions = head.pop("versions", {})
        if head == key:
            return [_from_json(row) for _, row in rows], versions
    versions = {name: origin["versions"][name] for name in ("lm_eval", "transformers", "torch")}
    documents = score_documents(settings, stock_adapter(lm), tasks, host=as_it_is)
    head = json.dumps(key | {"versions": versions}, sort_keys=True)
    lines = [head, *(json.dumps(vars(d), sort_keys=True) for d in documents)]
    write_text(path, "\n".join(lines) + "\n")
    return documents, versions


def _from_json(row: dict[str, Any]) -> Document:
    scores = tuple((float(value), bool(greedy)) for value, greedy in row["scores"])
    return Document(doc_id=row["doc_id"], scores=scores, lengths=tuple(row["lengths"]), metrics=row["metrics"])


def stock_adapter(lm: Any) -> Any:
    """lm-eval's `hf` adapter on the same weights, in the transformers layout."""
    from lm_eval.models import huggingface
    from transformers import MambaForCausalLM

    from ..models import checkpoint

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="mambalab-") as folder:
        checkpoint.save(lm.model, Path(folder) / "hf", layout="hf")
        model = MambaForCausalLM.from_pretrained(Path(folder) / "hf", local_files_only=True)
    hf: Any = huggingface.HFLM
    return hf(pretrained=model.eval().to(lm.device), tokenizer=lm.tokenizer, batch_size=16, max_length=lm.max_length)


def score_documents(settings: Settings, lm: Any, tasks: dict[str, Any], *, host: Host = done_once) -> list[Document]:
    """Every document of loaded tasks as the adapter scores it, through lm-eval's evaluator."""
    results = run_tasks(
        lm, tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, seed=settings.seed, host=host
    )
    return [_document(row) for rows in results["samples"].values() for row in rows]


def _document(row: Any) -> Document:
    # A choice's length is in characters, without the delimiter before it (lm-eval's acc_norm).
    lengths = tuple(max(1, len(arguments[1].lstrip())) for arguments in row["arguments"])
    scores = tuple((float(value), bool(greedy)) for value, greedy in row["filtered_resps"])
    metrics = {name: float(row[name]) for name in row["metrics"]}
    return Document(doc_id=row["doc_id"], scores=scores, lengths=lengths, metrics=metrics)


def _records(settings: Settings, agreement: Agreement, control: str | None, origin: dict[str, Any]) -> Iterator[Record]:
    setting = {
        "limit": settings.limit,
        "control": control,
        "peer": "lm-eval hf adapter, transformers MambaForCausalLM",
        "absolute": Tolerance().absolute,
        "relative": Tolerance().relative,
    }
    counts = {
        "requests": agreement.requests,
        "largest difference": agreement.largest,
        "outside": agreement.outside,
        "near ties": len(agreement.near_ties),
        "differing documents": len(agreement.differing),
    }
    for metric, value in counts.items():
        listed = {"documents": list(agreement.near_ties)} if metric == "near ties" else {}
        yield Record(
            experiment="parity",
            model=settings.model,
            task=agreement.task,
            metric=metric,
            setting=setting | listed,
            seed=None,
            value=float(value),
            n=agreement.documents,
            provenance=provenance_of(agreement.task, origin),
        )
