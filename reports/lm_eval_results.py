"""Reads what lm-eval 0.4 itself writes (--output_path, --log_samples) as a run like ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import jsonl
from .published import FINAL_REVISIONS
from .record import Record
from .runs import ZERO_SHOT, Run, Sample, read_samples


def read(path: Path) -> Run:
    """The run in one results file and the samples_TASK_DATE.jsonl beside it. A one-line ValueError if it is none.

    The backend is recorded as "lm-eval:MODEL", MODEL being lm-eval's name of the adapter ("hf", "mamba_ssm").
    """
    content = jsonl.read_object(path)
    config = content.get("config")
    if not isinstance(content.get("results"), dict) or not isinstance(config, dict) or "model" not in config:
        raise ValueError(f"{path} is not an lm-eval results file: it needs results and config.model")
    try:
        samples = _samples(path, content)
        model = _model(config)
        records = tuple(_records(path, content, model, samples))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not in lm-eval's form ({error})") from None
    if not records:
        raise ValueError(f"{path} holds no metric like 'acc,none': was it written by lm-eval before 0.4?")
    return Run(path=path, model=model, records=records, samples=samples)


def _samples(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[Sample, ...]]:
    date = path.stem.rsplit("_", 1)[-1]
    files = {task: path.with_name(f"samples_{task}_{date}.jsonl") for task in content["results"]}
    return {task: read_samples(file) for task, file in files.items() if file.is_file()}


def _records(
    path: Path, content: Mapping[str, Any], model: str, samples: Mapping[str, tuple[Sample, ...]]
) -> Iterator[Record]:
    config = content["config"]
    for task, metrics in content["results"].items():
        count = _part(content, "n-samples").get(task, {}).get("effective", len(samples.get(task, ())))
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            try:
                yield Record(
                    experiment=ZERO_SHOT,
                    model=model,
                    task=task,
                    metric=metric if chosen == "none" else key,
                    setting={"num_fewshot": _part(content, "n-shot").get(task), "limit": config.get("limit")},
                    seed=config.get("random_seed"),
                    value=value,
                    stderr=stderr if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
                    n=count,
                    provenance=_provenance(content, task),
                )
            except ValueError as error:
                raise ValueError(f"{path}: {task} {metric}: {error}") from None


def _provenance(content: Mapping[str, Any], task: str) -> dict[str, Any]:
    config = content["config"]
    model, revision = _model(config), _arguments(config).get("revision")
    torch = re.search(r"PyTorch version: (\S+)", str(content.get("pretty_env_info")))
    versions = {
        "lm_eval": content.get("lm_eval_version"),
        "transformers": content.get("transformers_version"),
        "torch": torch.group(1) if torch else None,
    }
    return {
        "backend": f"lm-eval:{config['model']}",
        "versions": {name: version for name, version in versions.items() if version},
        "device": config.get("device"),
        "dtype": str(config.get("model_dtype") or _arguments(config).get("dtype") or "unknown").removeprefix("torch."),
        "checkpoint": {"source": model, "revision": revision, "digest": config.get("model_sha")},
        "task_version": _part(content, "versions").get(task),
        "documents": _part(content, "n-samples").get(task, {}).get("original"),
    }


def _model(config: Mapping[str, Any]) -> str:
    """The weights' name; an adapter on top or an earlier training step makes it another model."""
    arguments = _arguments(config)
    name = next((arguments[key] for key in ("pretrained", "model", "path", "engine") if key in arguments), None)
    parts = [str(name or config["model"]), *(str(arguments[key]) for key in ("peft", "delta") if arguments.get(key))]
    revision = arguments.get("revision")
    return "+".join(parts) + ("" if revision in FINAL_REVISIONS else f"@{revision}")


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("model_args") or {}
    if isinstance(given, dict):
        return given
    return dict(part.split("=", 1) for part in str(given).split(",") if "=" in part)


def _part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    return content.get(name) or {}
