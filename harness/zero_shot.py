"""One zero-shot evaluation: from settings to a run directory with records, samples and provenance."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..reports.record import Record, to_lines
from .documents import check_documents
from .errors import one_line
from .lm_eval_host import done_once
from .manifest import check_manifest
from .provenance import provenance
from .store import check_folder, write_json, write_text
from .task_files import TASKS, check_examples, load_tasks, task_digest

SAMPLE_FIELDS = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "target", "filter", "filtered_resps", "metrics")
# Of the provenance: what decides a number, and what is about all tasks together.
DECIDING = ("digest", "versions", "device", "dtype", "backend", "kernel", "tokenizer", "data", "task_version", "asked")
OF_ALL_TASKS = ("task_version", "documents", "asked", "truncated_requests")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides an evaluation's numbers, for one model.

    data       directory laid out like the hub, or None for the hub and its cache
    limit      first documents of each task, or None for all
    dtype      auto | float32 | float16 | bfloat16 (weights)
    parity     None, or "fp16": the official script's arithmetic
    """

    model: str
    tasks: tuple[str, ...] = TASKS
    num_fewshot: int | None = None
    data: str | None = None
    limit: int | None = None
    dtype: str = "auto"
    device: str | None = None
    backend: str | None = None
    parity: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    max_length: int = 2048
    batch_tokens: int = 2048
    offline: bool = False
    seed: int = 1234

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("no tasks given")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"a task is named twice in {', '.join(self.tasks)}")
        for name, least in (("limit", 1), ("num_fewshot", 0), ("max_length", 1), ("batch_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
            if value is not None and value >= 2**63:
                raise ValueError(f"{name} must be less than 2^63, not {value}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2^64 - 1, not {self.seed}")


def evaluate(settings: Settings, out: Path, *, command: str = "") -> Path:
    """Evaluate one model; returns its run directory (`out/NAME-KEY`), complete when records.jsonl is there.

    A directory that already holds the records of the same settings, checkpoint, tokenizer, data and package is kept.
    """
    digests = check_data(settings)
    find_model(settings)
    check_folder(out)
    started = time.time()
    tasks = load_tasks(settings.tasks, Path(settings.data) if settings.data else None)
    loaded = time.time()
    lm = open_model(settings)
    origin = run_provenance(settings, lm, tasks, digests, command)
    identity = _identity(settings, origin)
    run = out / f"{_slug(settings.model)}-{identity[:12]}"
    if (run / "records.jsonl").is_file():
        logging.getLogger("mambalab").warning("%s is complete already: kept", run)
        return run
    ready = time.time()
    results = run_tasks(lm, tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, seed=settings.seed)
    origin["truncated_requests"] = lm.truncated
    _write(run, settings, identity, origin, results)
    stages = {"load tasks": loaded - started, "load model": ready - loaded, "evaluate": time.time() - ready}
    write_json(run / "times.json", {"started": started, "seconds": {k: round(v, 3) for k, v in stages.items()}})
    return run


def check_data(settings: Settings) -> dict[str, str]:
    """SHA-256 of the data files; a broken manifest, or a document that breaks its task's schema, is an error."""
    if settings.data is None:
        return {}
    directory = Path(settings.data)
    if not directory.is_dir():
        raise ValueError(f"no data directory at {settings.data}")
    digests = check_manifest(directory)
    for task in settings.tasks:
        check_documents(directory, task)
    return digests


def find_model(settings: Settings) -> tuple[Path, bool]:
    """The folder of the checkpoint (downloaded if need be) and whether it is a Mamba; its settings checked."""
    from ..ext import backends
    from ..models import checkpoint
    from .lm import resolve_device, resolve_dtype

    resolve_dtype(settings.dtype, "cpu", settings.parity)
    directory = checkpoint.find(settings.model, revision=settings.revision, offline=settings.offline)
    is_mamba = checkpoint.layout(directory) != "transformers"
    device = resolve_device(settings.device, scans=is_mamba)
    if settings.backend is not None and not is_mamba:
        raise ValueError(
            f"{settings.model} is no Mamba: it runs in transformers, where --backend {settings.backend} means nothing"
        )
    if settings.backend is not None:
        backends.pick(device, settings.backend)
    return directory, is_mamba


def open_model(settings: Settings) -> Any:
    """The lm-eval adapter that fits the checkpoint: ours for Mamba, transformers' for anything else."""
    from .lm import MambaLM, resolve_device, resolve_dtype

    directory, is_mamba = find_model(settings)
    device = resolve_device(settings.device, scans=is_mamba)
    shared: dict[str, Any] = {
        "tokenizer": settings.tokenizer,
        "device": device,
        "parity": settings.parity,
        "max_length": settings.max_length,
        "batch_tokens": settings.batch_tokens,
        "offline": settings.offline,
    }
    if is_mamba:
        return MambaLM(str(directory), dtype=settings.dtype, backend=settings.backend, seed=settings.seed, **shared)
    dtype = resolve_dtype(settings.dtype, device, settings.parity)
    from .transformers_lm import TransformersLM

    return TransformersLM(str(directory), dtype=dtype, **shared)


def run_tasks(
    lm: Any,
    tasks: dict[str, Any],
    *,
    num_fewshot: int | None,
    limit: int | None,
    seed: int,
    host: Callable[[], AbstractContextManager[None]] = done_once,
) -> dict[str, Any]:
    """lm-eval's results, samples included. As its simple_evaluate, but for the environment that records hold anyway.

    `host` is what lm-eval's own part runs in: it decides how long that takes, never what comes out.
    """
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    for task in tasks["tasks"].values():
        default = task.get_config("num_fewshot")
        # A task that says 0 means it: its prompt has no place for examples.
        if default is None or (num_fewshot is not None and default != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        if task.config.num_fewshot:
            check_examples(task, task.config.num_fewshot)
        task.set_fewshot_seed(seed=seed)
    try:
        with host():
            # Standard errors are computed here: lm-eval's bootstrap forks a pool, after threads have run.
            results = lm_eval_evaluate(lm, tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    except OverflowError as error:
        raise ValueError(
            f"a metric overflows ({one_line(error)}): the model gives the truth next to no probability"
        ) from error
    except Exception as error:
        others = sorted(tasks["tasks"].keys() - set(TASKS))
        if not others or isinstance(error, ValueError | OSError):
            raise
        # Prompts, filters and metrics of a task file may be anybody's code.
        raise ValueError(f"task {', '.join(others)}: {type(error).__name__}: {one_line(error)}") from error
    assert results is not None
    return dict(results)


def run_provenance(
    settings: Settings, lm: Any, tasks: dict[str, Any], digests: dict[str, str], command: str
) -> dict[str, Any]:
    """What ran, for every record of these tasks: weights, tokenizer, data and tasks by content (see `provenance`)."""
    from ..models import checkpoint

    source = {
        "source": settings.model,
        "revision": settings.revision,
        "digest": checkpoint.digest(lm.checkpoint),
        "layout": checkpoint.layout(lm.checkpoint),
        "note": _note(lm.checkpoint),
    }
    return provenance(
        backend=lm.backend_name,
        kernel=lm.kernel,
        device=str(lm.device),
        dtype=str(lm.dtype).removeprefix("torch."),
        command=command,
        checkpoint=source,
        tokenizer=lm.tokenizer_name,
        data=digests,
        task_version={name: task.VERSION for name, task in tasks["tasks"].items()},
        asked={
            name: task_digest(task, limit=settings.limit, num_fewshot=settings.num_fewshot)
            for name, task in tasks["tasks"].items()
        },
        documents={name: len(task.eval_docs) for name, task in tasks["tasks"].items()},
    )


def _note(directory: Path) -> str | None:
    """What a checkpoint says of itself in a NOTE.txt beside its weights (the demo's are random), for the tables."""
    path = directory / "NOTE.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _identity(settings: Settings, origin: dict[str, Any]) -> str:
    """The content key of a run: everything that decides its numbers, by content and not by path."""
    decides = asdict(replace(settings, model="", data=None, tokenizer=None, revision=None, device=None, offline=False))
    for key in DECIDING:
        decides[f"provenance.{key}"] = origin.get(key)
    decides["checkpoint"] = origin["checkpoint"]["digest"]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _write(run: Path, settings: Settings, identity: str, origin: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the run directory; records.jsonl comes last, so its presence says that the run is whole."""
    samples = results["samples"]
    records = list(_records(settings, origin, results))
    if silent := sorted(samples.keys() - {r.task for r in records}):
        raise ValueError(f"task {silent[0]} gave no number: does lm-eval know a metric of its metric_list?")
    for task, rows in samples.items():
        write_text(run / "samples" / f"{task}.jsonl", "".join(_sample_line(row) for row in rows))
    write_json(run / "provenance.json", origin)
    write_json(run / "run.json", {"key": identity, "model": settings.model, "settings": asdict(settings)})
    write_text(run / "records.jsonl", to_lines(records))


def _sample_line(row: dict[str, Any]) -> str:
    kept = {name: row[name] for name in (*SAMPLE_FIELDS, *row["metrics"]) if name in row}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def _records(settings: Settings, origin: dict[str, Any], results: dict[str, Any]) -> Iterator[Record]:
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        rows = results["samples"].get(task)
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            values = [row[metric] for row in rows or () if row["filter"] == chosen and metric in row]
            count = results.get("n-samples", {}).get(task, {}).get("effective")
            yield Record(
                experiment="zero-shot",
                model=settings.model,
                task=task,
                metric=metric if chosen == "none" else key,
                setting={
                    "num_fewshot": results["n-shot"].get(task),
                    "limit": settings.limit,
                    "parity": settings.parity,
                },
                seed=settings.seed,
                value=float(value),
                stderr=standard_error(metric, float(value), values),
                n=len(values) or count,
                provenance=provenance_of(task, origin),
            )


def provenance_of(task: str, origin: dict[str, Any]) -> dict[str, Any]:
    """The run's provenance as it stands in one task's records: what is listed by task, cut to this one."""
    own = {name: origin[name].get(task) for name in ("task_version", "documents")}
    return {name: value for name, value in origin.items() if name not in OF_ALL_TASKS} | own


def standard_error(metric: str, value: float, values: Sequence[Any]) -> float | None:
    """Standard error of a mean from its documents' values (n - 1 in the variance, as lm-eval's).

    For `perplexity` = exp(-mean log-likelihood) the delta method: the value times the mean's standard error.
    None for other aggregates, and for fewer than two documents.
    """
    if len(values) < 2 or not all(isinstance(v, int | float) for v in values):
        return None
    mean = math.fsum(values) / len(values)
    of_mean = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    if metric == "perplexity":
        return value * of_mean
    return of_mean if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12) else None


def _slug(name: str) -> str:
    tail = name.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in tail) or "model"
