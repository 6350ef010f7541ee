"""One zero-shot evaluation: from settings to a run directory with records, samples and provenance."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import run_directory
from .documents import check_documents
from .errors import one_line
from .keys import answers_key, run_key
from .lm_eval_host import Host, done_once
from .manifest import check_manifest
from .provenance import provenance
from .store import folder, held
from .task_files import TASKS, check_examples, load_tasks, task_digest


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

    A directory that already holds the records of the same settings, checkpoint, tokenizer, data and package is kept;
    in one that a killed process left, the evaluation goes on, and its results are the same to the byte. ValueError at
    once where another process is at work in it.
    """
    digests = check_data(settings)
    chosen = describe(settings)
    started = time.time()
    with folder(out):
        tasks = load_tasks(settings.tasks, Path(settings.data) if settings.data else None)
        origin = run_provenance(settings, chosen, tasks, digests, command)
        key = run_key(settings, origin)
        run = out / run_directory.name(settings.model, key)
        with held(run):
            if run_directory.is_complete(run):
                logging.getLogger("mambalab").warning("%s is complete already: kept", run)
                run_directory.tidy(run)
            else:
                _evaluate(settings, tasks, origin, run, started)
    return run


def _evaluate(settings: Settings, tasks: dict[str, Any], origin: dict[str, Any], run: Path, started: float) -> None:
    """Compute what an earlier process has not answered already, and write the results."""
    loaded = time.time()
    lm = open_model(settings)
    ready = time.time()
    with run_directory.answers(run, answers_key(settings, origin)) as lm.recall:
        results = run_tasks(lm, tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, seed=settings.seed)
    origin["truncated_requests"] = lm.truncated
    stages = {"load tasks": loaded - started, "load model": ready - loaded, "evaluate": time.time() - ready}
    times = {
        "started": started,
        "seconds": {name: round(seconds, 3) for name, seconds in stages.items()},
        "batches": {"computed": lm.recall.computed, "from an earlier process": lm.recall.recalled},
    }
    run_directory.finish(run, settings, run_key(settings, origin), origin, results, times)


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


def check_models(chosen: Sequence[Settings]) -> None:
    """Refuse what would stop a later model before the first is evaluated, which may take hours.

    That is: settings, folder, tokenizer, and weight files that are not whole; and a checkpoint that comes twice.
    """
    from ..models import weight_files
    from .tokenizer import load_tokenizer

    folders = [find_model(settings)[0] for settings in chosen]
    places = [place.resolve() for place in folders]
    for i, settings in enumerate(chosen):
        first = places.index(places[i])
        if first < i:
            raise ValueError(f"{settings.model} is the same checkpoint as {chosen[first].model}: name it once")
    # The first one's are about to be read anyway.
    for settings, place in zip(chosen[1:], folders[1:], strict=True):
        load_tokenizer(settings.tokenizer, place, offline=settings.offline)
        # Tensors are mapped, not read; a .bin is read once, against its checksums.
        weight_files.read(place)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What will compute, known before any weight is read: the attributes of an adapter that its provenance needs."""

    checkpoint: Path
    backend_name: str
    kernel: str | None
    device: str
    dtype: Any
    tokenizer_name: str


def describe(settings: Settings) -> Described:
    """What `open_model` will open; ValueError for what it would refuse in the settings, the folder or the tokenizer."""
    from ..ext import backends
    from .lm import resolve_device, resolve_dtype
    from .tokenizer import load_tokenizer, tokenizer_digest

    directory, is_mamba = find_model(settings)
    device = resolve_device(settings.device, scans=is_mamba)
    backend = backends.pick(device, settings.backend).name if is_mamba else "transformers"
    return Described(
        checkpoint=directory,
        backend_name=backend,
        kernel=backends.kernel_digest(backend) if is_mamba else None,
        device=device,
        dtype=resolve_dtype(settings.dtype, device, settings.parity),
        tokenizer_name=tokenizer_digest(load_tokenizer(settings.tokenizer, directory, offline=settings.offline)),
    )


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
        "seed": settings.seed,
    }
    if is_mamba:
        return MambaLM(str(directory), dtype=settings.dtype, backend=settings.backend, **shared)
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
    host: Host = done_once,
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
