"""Models in our own layout, which keeps every setting: config.json and model.safetensors, never unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import layouts, weight_files
from .architectures import ModelConfig, from_json, to_json
from .building import Model, build
from .checkpoint import check_finite, check_tensors
from .mamba import Mamba

VERSION = 1


def store(model: Model, folder: str | Path) -> Path:
    """Write the model's settings and weights, in their dtypes, to a folder, made if need be; a file is whole or not.

    A folder that holds weights under another name already is a ValueError.
    """
    target = Path(folder)
    content = {"mambalab_model": VERSION, "config": to_json(model.config)}
    target.mkdir(parents=True, exist_ok=True)
    others = [name for name in weight_files.ENTRIES if name != weight_files.SAFETENSORS and (target / name).exists()]
    if others:
        raise ValueError(f"{target} holds {others[0]} already; save to another folder")
    # A tied tensor is written once, under its first name.
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    weight_files.write(tensors, target / weight_files.SAFETENSORS)
    with weight_files.atomic(target / "config.json") as part:
        part.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return target


def restore(folder: str | Path, *, device: str | torch.device = "cpu", backend: str | None = None) -> Model:
    """The model that `store` wrote to this folder, in eval mode, its weights in the dtypes of the file.

    Raises ValueError, naming the file, for a damaged one, a config that makes no model, an unknown, missing or
    misshaped tensor, and for NaN or inf among the weights; FileNotFoundError where a file is missing.
    """
    source = Path(folder)
    config = read_config(source / "config.json")
    entry = weight_files.entry(source)
    if entry.name != weight_files.SAFETENSORS:
        raise ValueError(f"{entry}: our own layout holds {weight_files.SAFETENSORS} alone")
    tensors = weight_files.read(source)
    if config.n_layer > len(tensors):
        # Building so many would take forever, before the first of them was missed.
        raise ValueError(f"{entry}: {len(tensors)} tensors can't be {config.n_layer} layers, as config.json has it")
    model = build(config, seed=None, backend=backend)
    check_tensors(tensors, dict(model.named_parameters()), entry)
    model.load_state_dict(tensors, strict=False, assign=True)
    if isinstance(model, Mamba):
        model.tie_weights()
    model.to(device)
    check_finite(model, entry, "stored")
    return model.eval()


def read_config(path: Path) -> ModelConfig:
    """The config in a config.json of our own layout; what it can't be is a ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: no config.json here")
    content = layouts.read_json(path)
    if content.get("mambalab_model") != VERSION:
        raise ValueError(f"{path}: not a model in our own layout, version {VERSION}")
    try:
        return from_json(content.get("config"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
